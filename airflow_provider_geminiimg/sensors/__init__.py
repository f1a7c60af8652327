"""Sensors that wait for a job which makes an image."""
