"""What arguments take."""
