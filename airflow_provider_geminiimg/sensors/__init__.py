"""Sensors: `job` waits for a submitted job and stores its image."""
