"""The link from a task instance to its images in the gallery.

Airflow stores these links. Invariant: an address is stable, and contains only names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from airflow.providers.common.compat.sdk import BaseOperatorLink, conf

from airflow_provider_geminiimg._compat import iteration_of_link
from airflow_provider_geminiimg.gallery.routes import FRAME, NAV_ROUTE, VIEW

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


class ImagesLink(BaseOperatorLink):
    """Opens the gallery, inside Airflow's frame, for one task instance."""

    name = "Images"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """Return the address.

        :param operator: the operator; it may name another task whose images are shown.
        :param ti_key: the task instance.
        """
        task_id = getattr(operator, "images_task_id", None) or ti_key.task_id
        index = ti_key.map_index if ti_key.map_index >= 0 else None
        names = (ti_key.dag_id, ti_key.run_id, task_id, index, iteration_of_link(ti_key))
        named = [(name, value) for name, value in zip(VIEW, names, strict=True) if value is not None]
        query = urlencode(named, quote_via=quote)
        base = conf.get("api", "base_url", fallback="/") or "/"
        return f"{base.rstrip('/')}/{FRAME}/{NAV_ROUTE}?{query}"
