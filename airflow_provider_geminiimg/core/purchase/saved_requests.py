"""What the first attempt of a task wanted, kept in the store so that a retry wants the same.

What must stay true: it is in the store before anything of it is paid for; a retry takes it and asks nobody again, and
only a Clear asks anew; the prompts in it go as soon as all of it has landed, what remains says only that it has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Generic, Literal, TypeVar

import pydantic
import pydantic_core

from airflow_provider_geminiimg.core.ledger.layout import PLANS, RETURNED, Item, generation_of, saved_key
from airflow_provider_geminiimg.core.purchase.order import Marker
from airflow_provider_geminiimg.core.purchase.task_state import other_namespace
from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.storage import Blob, Store, update
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, LedgerError


class Saved(pydantic.BaseModel):
    """What can be kept.

    :param told: the token of the task state store that is told of it; ``None``: Airflow has no such store, or a
        version of this package wrote it that did not note it.
    """

    model_config = pydantic.ConfigDict(frozen=True, hide_input_in_errors=True)

    version: Literal[1] = 1
    told: str | None = None


T = TypeVar("T", bound=Saved)


class SavedRequest(Saved):
    """What a function asked for, as the store keeps it.

    :param request: ``None``: it has landed, and the prompt is forgotten.
    """

    request: ImageRequest | None = pydantic.Field(repr=False)


class SavedRequestStore(Generic[T]):
    """What one task instance wants, one a generation.

    :param model: how it is written.
    :param store: the root's.
    :param folder: of the store, where such things lie.
    :param item: the task instance.
    :param marker: Airflow's own memory of it, where there is one.
    """

    def __init__(self, model: type[T], store: Store, folder: str, item: Item, marker: Marker | None) -> None:
        self.model = model
        self.store = store
        self.marker = marker
        self.namespace = item.namespace
        self._place = item.task_instance
        self._kind = folder
        self.folder = f"{folder}/{self._place}"

    def read(self, generation: int) -> T | None:
        """What an earlier attempt wanted, which this one keeps to; ``None``: this one says what it wants.

        :raises LedgerError: Airflow remembers something that is not there, or what is there can't be read.
        :raises StorageError: the store failed.
        """
        key = self._key(generation)
        known = self.marker.get() if self.marker is not None else None
        if known is not None:
            self._check_remembered(str(known.get("record")))
            if known.get("record") != key:
                return None  # of an earlier Clear with this number, as `retries` was lowered; or Airflow was not told
        blob = self.store.read(key)
        if blob is None:
            return None
        saved = self._parse(key, blob.data)
        if self.marker is None or saved.told in (None, self.marker.token()):
            return saved
        if known is None:
            return None  # of a DAG run that was deleted and made again
        raise LedgerError(
            f"The plan {key} under {self.store.uri} was written by somebody else since: another Airflow seems to "
            "use the same root and the same namespace for a DAG of the same name.",
            hint="Nothing was sent. Give each Airflow its own [geminiimg] namespace (or root), then run the DAG "
            "with a new run id.",
        )

    def write(self, generation: int, wanted: T) -> None:
        """Keep it, before anything of it is paid for, and nothing that was wanted before: a Clear after `retries` was
        lowered has the number of an earlier generation, and so may have the next one.

        :raises LedgerError: another attempt is doing so at this moment.
        :raises StorageError: the store failed.
        """
        key = self._key(generation)
        self._put(key, self._told(wanted))
        if self.marker is not None:
            self.marker.set({"record": key})
        for folder in (RETURNED, PLANS):  # a task may become a batch, and back
            for other in self._keys(f"{folder}/{self._place}"):
                if other != key:
                    self.store.delete(other)

    def _keys(self, folder: str) -> dict[str, int]:
        """Where something is kept in a folder, each with its generation."""
        names = [(key, key.rpartition("/")[2]) for key in self.store.keys(f"{folder}/")]
        return {key: number for key, name in names if (number := generation_of(name)) is not None}

    def finish(self, generation: int, rest: T) -> None:
        """Everything of it is in storage: forget the prompts, those of earlier generations too.

        :param rest: what remains, by which a retry knows that nothing is left to do.
        :raises LedgerError: another attempt is writing it at this moment.
        :raises StorageError: the store failed.
        """
        key = self._key(generation)
        with _all_landed():
            self._put(key, self._told(rest))
            if self.marker is not None:
                self.marker.set({"record": key, "finished": True})
            for earlier, number in self._keys(self.folder).items():
                if number < generation:
                    self.store.delete(earlier)

    def _check_remembered(self, key: str) -> None:
        """Refuse to go on without what an earlier attempt saved, finished or not."""
        if key.split("/")[1:2] != self.folder.split("/")[1:2]:
            raise other_namespace(f"the plan {key}", self.namespace)
        if self.store.read(key) is None:
            raise LedgerError(
                f"Airflow remembers the plan {key} of an earlier attempt, but it is not under {self.store.uri}: "
                "the ledger is not shared between workers, was removed, or is another Airflow's too.",
                hint="Nothing was sent. Set [geminiimg] root to storage that all workers share, and namespace to one "
                "that no other Airflow uses there. If it was removed on purpose, a new DAG run buys the images.",
            )

    def _parse(self, key: str, data: bytes) -> T:
        try:
            return self.model.model_validate_json(data)
        except (pydantic.ValidationError, GeminiImageError):
            raise LedgerError(
                f"The plan {key} under {self.store.uri} can't be read.",
                hint="Nothing was sent. Restore it; or clear the task, which plans anew.",
            ) from None

    def _told(self, value: T) -> T:
        return value if self.marker is None else value.model_copy(update={"told": self.marker.token()})

    def _put(self, key: str, value: T) -> None:
        data = pydantic_core.to_json(value)  # bytes at once: a plan has megabytes
        asked = False

        def written(blob: Blob | None) -> bytes | None:
            nonlocal asked
            if blob is not None and blob.data == data:
                return None
            if asked:  # again, so somebody else wrote in between
                raise LedgerError(
                    f"Another attempt is writing {key} at this moment.",
                    billed=Billed.NO,
                    hint="Nothing was sent. A retry goes on.",
                )
            asked = True
            return data

        update(self.store, key, written)

    def _key(self, generation: int) -> str:
        return saved_key(self._kind, self._place, generation)


@contextlib.contextmanager
def _all_landed() -> Iterator[None]:
    """What fails here fails after everything has landed, and says so."""
    try:
        yield
    except GeminiImageError as error:
        hint = "Every image has landed. A retry returns them, at no cost."
        raise error.evolve(billed=Billed.YES, hint=hint) from error.__cause__
