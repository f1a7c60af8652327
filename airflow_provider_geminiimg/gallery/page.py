"""The gallery's HTML page, with its scripts and its style sheet.

Invariants:

- A browser never runs modules of two versions together. The address of each file contains a hash of all files, so the
  files may be cached for ever, and the addresses of other versions return nothing. The page contains the version and is
  never cached.
- The files are read once, when the application is created: an upgrade of the package takes effect when the API server
  restarts.
- The page is the same for all users and contains no user data. Its script requests the data with the permissions of the
  user.
- Addresses are relative, because Airflow may be served under a path.
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
# Fixed here, because browsers refuse modules with the media types that some systems assign to these suffixes.
MEDIA_TYPES: Mapping[str, str] = {".js": "text/javascript", ".css": "text/css"}
_FOLDER = Path(__file__).parent / "static"
_HANDED_ON = {
    "dags": routes.DAGS,
    "images": routes.IMAGES,
    "summary": routes.SUMMARY,
    "spend": routes.SPEND,
    "sources": routes.SOURCES,
}


def _version_of(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name} {len(data)} ".encode() + data)
    return digest.hexdigest()[:16]


def _page() -> str:
    """Build the page, with the addresses of its files and the data for its script."""
    data = {
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
        data=html.escape(json.dumps(data)),
    )


FILES: Mapping[str, bytes] = {
    path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in MEDIA_TYPES
}
VERSION = _version_of(FILES)
PAGE = _page()
