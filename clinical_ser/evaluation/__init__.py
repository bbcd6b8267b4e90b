"""Figures about a model, each with an interval that respects subjects."""
