"""The trigger with which the doctor sees the root from a triggerer.

Invariants: it reads one object of the root and writes nothing. Its argument is the random name of that object, and its
event holds numbers and words of this package.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_geminiimg import __version__, settings
from airflow_provider_geminiimg.core.execution.boundary import closed
from airflow_provider_geminiimg.core.ledger.root_token import RootView, view_of
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.triggers import job


class GeminiImageRootTrigger(BaseTrigger):
    """Looks for a token in the root, and fires once.

    The event has the fields of `RootView`.

    :param token: name of the token.
    """

    def __init__(self, token: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.token = token

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The path of the class, and its arguments as JSON values."""
        return ("airflow_provider_geminiimg.triggers.root_view.GeminiImageRootTrigger", {"token": self.token})

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look once, then fire; not earlier than `MIN_SECONDS` after the start, as `GeminiImageJobTrigger`."""
        earliest = time.monotonic() + job.MIN_SECONDS
        # In a thread of asgiref, from which Airflow's synchronous look-up of the root's connection works.
        view = await closed(sync_to_async(_view, thread_sensitive=False)(self.token))
        if isinstance(view, GeminiImageError):
            view = RootView(False, False, __version__, view.kind)
        await asyncio.sleep(earliest - time.monotonic())
        yield TriggerEvent(asdict(view))  # type: ignore[no-untyped-call]


def _view(token: str) -> RootView:
    root = partial(open_store, settings.root(), AIRFLOW_OPENERS)
    return view_of(root, settings.namespace(), __version__, token)
