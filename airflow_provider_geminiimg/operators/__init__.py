"""Operators that make and edit images."""
