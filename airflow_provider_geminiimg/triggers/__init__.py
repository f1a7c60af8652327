"""Triggers: `job` waits for a job in the triggerer."""
