"""The identity of a root. It shows that a ledger was moved away or emptied, or that workers do not share it.

``root.json`` has a random id. It is written before the first paid request under a root, and Airflow keeps a copy of the
id (an Airflow Variable). Airflow's task state store says the same about one task instance, but from Airflow 3.4 on a
Clear empties it, and before Airflow 3.3 there is none.

Invariants: nothing is bought under a root with another id than Airflow's copy. Nothing is bought under a root without
an id if Airflow has a copy and earlier attempts may have left records: the images may have been paid for already. If a
new run has started a new ledger, Airflow's copy says since when, and earlier runs still buy nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.ledger.layout import LEDGER, ROOT_KEY
from airflow_provider_geminiimg.core.ledger.open_index import mark_complete, root_of
from airflow_provider_geminiimg.core.storage import Blob, Store, create_or_read, encode_segment
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, LedgerError, StorageError

_ON_PURPOSE = (
    "If the ledger was emptied or replaced on purpose, and no image that was paid for is missing, delete Airflow's "
    "Variable {name!r} and clear the task."
)
_STARTED_ANEW = (
    "There is no root.json under %s, but this Airflow used a ledger there before. A new one is started. If the ledger "
    "was not emptied on purpose, restore it now: otherwise images that were paid for and not collected are not found."
)
_SHARE = "Nothing was sent by this attempt. Set [geminiimg] root to storage that all workers share, or restore it. "


class KnownRoot(Protocol):
    """Airflow's copy of a root's identity.

    `read` returns ``None`` if there is none. It raises `GeminiImageError` if Airflow does not answer.
    """

    name: str

    def read(self) -> str | None: ...
    def write(self, value: str) -> None: ...


@dataclass(frozen=True)
class RunStart:
    """A DAG run, and when it began.

    :param name: distinguishes it from all other runs.
    :param since: Unix seconds; not later than its first attempt.
    """

    name: str
    since: float

    @property
    def digest(self) -> str:
        """A short hash of its name."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]


