"""The identity of a root in Airflow's metadata database."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from airflow.sdk import Variable

from airflow_provider_geminiimg._compat import API_CHANNEL, stored_variable
from airflow_provider_geminiimg.exceptions import LedgerError


class RootVariable:
    """Airflow's copy of a root's identity: an Airflow Variable, because no state of a task instance survives a Clear.

    :param root: URI of the root.
    """

    def __init__(self, root: str) -> None:
        self.name = f"geminiimg_root_{hashlib.sha256(root.encode()).hexdigest()[:12]}"
        self._root = root

    def read(self) -> str | None:
        """The stored text; ``None`` if there is none."""
        value: str | None = self._asked(lambda: stored_variable(self.name))
        return value

    def write(self, value: str) -> None:
        """Store the text."""
        about = f"Identity of the ledger of airflow-provider-geminiimg under {self._root}; its documentation: Storage."
        self._asked(lambda: Variable.set(self.name, value, description=about))

    def _asked(self, call: Callable[[], Any]) -> Any:
        try:
            with API_CHANNEL:
                return call()
        except Exception as error:
            raise LedgerError(
                f"Airflow's Variable {self.name!r}, which identifies the ledger, can't be used "
                f"({type(error).__name__}).",
                hint="Nothing was sent by this attempt. Allow the task to read and write this Variable, then retry.",
                retryable=True,
            ) from None
