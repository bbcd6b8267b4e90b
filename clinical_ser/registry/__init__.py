"""Bundles that an organisation keeps: what each came from, and which of them answers."""

from clinical_ser.registry.records import Entry, Pointers, Record
from clinical_ser.registry.store import Registry

__all__ = ["Entry", "Pointers", "Record", "Registry"]
