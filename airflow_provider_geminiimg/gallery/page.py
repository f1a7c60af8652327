"""The gallery's page, and the script and style that it loads.

What must stay true:

- A browser never runs modules of two versions together. The address of each file holds a hash of all of them: what
  lies there may be kept for ever, and at another version's address there is nothing. The page, which names the version,
  is never kept.
- The files are read once, when the application is made: an upgrade of the package changes nothing until the API server
  is restarted.
- The page is the same for everybody and holds nothing of anybody's: what it shows it asks for as the user who looks.
- Addresses are relative, because Airflow may live under a path.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

from airflow_provider_geminiimg.gallery import routes

PAGE_SIZE, MAX_PAGE_SIZE = 60, 200
# Said here, because what the system says of a suffix may be something that browsers run no module from.
MEDIA_TYPES: Mapping[str, str] = {".js": "text/javascript", ".css": "text/css"}
_FOLDER = Path(__file__).parent / "static"
_HANDED_ON = {
    "dags": routes.DAGS,
    "images": routes.IMAGES,
    "summary": routes.SUMMARY,
    "sources": routes.SOURCES,
}


def _version_of(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name} {len(data)} ".encode() + data)
    return digest.hexdigest()[:16]


def _page() -> str:
    """The page, with the addresses of its files and all that its script is told."""
    told = {
        "routes": {name: {"path": route.path, "query": route.query} for name, route in _HANDED_ON.items()},
        "view": routes.VIEW,
        "frame": routes.FRAME,
        "page_size": PAGE_SIZE,
        "max_page_size": MAX_PAGE_SIZE,
    }
    modules = (routes.STATIC.at(version=VERSION, name=name) for name in FILES if name.endswith(".js"))
    return Template((_FOLDER / "index.html").read_text(encoding="utf-8")).substitute(
        style=routes.STATIC.at(version=VERSION, name="gallery.css"),
        script=routes.STATIC.at(version=VERSION, name="main.js"),
        preloads="\n    ".join(f'<link rel="modulepreload" href="{address}">' for address in modules),
        told=html.escape(json.dumps(told)),
    )


FILES: Mapping[str, bytes] = {
    path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in MEDIA_TYPES
}
VERSION = _version_of(FILES)
PAGE = _page()
