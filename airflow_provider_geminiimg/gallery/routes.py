"""Where the gallery is and what its routes are called: declared here, and nowhere else.

The application serves these routes, the page's script gets them with the page, and links, tabs and Markdown are made of
them. Airflow keeps links in its database, so what must stay true: an address that was given out once stays. Nothing is
imported here: every Airflow process reads this.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

PREFIX = "/geminiimg"  # where Airflow's API server has the gallery
NAV_ROUTE = "images"
FRAME = "plugin"  # Airflow's own prefix of a page that has a plugin's view in it

# What the page is about is said in its query, by these names.
VIEW = ("dag_id", "run_id", "task_id", "map_index")


@dataclass(frozen=True)
class Route:
    """One of the gallery's addresses, below `PREFIX`.

    :param path: with names in braces.
    :param query: the names that its query may have.
    """

    path: str
    query: tuple[str, ...] = ()

    def at(self, **names: object) -> str:
        """The address with these names in its path, each quoted."""
        return self.path.format(**{name: quote(str(value), safe="") for name, value in names.items()})


_RUN = "api/dags/{dag_id}/runs/{run_id}"
_IMAGE = "{dag_id}/{run_id}/{task_id}/{map_index}/{item}/{n}/{index}"
DAGS = Route("api/dags")
IMAGES = Route(f"{_RUN}/images", ("task_id", "map_index", "model", "standing", "after", "limit"))
SUMMARY = Route(f"{_RUN}/summary", ("task_id", "map_index"))
SOURCES = Route(f"{_RUN}/sources", ("task_id", "map_index", "item", "n"))
IMAGE = Route(f"f/{_IMAGE}")
THUMBNAIL = Route(f"thumbs/{_IMAGE}")
STATIC = Route("static/{version}/{name}")