class RootCheck:
    """Checks the identity of the root once, before the first purchase of an attempt. Belongs to one event loop.

    :param store: the root's store.
    :param known: Airflow's copy.
    :param log: receives a warning if the root has got a new identity.
    :param first_attempt: whether no earlier attempt can have left a record of this task instance.
    :param run: the DAG run.
    :param namespace: of this Airflow. Its index of open records (`open_index`) is complete if it has no record yet
        when the root gets its identity.
    """

    def __init__(
        self,
        store: Store,
        known: KnownRoot,
        log: Logs,
        *,
        first_attempt: bool,
        run: RunStart = RunStart("", 0.0),
        namespace: str | None = None,
    ) -> None:
        self._store = store
        self._known = known
        self._log = log
        self._first_attempt = first_attempt
        self._run = run
        self._namespace = namespace
        self._turn = asyncio.Lock()
        self._passed = False
        self._failed: GeminiImageError | None = None

    async def passed(self) -> None:
        """Return if it is safe to buy an image that has no record.

        :raises LedgerError: earlier attempts may have left their records elsewhere.
        :raises StorageError: the store failed.
        """
        async with self._turn:
            if self._failed is not None:
                raise self._failed.evolve()
            if self._passed:
                return
            try:
                await asyncio.to_thread(self._check)
            except GeminiImageError as error:
                self._failed = error.evolve(billed=Billed.NO if self._first_attempt else Billed.UNKNOWN)
                raise self._failed from error.__cause__
            self._passed = True

    def _check(self) -> None:
        text = self._known.read()
        blob = self._store.read(ROOT_KEY)
        found = None if blob is None else self._identity(blob)
        if text is None:
            self._known.write(json.dumps(found or self._created()))
            return
        remembered = _parsed(text, f"Airflow's Variable {self._known.name!r}")
        if found is None:
            self._refuse_missing(remembered)
            found = self._created(replaces=remembered["id"])
        if self._is_successor(found, remembered):
            self._log.warning(_STARTED_ANEW, self._store.uri)
            remembered = {**found, "replaced_at": self._store.now(), "replaced_by": self._run.digest}
            self._known.write(json.dumps(remembered))
        self._refuse_earlier_run(remembered)

    def compare(self) -> Literal["known", "unknown", "new"]:
        """Compare the identity of the root with Airflow's copy. Writes nothing.

        :returns: ``new``: the root has no identity yet; it gets one before the first purchase. ``unknown``: Airflow has
            no copy yet; the next purchase makes one.
        :raises LedgerError: they differ, or only Airflow has one.
        """
        text, blob = self._known.read(), self._store.read(ROOT_KEY)
        found = None if blob is None else self._identity(blob)
        if text is not None:
            remembered = _parsed(text, f"Airflow's Variable {self._known.name!r}")
            if found is None:
                self._refuse_missing(remembered)
            else:
                self._is_successor(found, remembered)
        return "new" if found is None else "unknown" if text is None else "known"

    def _is_successor(self, found: Mapping[str, Any], remembered: Mapping[str, Any]) -> bool:
        """Return whether the ledger replaced the remembered one; refuse any other one."""
        if found["id"] == remembered["id"]:
            return False
        if found.get("replaces") != remembered["id"]:
            raise self._refusal(
                f"The ledger under {self._store.uri} is not the one that this Airflow used there before: workers "
                "do not share it, or it was replaced."
            )
        return True

    def _refuse_missing(self, remembered: Mapping[str, Any]) -> None:
        """Refuse a root without an identity to a later attempt, and on the local disk of another host.

        Records under the root prove nothing: tasks that buy nothing may have written them since.
        """
        where, here = remembered.get("host"), socket.gethostname()
        if not self._first_attempt or (self._store.uri.startswith("file:") and where != here):
            raise self._refusal(
                f"There is no {ROOT_KEY} under {self._store.uri} on host {here}, but this Airflow used a ledger there "
                f"before, on host {where}: workers do not share it, or it was moved away or emptied."
            )

    def _refuse_earlier_run(self, remembered: Mapping[str, Any]) -> None:
        """Refuse a later attempt of a run that began before a new ledger was started."""
        replaced_at = remembered.get("replaced_at")
        if self._first_attempt or replaced_at is None or remembered.get("replaced_by") == self._run.digest:
            return
        if not isinstance(replaced_at, (int, float)) or self._run.since < replaced_at:
            raise self._refusal(
                f"The ledger under {self._store.uri} was started anew after this DAG run had begun: the records of "
                "earlier attempts are not in it."
            )

    def _created(self, **more: str) -> Mapping[str, Any]:
        """The identity of the root; a new one unless another attempt was first.

        :param more: ``replaces``: the id of the ledger before.
        """
        wanted = {
            "version": 1,
            "id": secrets.token_hex(16),
            "host": socket.gethostname(),
            "root": self._store.uri,
            **more,
        }
        created = create_or_read(self._store, ROOT_KEY, json.dumps(wanted).encode())
        if created.ours and self._namespace is not None:
            self._mark_complete(self._namespace)
        return self._identity(created.blob)

    def _mark_complete(self, namespace: str) -> None:
        with contextlib.suppress(StorageError):  # without the marker all records are read
            if encode_segment(namespace) not in self._store.folders(LEDGER):
                mark_complete(self._store, namespace, root_of(self._store))

    def _identity(self, blob: Blob) -> Mapping[str, Any]:
        return _parsed(blob.data.decode(errors="replace"), f"{ROOT_KEY} under {self._store.uri}")

    def _refusal(self, what: str) -> LedgerError:
        return LedgerError(what, hint=_SHARE + _ON_PURPOSE.format(name=self._known.name))


def _parsed(text: str, where: str) -> Mapping[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("id"), str) or not values["id"]:
        raise LedgerError(
            f"{where} can't be read, so it is not known whether this is the ledger of earlier attempts.",
            hint="Nothing was sent by this attempt. Restore it.",
        )
    return values
