"""Operators that make and edit pictures."""
