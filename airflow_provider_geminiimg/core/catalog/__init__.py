"""What each gateway takes for each model."""
