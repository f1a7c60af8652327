"""The catalogue of ``products.csv`` as a batch that several workers make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_provider_geminiimg import image_batch

with DAG(
    "geminiimg_wide_catalogue",
    tags=["geminiimg"],
    params={"folder": Param("file:///tmp/geminiimg/wide", type="string", description="in production: s3://...")},
):
    catalogue = image_batch(
        "catalogue",
        requests=Path(__file__).with_name("products.csv").as_uri(),  # in production: s3://...
        prompt="Catalogue photograph of {product}, {setting}",
        file_name="{sku}",
        aspect_ratio="1:1",
        resolution="1K",
        # A folder for each run: an existing file is never replaced, and its name is an error.
        output_path="{{ params.folder }}/{{ dag_run.run_after | ts_nodash }}",
        shards=2,  # for 100,000 rows, for example 100
        max_cost=1.00,
        retries=2,
    )

    @task
    def publish(summary: dict[str, Any]) -> str:
        """Return a sentence about the batch."""
        return f"{summary['counts']['landed']} new images of {summary['items']}: {summary['manifest']}"

    publish(catalogue.children["catalogue.merge"].output)
