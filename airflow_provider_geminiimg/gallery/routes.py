"""All addresses of the gallery.

The application serves these routes, the page's script receives them with the page, and links, tabs and Markdown are
built from them.

Invariants: Airflow stores links in its database, so an address never changes. This module imports nothing else, because
every Airflow process loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

PREFIX = "/geminiimg"  # path of the gallery on Airflow's API server
NAV_ROUTE = "images"
FRAME = "plugin"  # Airflow's path prefix of pages that embed a plugin's view

# The page's query parameters, which select a DAG, run, task or task instance.
VIEW = ("dag_id", "run_id", "task_id", "map_index", "iteration")


@dataclass(frozen=True)
class Route:
    """An address of the gallery, below `PREFIX`.

    :param path: with names in braces.
    :param query: the permitted query parameters.
    """

    path: str
    query: tuple[str, ...] = ()

    def at(self, **names: object) -> str:
        """Return the address with these names in its path, each quoted."""
        return self.path.format(**{name: quote(str(value), safe="") for name, value in names.items()})


_RUN = "api/dags/{dag_id}/runs/{run_id}"
_IMAGE = "{dag_id}/{run_id}/{task_id}/{index}/{item}/{n}/{image}"
DAGS = Route("api/dags", ("position",))
IMAGES = Route(f"{_RUN}/images", ("task_id", "map_index", "iteration", "model", "status", "after", "position", "limit"))
SUMMARY = Route(f"{_RUN}/summary", ("task_id", "map_index", "iteration"))
SPEND = Route("api/dags/{dag_id}/spend", ("by", "after_run"))
SOURCES = Route(f"{_RUN}/sources", ("task_id", "map_index", "iteration", "item", "n"))
IMAGE = Route(f"f/{_IMAGE}")
THUMBNAIL = Route(f"thumbs/{_IMAGE}", ("v",))
STATIC = Route("static/{version}/{name}")
ROOT = Route("api/same-root/{token}")
