"""Hooks.

In reading order: `geminiimg` (`GeminiImageHook`), `_session` (its methods, asynchronous), `object_stores` (S3 and other
stores through Airflow connections).
"""
