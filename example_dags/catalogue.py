"""A product catalogue: one image for every row of ``products.csv``, named by its SKU."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator

with DAG(
    "geminiimg_catalogue",
    tags=["geminiimg"],
    params={"folder": Param("file:///tmp/geminiimg/catalogue", type="string", description="in production: s3://...")},
):

    @task
    def products() -> list[dict[str, str]]:
        """Return the arguments that differ between rows."""
        with Path(__file__).with_name("products.csv").open(newline="") as file:
            return [
                {"file_name": row["sku"], "prompt": f"Catalogue photograph of {row['product']}, {row['setting']}"}
                for row in csv.DictReader(file)
            ]

    images = GeminiImageGenerateOperator.partial(
        task_id="images",
        aspect_ratio="1:1",
        resolution="1K",
        # A folder for each run: an existing file is never replaced, and its name is an error.
        output_path="{{ params.folder }}/{{ dag_run.run_after | ts_nodash }}",
        deferrable=True,
        map_index_template="{{ task.file_name }}",
        max_active_tis_per_dagrun=8,
    ).expand_kwargs(products())

    @task
    def index(manifests: list[dict[str, Any]]) -> dict[str, str]:
        """Return the location of every image by file name."""
        uris = [image["uri"] for manifest in manifests for image in manifest["images"]]
        return {uri.rsplit("/", 1)[-1]: uri for uri in uris}

    index(images.output)
