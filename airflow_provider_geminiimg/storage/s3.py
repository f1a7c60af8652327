"""S3, by boto3: conditional writes and bounded calls.

What must stay true: a 403 on reading is a failure, never "absent"; bodies go to botocore as streams, because it logs
plain `bytes` at DEBUG. botocore repeats a request whose answer was lost, and then our own success comes back as
"taken": whoever gets ``None`` from a conditional write reads the object before believing that somebody else won.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import io
import os
import random
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, StorageError
from airflow_provider_geminiimg.storage.base import (
    Backend,
    Blob,
    Content,
    S3ClientFactory,
    Store,
    checked_key,
    pieces,
    sha256,
)
from airflow_provider_geminiimg.storage.uris import Location, locate

_CONFLICT_TRIES = 5
_JSON = "application/json"

_TAKEN = {"PreconditionFailed", "412"}
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_BUSY = {"ConditionalRequestConflict", "OperationAborted"}
_REFUSED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_HINTS = {
    "NoSuchBucket": "Create the bucket {bucket}, or correct its name.",
    "NoCredentialsError": "Give the worker AWS credentials, or name an Airflow connection: s3://conn_id@bucket/key.",
    **dict.fromkeys(_REFUSED, "Grant the worker's AWS identity s3:GetObject, s3:PutObject, s3:ListBucket on {bucket}."),
}


class _ConflictError(StorageError):
    """Another conditional write was under way; asking again settles it."""


class S3Calls:
    """Calls on one bucket's objects; every failure of boto3 comes out as a `StorageError`."""

    def __init__(self, factory: S3ClientFactory, conn_id: str | None, bucket: str) -> None:
        self._factory, self._conn_id, self.bucket = factory, conn_id, bucket

    def call(self, operation: str, key: str | None, *, unless: Collection[str] = (), **arguments: Any) -> Any:
        """Call `operation` of the client; ``None`` where it fails with a code of `unless`."""
        from botocore.exceptions import BotoCoreError, ClientError

        if key is not None:
            arguments["Key"] = key
        try:
            return getattr(self._client(), operation)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in unless:
                return None
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            kind = _ConflictError if code in _BUSY else StorageError
            raise self._failed(operation, key, f"{code} (HTTP {status})", code, kind) from error
        except (BotoCoreError, OSError) as error:
            name = type(error).__name__
            raise self._failed(operation, key, name, name) from error

    def put(self, key: str, data: bytes, media_type: str, **condition: str) -> Any:
        """Write one object whole; ``None`` where the condition does not hold."""
        unmet = _TAKEN | (_ABSENT if "IfMatch" in condition else set())
        arguments: dict[str, str] = {
            "ContentType": media_type,
            "ChecksumAlgorithm": "SHA256",
            "ChecksumSHA256": base64.b64encode(hashlib.sha256(data).digest()).decode(),
            **condition,
        }
        for attempt in range(1, _CONFLICT_TRIES + 1):
            try:
                return self.call("put_object", key, unless=unmet, Body=io.BytesIO(data), **arguments)
            except _ConflictError:
                if attempt == _CONFLICT_TRIES:
                    raise
                time.sleep(random.uniform(0.05, 0.2) * attempt)
        raise AssertionError("unreachable")

    def body(self, key: str, found: Any, limit: int | None = None) -> bytes:
        """The body of a `get_object`, at most `limit` + 1 bytes of it."""
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        try:
            with contextlib.closing(found["Body"]) as stream:
                return bytes(stream.read() if limit is None else stream.read(limit + 1))
        except (BotoCoreError, HTTPError, OSError) as error:
            raise self._failed("get_object", key, type(error).__name__) from error

    def pages(self, **wanted: str) -> Iterator[Any]:
        """The answers of a listing, one after the other."""
        while True:
            page = self.call("list_objects_v2", None, **wanted)
            yield page
            if not page.get("IsTruncated"):
                return
            wanted["ContinuationToken"] = page["NextContinuationToken"]

    def _client(self) -> Any:
        try:
            return self._factory(self._conn_id)
        except GeminiImageError:
            raise
        except Exception as error:
            name = f"the connection {self._conn_id!r}" if self._conn_id else "boto3's own credentials"
            raise StorageError(f"No S3 client could be made from {name}: {type(error).__name__}.") from error

    def _failed(
        self, operation: str, key: str | None, why: str, code: str = "", kind: type[StorageError] = StorageError
    ) -> StorageError:
        return kind(
            f"{operation} on s3://{self.bucket}/{key or ''} failed: {why}.",
            retryable=code not in _HINTS,
            hint=_HINTS.get(code, "Check the bucket and the worker's network.").format(bucket=self.bucket),
        )


def _age(found: Any) -> float:
    """Seconds between an object's last change and the store's own clock, which dates every answer."""
    return max(0.0, _dated(found) - float(found["LastModified"].timestamp()))


def _dated(answer: Any) -> float:
    dated = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    return email.utils.parsedate_to_datetime(dated).timestamp() if dated else time.time()


