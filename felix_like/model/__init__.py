"""Frozen values of the field: standard library only, no I/O, no clock."""
