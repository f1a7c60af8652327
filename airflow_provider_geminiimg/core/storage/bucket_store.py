"""The ledger's objects under a prefix of a bucket."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from airflow_provider_geminiimg.core.storage.base import Blob, Store, checked_key, sha256
from airflow_provider_geminiimg.core.storage.drivers import NO_OBJECT, Driver
from airflow_provider_geminiimg.core.storage.uris import locate
from airflow_provider_geminiimg.exceptions import StorageError

MAX_KEY = 1024  # bytes; the limit of S3, of Google Cloud Storage, and (in characters) of Azure
_DELETED_AT_ONCE = 1000  # the limit of S3's DeleteObjects
_JSON = "application/json"


class BucketStore(Store):
    """A prefix of a bucket with conditional writes.

    :param uri: ``scheme://bucket/prefix`` or ``scheme://conn_id@bucket/prefix``.
    :param driver: of the bucket.
    """

    def __init__(self, uri: str, driver: Driver) -> None:
        prefix = locate(uri).path.strip("/")
        super().__init__(uri.rstrip("/"))
        self._prefix = f"{prefix}/" if prefix else ""
        self._driver = driver

    def create(self, key: str, data: bytes) -> str | None:
        # Thumbnails are WebP; all other objects except spooled images are JSON.
        media_type = "image/webp" if key.endswith(".webp") else _JSON
        return self._driver.put(self._key(key), data, media_type, sha256(data), condition=NO_OBJECT)

    def read(self, key: str, limit: int | None = None) -> Blob | None:
        return self._driver.get(self._key(key), limit)

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        return self._driver.put(self._key(key), data, _JSON, sha256(data), condition=version)

    def delete(self, key: str) -> None:
        self._driver.delete(self._key(key))

    def delete_all(self, keys: Iterable[str]) -> None:
        rest = map(self._key, keys)
        while some := list(itertools.islice(rest, _DELETED_AT_ONCE)):
            self._driver.delete_some(some)

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        found = self._driver.keys(self._prefix + prefix, self._prefix + after if after else "")
        return (key[len(self._prefix) :] for key in found)

    def folders(self, folder: str) -> list[str]:
        return sorted(self._driver.folders(f"{self._key(folder)}/"))

    def now(self) -> float:
        return self._driver.now(self._prefix)

    def check_key(self, key: str) -> None:
        self._key(key)

    def _key(self, key: str) -> str:
        whole = self._prefix + checked_key(key)
        if len(whole.encode()) > MAX_KEY:
            raise StorageError(
                f"{self.uri} can't hold {key}: the name of an object has {MAX_KEY} bytes at most, prefix included.",
                retryable=False,
                hint="Shorten the prefix of [geminiimg] root, the namespace, or the ids of DAG, run and task.",
            )
        return whole
