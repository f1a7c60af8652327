"""The Airflow plugin: registers the gallery and its views.

Every Airflow process loads plugins, so the application itself is created with the first request.

Invariants: Airflow drops all views if one of them has an unknown destination, so every destination must be valid.
Addresses are relative, because Airflow may be served under a path.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg._compat import CAN_SCOPE_TABS
from airflow_provider_geminiimg.gallery.routes import NAV_ROUTE, PREFIX, VIEW

NAME = "Images"

_DAG, _RUN, _TASK, _MAP_INDEX, _ = VIEW  # Airflow fills in no iteration, so a tab shows all of them
_TABS = {
    "dag": (_DAG,),
    "dag_run": (_DAG, _RUN),
    "task": (_DAG, _TASK),
    "task_instance": (_DAG, _RUN, _TASK, _MAP_INDEX),
}
# A task has the tab if one of these is among its template fields. Each operator of the package has one of them, and so
# have its subclasses and its decorated form; by class name, Airflow would not recognize a subclass.
_OF_THE_PACKAGE = {"task.template_fields": ["geminiimg_conn_id", "external_run_id", "images"]}


def views() -> list[dict[str, Any]]:
    """Return the page under Browse, and the tabs unless they are disabled."""
    href = f"{PREFIX.lstrip('/')}/"
    page = {"name": NAME, "href": href, "destination": "nav", "category": "browse", "url_route": NAV_ROUTE}
    tabs = [
        {
            "name": NAME,
            "href": f"{href}?{'&'.join(f'{name}={{{name.upper()}}}' for name in names)}",
            "destination": destination,
            "url_route": f"images-{destination.replace('_', '-')}",
            **({"applies_to": _OF_THE_PACKAGE} if CAN_SCOPE_TABS and _TASK in names else {}),
        }
        for destination, names in _TABS.items()
    ]
    return [page, *(tabs if settings.gallery_tabs() else [])]


class LateApp:
    """The gallery's application, created with the first request."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            from airflow_provider_geminiimg.gallery.app import make_app

            self._app = make_app()
        await self._app(scope, receive, send)


class GalleryPlugin(AirflowPlugin):
    """Images in Airflow's pages."""

    name = "geminiimg_gallery"
    fastapi_apps = [{"app": LateApp(), "url_prefix": PREFIX, "name": NAME}]
    external_views = views()
