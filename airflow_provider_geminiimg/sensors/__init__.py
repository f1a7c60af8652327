"""Sensors that wait for a job which makes a picture."""
