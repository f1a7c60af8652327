"""S3 through boto3, with conditional writes.

Invariants: a 403 while reading is a failure, never "absent". Bodies are passed to botocore as streams, because it logs
plain `bytes` at DEBUG. botocore repeats a request whose answer was lost, and then our own success looks like "taken":
after ``None`` from a conditional write, the caller reads the object before it assumes another writer.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import email.utils
import io
import itertools
import random
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from airflow_provider_geminiimg.core.storage.base import Blob, S3ClientFactory, Store, checked_key, sha256
from airflow_provider_geminiimg.core.storage.uris import locate
from airflow_provider_geminiimg.exceptions import GeminiImageError, StorageError

_CONFLICT_TRIES = 5
_DELETED_AT_ONCE = 1000  # the limit of DeleteObjects
_MAX_KEY = 1024  # bytes
_CHECKSUM = "x-amz-checksum-sha256"
_JSON = "application/json"

TAKEN = {"PreconditionFailed", "412"}
ABSENT = {"NoSuchKey", "404", "NotFound"}
_BUSY = {"ConditionalRequestConflict", "OperationAborted"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_MAY_PASS = {"RequestTimeout", "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}  # temporary, HTTP 400
_MAY_PASS_STATUSES = {408, 409, 425, 429}
_NEVER_PASSES = {501, 505}  # permanent ones among the statuses from 500 on
_TOO_LARGE = {"EntityTooLarge", "413"}
_NO_SUCH_BUCKET = {"NoSuchBucket", "InvalidBucketName"}
_NO_NAME = {  # invalid bucket name, region or endpoint; the keys of this package are always valid
    *("ParamValidationError", "EndpointProviderError", "EndpointResolutionError", "InvalidRegionError"),
    *("UnsupportedS3ArnError", "UnsupportedS3ConfigurationError", "UnsupportedS3AccesspointConfigurationError"),
}

_GRANT = "Grant the worker's AWS identity s3:GetObject, s3:PutObject, s3:ListBucket on {bucket}."
_REGION = "Set the region and the endpoint that the bucket {bucket} belongs to."
_HINTS = {
    **dict.fromkeys(_NO_SUCH_BUCKET, "Create the bucket {bucket}, or correct its name."),
    **dict.fromkeys(
        _NO_NAME,
        "Correct the name, region and endpoint of the bucket {bucket}. Write an access point with colons only: "
        "s3://arn:aws:s3:region:account:accesspoint:name/key.",
    ),
    **dict.fromkeys(
        _NO_CREDENTIALS, "Give the worker AWS credentials, or name an Airflow connection: s3://conn_id@bucket/key."
    ),
    **dict.fromkeys(_DENIED, _GRANT),
    **dict.fromkeys(
        _TOO_LARGE, "Raise the maximum object size of the store of {bucket}, and of any proxy in front of it."
    ),
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed", "301", "307"), _REGION),
}
_STATUS_HINTS = {
    401: _GRANT,
    403: _GRANT,
    **dict.fromkeys(
        (400, 405, 411, 415, 501), "The store of {bucket} does not support this S3 operation. Use another store."
    ),
}
_REFUSALS = {400, 403, 405, 411, 415, 501}
"""HTTP statuses with which a store may refuse a single header of a request."""


class _ConflictError(StorageError):
    """Another conditional write is in progress; a repetition gives a clear result."""


_PLAINLY: contextvars.ContextVar[bool] = contextvars.ContextVar("plainly", default=False)


def _ask_for_no_checksums(context: Any, **_: Any) -> None:
    """Prevent botocore from adding checksum headers to a call inside `plainly`."""
    from botocore.config import Config

    if _PLAINLY.get():
        less = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
        context["client_config"] = context["client_config"].merge(less)


def _name_checksum(request: Any, **_: Any) -> None:
    """Tell botocore which header has the checksum of the body. The signature covers this header, so that over TLS
    botocore does not hash the body once more for the signature.
    """
    if _CHECKSUM in request.headers:
        request.context["checksum"] = {"request_algorithm": {"in": "header", "name": _CHECKSUM}}


class S3Calls:
    """Calls for the objects of one bucket. Every failure of boto3 becomes a `StorageError`."""

    def __init__(self, factory: S3ClientFactory, conn_id: str | None, bucket: str) -> None:
        self._factory, self._conn_id, self.bucket = factory, conn_id, bucket

    def call(
        self,
        operation: str,
        key: str | None,
        *,
        unless: Collection[str] = (),
        bucket: str | None = None,
        **arguments: Any,
    ) -> Any:
        """Call `operation` of the client; return ``None`` if it fails with a code of `unless`.

        :param bucket: default: this bucket.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        if key is not None:
            arguments["Key"] = key
        try:
            return getattr(self._client(), operation)(Bucket=bucket or self.bucket, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in unless:
                return None
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
            raise self._failed(operation, key, f"{code} (HTTP {status})", code, status) from error
        except (BotoCoreError, OSError) as error:
            name = type(error).__name__
            raise self._failed(operation, key, name, name) from error

    @contextlib.contextmanager
    def plainly(self) -> Iterator[None]:
        """Context manager for calls without any checksum header, for a store that refuses them."""
        events = self._client().meta.events
        events.register_first("before-parameter-build.s3", _ask_for_no_checksums, unique_id="geminiimg-plainly")
        token = _PLAINLY.set(True)
        try:
            yield
        finally:
            _PLAINLY.reset(token)

    def get(self, key: str) -> Any:
        """Call `get_object`; ``None`` if the object does not exist. Repeats it without checksum headers if they are
        refused.
        """
        try:
            return self.call("get_object", key, unless={"NoSuchKey"})
        except StorageError as refusal:
            if not is_refusal(refusal):
                raise
            with self.plainly(), contextlib.suppress(StorageError):
                return self.call("get_object", key, unless={"NoSuchKey"})
            raise

    def put(self, key: str, data: bytes, media_type: str | None, digest: str | None, **condition: str) -> Any:
        """Write one complete object; ``None`` if the condition is not met.

        :param digest: hex SHA-256 of `data`, which the store compares; ``None``: no checksum is sent.
        """
        unmet = TAKEN | (ABSENT if "IfMatch" in condition else set())
        arguments: dict[str, str] = {} if media_type is None else {"ContentType": media_type}
        if digest is not None:
            arguments["ChecksumAlgorithm"] = "SHA256"
            arguments["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(digest)).decode()
            self._client().meta.events.register("before-sign.s3.PutObject", _name_checksum, unique_id=_CHECKSUM)
        with contextlib.nullcontext() if digest is not None else self.plainly():
            return self._put(key, data, unmet, {**arguments, **condition})

    def _put(self, key: str, data: bytes, unmet: set[str], arguments: dict[str, str]) -> Any:
        for attempt in range(1, _CONFLICT_TRIES + 1):
            try:
                return self.call("put_object", key, unless=unmet, Body=io.BytesIO(data), **arguments)
            except _ConflictError:
                if attempt == _CONFLICT_TRIES:
                    raise
                time.sleep(random.uniform(0.05, 0.2) * attempt)
        raise AssertionError("unreachable")

    def body(self, key: str, found: Any, limit: int | None = None) -> bytes:
        """Return the body of a `get_object`, at most `limit` + 1 bytes of it."""
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        try:
            with contextlib.closing(found["Body"]) as stream:
                return bytes(stream.read() if limit is None else stream.read(limit + 1))
        except (BotoCoreError, HTTPError, OSError) as error:
            raise self._failed("get_object", key, type(error).__name__) from error

    def delete(self, key: str) -> None:
        """Remove one object, whether it exists or not."""
        self.call("delete_object", key, unless={"NoSuchKey"})

    def delete_some(self, keys: Sequence[str]) -> None:
        """Remove at most `_DELETED_AT_ONCE` objects in one request; one by one if the store refuses that."""
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        try:
            errors = self.call("delete_objects", None, Delete=wanted).get("Errors", ())
        except StorageError as refusal:
            if not is_refusal(refusal):
                raise
            errors = [{"Key": key} for key in keys]
        for key in (error["Key"] for error in errors):  # alone, each gets an error of its own
            self.delete(key)

    def pages(self, **wanted: str) -> Iterator[Any]:
        """Iterate over the answers of a listing."""
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

    def _failed(self, operation: str, key: str | None, why: str, code: str = "", status: int = 0) -> StorageError:
        """Return the error for a failed call; a status of 0 means that there was no answer."""
        may_pass = code in _BUSY or _may_pass(code, status)
        kind = _ConflictError if code in _BUSY else StorageError
        usual = "Check the bucket and the worker's network."
        hint = usual if may_pass else _HINTS.get(code) or _STATUS_HINTS.get(status, usual)
        return kind(
            f"{operation} on s3://{self.bucket}/{key or ''} failed: {why}.",
            retryable=may_pass,
            hint=hint.format(bucket=self.bucket),
        )


def is_refusal(error: StorageError) -> bool:
    """Return whether a store refuses an operation, and might accept it without some of its headers."""
    answer = getattr(error.__cause__, "response", None) or {}  # botocore's time-outs have one that is None
    status, code = answer.get("ResponseMetadata", {}).get("HTTPStatusCode"), answer.get("Error", {}).get("Code")
    return not error.retryable and status in _REFUSALS and code not in _TOO_LARGE | _NO_SUCH_BUCKET


def _may_pass(code: str, status: int) -> bool:
    """Return whether a repetition can help."""
    if code in _MAY_PASS or status in _MAY_PASS_STATUSES:
        return True
    return code not in _HINTS and (status == 0 or (status >= 500 and status not in _NEVER_PASSES))


def _age(found: Any) -> float:
    """Return the seconds between an object's last change and the store's clock, which is in every answer."""
    return max(0.0, _dated(found) - float(found["LastModified"].timestamp()))


def _dated(answer: Any) -> float:
    dated = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    return email.utils.parsedate_to_datetime(dated).timestamp() if dated else time.time()


class S3Store(Store):
    """A prefix of a bucket with conditional writes.

    :param uri: ``s3://bucket/prefix`` or ``s3://conn_id@bucket/prefix``.
    :param s3_client: returns the client; called for every request, so it should cache the client.
    """

    def __init__(self, uri: str, s3_client: S3ClientFactory) -> None:
        place = locate(uri)
        prefix = place.path.strip("/")
        super().__init__(uri.rstrip("/"))
        self._prefix = f"{prefix}/" if prefix else ""
        self._s3 = S3Calls(s3_client, place.conn_id, place.bucket)

    def create(self, key: str, data: bytes) -> str | None:
        media_type = (
            "image/webp" if key.endswith(".webp") else _JSON
        )  # thumbnails are WebP; all other objects except spooled images are JSON
        done = self._s3.put(self._key(key), data, media_type, sha256(data), IfNoneMatch="*")
        return None if done is None else str(done["ETag"])

    def read(self, key: str, limit: int | None = None) -> Blob | None:
        key = self._key(key)
        found = self._s3.call("get_object", key, unless={"NoSuchKey"})
        return None if found is None else Blob(self._s3.body(key, found, limit), str(found["ETag"]), _age(found))

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        done = self._s3.put(self._key(key), data, _JSON, sha256(data), IfMatch=version)
        return None if done is None else str(done["ETag"])

    def delete(self, key: str) -> None:
        self._s3.delete(self._key(key))

    def delete_all(self, keys: Iterable[str]) -> None:
        rest = map(self._key, keys)
        while some := list(itertools.islice(rest, _DELETED_AT_ONCE)):
            self._s3.delete_some(some)

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        start = {"StartAfter": self._prefix + after} if after else {}
        for page in self._s3.pages(Prefix=self._prefix + prefix, **start):
            yield from (entry["Key"][len(self._prefix) :] for entry in page.get("Contents", ()))

    def folders(self, folder: str) -> list[str]:
        start = f"{self._key(folder)}/"
        pages = self._s3.pages(Prefix=start, Delimiter="/")
        found = (entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ()))
        return sorted(prefix[len(start) :].rstrip("/") for prefix in found)

    def now(self) -> float:
        return _dated(self._s3.call("list_objects_v2", None, Prefix=self._prefix, MaxKeys=1))

    def check_key(self, key: str) -> None:
        self._key(key)

    def _key(self, key: str) -> str:
        whole = self._prefix + checked_key(key)
        if len(whole.encode()) > _MAX_KEY:
            raise StorageError(
                f"{self.uri} can't hold {key}: the name of an object has {_MAX_KEY} bytes at most, prefix included.",
                retryable=False,
                hint="Shorten the prefix of [geminiimg] root, the namespace, or the ids of DAG, run and task.",
            )
        return whole
