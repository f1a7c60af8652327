"""Decorated functions that return prompts: a poster of one city, and a postcard of each.

The return value is saved until the images are stored: a retry uses it, and does not call the function again.
"""

from __future__ import annotations

from collections.abc import Iterator

from airflow.sdk import DAG, task

with DAG("geminiimg_taskflow", tags=["geminiimg"], default_args={"retries": 2}):

    @task
    def forecast() -> dict[str, str]:
        """Return the weather by city. In production, this comes from a service or a language model."""
        return {"Bergen": "in the rain", "Lisbon": "on a bright morning", "Prague": "in the fog"}

    @task.gemini_image(aspect_ratio="2:3", deferrable=True)
    def poster(weather: dict[str, str], city: str) -> str:
        """Return a prompt, or a dict with further fields of a request."""
        return f"A travel poster of {city} {weather[city]}, as a screen print"

    @task.gemini_image_batch(resolution="512", file_name="{city}")
    def postcards(weather: dict[str, str]) -> Iterator[dict[str, str]]:
        """Return rows, or yield them: prompts, or dicts with a request's fields and columns for the file name."""
        for city, mood in weather.items():
            yield {"city": city, "prompt": f"A postcard of {city} {mood}, as a watercolour"}

    weather = forecast()
    poster(weather, "Bergen")
    postcards(weather)
