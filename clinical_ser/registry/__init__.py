"""Bundles that an organisation keeps: what each came from, and which of them answers."""
