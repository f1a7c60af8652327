"""The request or plan of the first attempt, saved in the store for retries.

Invariants: it is saved before money is spent. A retry uses it; only a Clear makes a new one. Its prompts are deleted as
soon as all images have landed; the rest says only that they have.
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
    """Base class of saved objects.

    :param told: the token of the task state store that has an entry for it; ``None``: Airflow has no task state store,
        or an earlier version of this package wrote the object.
    """

    model_config = pydantic.ConfigDict(frozen=True, hide_input_in_errors=True)

    version: Literal[1] = 1
    told: str | None = None


T = TypeVar("T", bound=Saved)


class SavedRequest(Saved):
    """The saved request of a decorated function.

    :param request: ``None`` after its image has landed.
    """

    request: ImageRequest | None = pydantic.Field(repr=False)


class SavedRequestStore(Generic[T]):
    """The saved objects of one task instance, one per generation.

    :param model: class of the objects.
    :param store: the store at the root.
    :param folder: folder in the store.
    :param item: the task instance.
    :param marker: its marker in Airflow's task state store, if there is one.
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
        """The object that an earlier attempt of this generation saved; ``None`` if there is none.

        :raises LedgerError: the task state store has an object that is missing, or the object can't be read.
        :raises StorageError: the store failed.
        """
        key = self._key(generation)
        known = self.marker.get() if self.marker is not None else None
        if known is not None:
            self._check_remembered(str(known.get("record")))
            if known.get("record") != key:
                return None  # an earlier Clear had this number, because `retries` was lowered; or there was no entry
        blob = self.store.read(key)
        if blob is None:
            return None
        saved = self._parse(key, blob.data)
        if self.marker is None or saved.told in (None, self.marker.token()):
            return saved
        if known is None:
            return None  # of a DAG run that was deleted and created again
        raise LedgerError(
            f"The plan {key} under {self.store.uri} was changed by another process: another Airflow seems to use the "
            "same root and namespace for a DAG of the same name.",
            hint="Nothing was sent. Give each Airflow its own [geminiimg] namespace (or root), then run the DAG "
            "with a new run id.",
        )

    def write(self, generation: int, wanted: T) -> None:
        """Save the object, before money is spent, and delete the objects of other generations: after `retries` was
        lowered, a Clear may get the number of an earlier generation again.

        :raises LedgerError: another attempt is saving at this moment.
        :raises StorageError: the store failed.
        """
        key = self._key(generation)
        self._put(key, self._with_token(wanted))
        if self.marker is not None:
            self.marker.set({"record": key})
        for folder in (RETURNED, PLANS):  # the task may have been a batch before, or the other way round
            for other in self._keys(f"{folder}/{self._place}"):
                if other != key:
                    self.store.delete(other)

    def _keys(self, folder: str) -> dict[str, int]:
        """The keys of saved objects in a folder, with their generations."""
        names = [(key, key.rpartition("/")[2]) for key in self.store.keys(f"{folder}/")]
        return {key: number for key, name in names if (number := generation_of(name)) is not None}

    def finish(self, generation: int, rest: T) -> None:
        """Delete the prompts, because all images have landed; also the objects of earlier generations.

        :param rest: the object without prompts, which tells a retry that nothing is left to do.
        :raises LedgerError: another attempt is saving at this moment.
        :raises StorageError: the store failed.
        """
        key = self._key(generation)
        with _all_landed():
            self._put(key, self._with_token(rest))
            if self.marker is not None:
                self.marker.set({"record": key, "finished": True})
            for earlier, number in self._keys(self.folder).items():
                if number < generation:
                    self.store.delete(earlier)

    def _check_remembered(self, key: str) -> None:
        """Refuse to continue if the object that an earlier attempt saved is missing."""
        if key.split("/")[1:2] != self.folder.split("/")[1:2]:
            raise other_namespace(f"the plan {key}", self.namespace)
        if self.store.read(key) is None:
            raise LedgerError(
                f"Airflow's task state has the plan {key} of an earlier attempt, but it is not under {self.store.uri}: "
                "workers do not share the ledger, the plan was removed, or another Airflow uses the same ledger.",
                hint="Nothing was sent. Set [geminiimg] root to storage that all workers share, and namespace to one "
                "that no other Airflow uses. If the plan was removed on purpose, a new DAG run buys the images.",
            )

    def _parse(self, key: str, data: bytes) -> T:
        try:
            return self.model.model_validate_json(data)
        except (pydantic.ValidationError, GeminiImageError):
            raise LedgerError(
                f"The plan {key} under {self.store.uri} can't be read.",
                hint="Nothing was sent. Restore it; or clear the task, which makes a new plan.",
            ) from None

    def _with_token(self, value: T) -> T:
        return value if self.marker is None else value.model_copy(update={"told": self.marker.token()})

    def _put(self, key: str, value: T) -> None:
        data = pydantic_core.to_json(value)  # directly to bytes: a plan may have megabytes
        asked = False

        def written(blob: Blob | None) -> bytes | None:
            nonlocal asked
            if blob is not None and blob.data == data:
                return None
            if asked:  # called a second time, so another process wrote in between
                raise LedgerError(
                    f"Another attempt is writing {key} at this moment.",
                    billed=Billed.NO,
                    hint="Nothing was sent. A retry continues.",
                )
            asked = True
            return data

        update(self.store, key, written)

    def _key(self, generation: int) -> str:
        return saved_key(self._kind, self._place, generation)


@contextlib.contextmanager
def _all_landed() -> Iterator[None]:
    """Mark errors in the block as paid: all images have landed before."""
    try:
        yield
    except GeminiImageError as error:
        hint = "Every image has landed. A retry returns them, at no cost."
        raise error.evolve(billed=Billed.YES, hint=hint) from error.__cause__
