"""The interface of a bucket: what a cloud's client has to offer for the ledger and for users' files.

One module for each kind of store implements it. `BucketStore` and `BucketFiles` are written for it only.

Invariants: every failure of a client is a `StorageError`. "Absent" is returned only if the store confirms it; a refusal
and a missing bucket are failures. A client may repeat a request whose answer was lost, and then its own success looks
like "condition not met": so after ``None`` from a conditional write, the caller reads the object before it assumes
another writer.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from airflow_provider_geminiimg.core.storage.base import Blob, ClientFactory
from airflow_provider_geminiimg.exceptions import GeminiImageError, StorageError

NO_OBJECT = "*"
"""As the condition of a write: there is no object yet."""
_STRANGE = (
    "Check the endpoint of {bucket}, proxies on the way, and the version of the store's client. A retry asks again."
)
_DELETES = 16  # concurrent requests where a store has none for several objects


@dataclass(frozen=True)
class PutMode:
    """The features that a put uses.

    :param checksum: the store compares a checksum; otherwise the bytes are compared after the write.
    :param media_type: the store keeps the content type.
    :param condition: the store refuses an existing name; otherwise the name is checked before the write.
    """

    checksum: bool = True
    media_type: bool = True
    condition: bool = True


FULL = PutMode()


class Driver(abc.ABC):
    """The objects of one bucket. The methods block, and may be called by several threads.

    :param factory: returns the client.
    :param conn_id: of the Airflow connection; ``None``: the machine's own credentials.
    :param bucket: name of the bucket.
    """

    scheme: ClassVar[str]
    modes: Sequence[PutMode] = (FULL,)
    """What a put can do without, in the order in which it is tried."""

    def __init__(self, factory: ClientFactory, conn_id: str | None, bucket: str) -> None:
        self._factory, self._conn_id, self.bucket = factory, conn_id, bucket

    @abc.abstractmethod
    def put(
        self,
        key: str,
        data: bytes,
        media_type: str,
        digest: str,
        *,
        condition: str | None = None,
        mode: PutMode = FULL,
    ) -> str | None:
        """Write one complete object; return its version, or ``None`` if the condition is not met.

        :param digest: hex SHA-256 of `data`. A store that does not know it compares another checksum.
        :param condition: the version that must be stored, or `NO_OBJECT`. Default: no condition.
        :param mode: features of the store to use. Default: all.
        """

    @abc.abstractmethod
    def get(self, key: str, limit: int | None = None) -> Blob | None:
        """Return an object with its bytes, or ``None`` if there is none.

        :param limit: maximum number of bytes; of a larger object, this number of bytes plus one is returned.
        """

    @abc.abstractmethod
    def version(self, key: str) -> str | None:
        """Return the version of an object, or ``None`` if there is none, or no bucket."""

    def exists(self, key: str) -> bool:
        """Return whether there is an object; ``False`` only if the store confirms it."""
        return self.version(key) is not None

    def stored_sha256(self, key: str) -> str | None:
        """Return the hex digest that the store has compared with an object's bytes; ``None`` if it keeps none."""
        return None

    def copy(self, source: str, key: str, *, bucket: str, version: str | None = None) -> bool:
        """Copy an object inside the store to a new one; return ``False`` if the store can't, or if that name is taken.

        Some stores ignore that the name is taken: see `BucketFiles`. Google's and Azure's keep no SHA-256 with which a
        copy could be compared.

        :param source: its key.
        :param bucket: its bucket.
        :param version: that it must have. Default: any.
        """
        return False

    def beside(self, bucket: str) -> Driver:
        """Return the driver of another bucket of the same store and connection."""
        return type(self)(self._factory, self._conn_id, bucket)

    @abc.abstractmethod
    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        """Iterate over the keys that begin with `prefix`.

        :param after: only keys that follow this one.
        """

    @abc.abstractmethod
    def folders(self, prefix: str) -> list[str]:
        """Return what the keys that begin with `prefix` have between it and the next slash; those without one are
        left out."""

    @abc.abstractmethod
    def delete(self, key: str, version: str | None = None) -> bool:
        """Remove an object; return ``False`` if it has another version than the given one.

        It is no error if it does not exist.
        """

    def delete_some(self, keys: Sequence[str]) -> None:
        """Remove objects; none of them has to exist."""
        with ThreadPoolExecutor(_DELETES) as pool:
            for _ in pool.map(self.delete, keys):
                pass

    @abc.abstractmethod
    def now(self, prefix: str) -> float:
        """Return Unix seconds by the store's clock.

        :param prefix: below which the caller may list objects.
        """

    def is_refusal(self, error: StorageError) -> bool:
        """Return whether the store refuses an operation, and might accept it with another `PutMode`."""
        return False

    def _client(self) -> Any:
        try:
            return self._factory(self._conn_id)
        except GeminiImageError:
            raise
        except Exception as error:
            name = f"the connection {self._conn_id!r}" if self._conn_id else "the machine's own credentials"
            raise StorageError(
                f"No client for {self.scheme}://{self.bucket} could be made from {name}: {type(error).__name__}.",
                hint="Give the worker credentials, or name an Airflow connection that has them: "
                f"{self.scheme}://conn_id@{self.bucket}/folder.",
            ) from error

    def _strange(self, doing: str, key: str | None, error: Exception | None = None) -> StorageError:
        """Return the error for an answer that is not the store's, perhaps that of a proxy.

        :param error: of the client, which fails in all kinds of ways on such an answer.
        """
        why = f"the client reports {type(error).__name__}" if error else "the answer is not one of this kind of store"
        return self._failed(doing, key, why, may_pass=True, hint=_STRANGE)

    def _failed(self, doing: str, key: str | None, why: str, *, may_pass: bool, hint: str) -> StorageError:
        """Return the error for a failed request.

        :param hint: what to do; ``{bucket}`` stands for the bucket. Empty: the usual.
        """
        return StorageError(
            f"{doing} {self.scheme}://{self.bucket}/{key or ''} failed: {why}.",
            retryable=may_pass,
            hint=(hint or "Check the bucket {bucket} and the worker's network.").format(bucket=self.bucket),
        )
