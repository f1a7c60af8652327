"""The operator that checks an installation."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_geminiimg._compat import TaskDeferralError, TaskDeferralTimeout, is_mapped
from airflow_provider_geminiimg.operators.arguments import parsers
from airflow_provider_geminiimg.operators.base import CheckedArgumentsMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

_CHECKS = parsers("conn_ids", "output_paths", "api_conn_id")
TRIGGERER_SECONDS = 300
"""Seconds that the task waits for a triggerer."""


class GeminiImageDoctorOperator(CheckedArgumentsMixin, BaseOperator):
    """Check the installation from a worker, and say what to do about each finding. Buys nothing.

    Checks versions, packages, the connections (with the free check of the gateway), the root and other URIs, clocks,
    proxies, TLS and limits. The task then defers, so that a triggerer tells whether it sees the same root.

    Returns the findings: dictionaries with ``check``, ``level`` (``ok``, ``skipped``, ``warning`` or ``error``),
    ``message`` and ``remedy``. The log has them as a table.

    :param conn_ids: ids of Airflow connections of type ``geminiimg``. Default: ``geminiimg_default``.
    :param output_paths: URIs of directories that images are written to. Default: none besides the root.
    :param api_conn_id: id of an Airflow connection to the API server, to ask whether it sees the same root: its address
        as host, and a user and password, or an access token as password. Default: the API server is not asked.
    :raises AirflowFailException: at least one finding is an error.
    """

    checks = _CHECKS
    native_fields = ("conn_ids", "output_paths")
    template_fields: Sequence[str] = tuple(_CHECKS)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        conn_ids: Sequence[str] | str = ("geminiimg_default",),
        output_paths: Sequence[str] | str = (),
        api_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.conn_ids = conn_ids
        self.output_paths = output_paths
        self.api_conn_id = api_conn_id
        if not is_mapped(self):
            self._check_literals()

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Ask a triggerer for its view of the root, then make all checks."""
        from airflow_provider_geminiimg.runtime.doctor import task

        token = task.start(self._arguments())
        if token is not None:
            from airflow_provider_geminiimg.triggers.root_view import GeminiImageRootTrigger

            self.defer(
                trigger=GeminiImageRootTrigger(token),
                method_name="execute_complete",
                kwargs={"token": token},
                timeout=timedelta(seconds=TRIGGERER_SECONDS),
            )
        return task.finish(self._arguments(), self.log, None, None)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as Airflow does, and also if no triggerer has answered."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralTimeout, TaskDeferralError):
            return self.execute_complete(context)  # Airflow does not keep the name of the token then

    def execute_complete(
        self, context: Context, event: dict[str, Any] | None = None, token: str | None = None
    ) -> list[dict[str, Any]]:
        """Make all checks.

        :param event: of the trigger; ``None``: no triggerer has answered.
        """
        from airflow_provider_geminiimg.runtime.doctor import task

        return task.finish(self._arguments(), self.log, token, task.View(event))