class S3Store(Store):
    """A prefix of a bucket with conditional writes.

    :param uri: ``s3://bucket/prefix`` or ``s3://conn_id@bucket/prefix``.
    :param s3_client: gives the client; asked at every call, so it should keep what it made.
    """

    def __init__(self, uri: str, s3_client: S3ClientFactory) -> None:
        place = locate(uri)
        prefix = place.path.strip("/")
        super().__init__(uri.rstrip("/"))
        self._prefix = f"{prefix}/" if prefix else ""
        self._s3 = S3Calls(s3_client, place.conn_id, place.bucket)

    def create(self, key: str, data: bytes) -> str | None:
        media_type = "image/webp" if key.endswith(".webp") else _JSON  # a thumbnail; all else but spool is JSON
        done = self._s3.put(self._key(key), data, media_type, IfNoneMatch="*")
        return None if done is None else str(done["ETag"])

    def read(self, key: str) -> Blob | None:
        key = self._key(key)
        found = self._s3.call("get_object", key, unless={"NoSuchKey"})
        return None if found is None else Blob(self._s3.body(key, found), str(found["ETag"]), _age(found))

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        done = self._s3.put(self._key(key), data, _JSON, IfMatch=version)
        return None if done is None else str(done["ETag"])

    def delete(self, key: str) -> None:
        self._s3.call("delete_object", self._key(key), unless={"NoSuchKey"})

    def keys(self, prefix: str) -> Iterator[str]:
        for page in self._s3.pages(Prefix=self._prefix + prefix):
            yield from (entry["Key"][len(self._prefix) :] for entry in page.get("Contents", ()))

    def folders(self, folder: str) -> list[str]:
        start = f"{self._key(folder)}/"
        pages = self._s3.pages(Prefix=start, Delimiter="/")
        found = (entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ()))
        return sorted(prefix[len(start) :].rstrip("/") for prefix in found)

    def now(self) -> float:
        return _dated(self._s3.call("list_objects_v2", None, Prefix=self._prefix, MaxKeys=1))

    def _key(self, key: str) -> str:
        return self._prefix + checked_key(key)


_CLIENTS: dict[tuple[int, str | None], Any] = {}
_CLIENTS_LOCK = threading.Lock()


def default_s3_client(conn_id: str | None) -> Any:
    """A boto3 S3 client, made once per process and connection. `AWS_ENDPOINT_URL` and the like are honoured.

    One that found no credentials never finds any, so it is not kept.

    :param conn_id: an Airflow AWS connection, opened by the amazon provider with that connection's own settings;
        ``None``: boto3's own chain, 10 s to connect, 60 s for an answer, standard retries.
    :raises BadRequestError: the connection does not exist, or the amazon provider is not installed.
    """
    slot = (os.getpid(), conn_id)  # sockets must not be shared with a forked process
    with _CLIENTS_LOCK:
        client = _CLIENTS.get(slot)
        if client is None:
            client, has_credentials = _plain_client() if conn_id is None else (_airflow_client(conn_id), True)
            if has_credentials:
                _CLIENTS[slot] = client
        return client


def _plain_client() -> tuple[Any, bool]:
    """A client, and whether it has credentials."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard"}, max_pool_connections=32)
    session = boto3.session.Session()
    return session.client("s3", config=config), session.get_credentials() is not None


def _airflow_client(conn_id: str) -> Any:
    try:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    except ImportError as error:
        raise BadRequestError(
            f"s3://{conn_id}@… names an Airflow connection, which needs the amazon provider; it is not installed.",
            hint="pip install apache-airflow-providers-amazon, or leave the connection out of the URI.",
        ) from error
    from airflow.providers.common.compat.sdk import AirflowNotFoundException

    hook = S3Hook(aws_conn_id=conn_id)
    try:
        hook.get_connection(conn_id)  # S3Hook itself would go on with another identity
    except AirflowNotFoundException as error:
        raise BadRequestError(f"s3://{conn_id}@… names the Airflow connection {conn_id!r}: there is none.") from error
    return hook.get_conn()


class S3Files(Backend):
    """Users' files in a bucket."""

    def __init__(self, s3: S3Calls) -> None:
        self._s3 = s3

    def read(self, place: Location, max_bytes: int) -> bytes | None:
        found = self._s3.call("get_object", place.path, unless={"NoSuchKey"})
        return None if found is None else self._s3.body(place.path, found, max_bytes)

    def create(self, place: Location, data: bytes, media_type: str) -> bool:
        return self._s3.put(place.path, data, media_type, IfNoneMatch="*") is not None

    def sha256(self, place: Location) -> str | None:
        found = self._s3.call("head_object", place.path, unless=_ABSENT, ChecksumMode="ENABLED")
        stored = (found or {}).get("ChecksumSHA256", "")
        if stored and "-" not in stored:  # with a dash it is a checksum of the checksums of parts
            return base64.b64decode(stored).hex()
        found = self._s3.call("get_object", place.path, unless={"NoSuchKey"})
        return None if found is None else sha256(self._s3.body(place.path, found))

    def put(self, place: Location, content: Content, media_type: str) -> None:
        self._s3.put(place.path, b"".join(pieces(content)), media_type)

    def exists(self, place: Location) -> bool:
        if self._s3.call("head_object", place.path, unless=_ABSENT) is not None:
            return True
        # The 404 of a HEAD has no body that would tell a missing object from a missing bucket.
        return self._s3.call("get_object", place.path, unless={"NoSuchKey"}) is not None

    def there(self, places: Sequence[Location]) -> list[Location]:
        """One listing instead of two requests for each; who may not list asks for each."""
        prefix = os.path.commonprefix([place.path for place in places])  # noqa: RUF071 - keys are no paths
        try:
            known = {entry["Key"] for page in self._s3.pages(Prefix=prefix) for entry in page.get("Contents", ())}
        except StorageError:
            return super().there(places)
        return [place for place in places if place.path in known]

    def try_writing(self, place: Location) -> None:
        upload = self._s3.call("create_multipart_upload", place.path)
        with contextlib.suppress(StorageError):
            self._s3.call("abort_multipart_upload", place.path, UploadId=upload["UploadId"])
