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
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_geminiimg.core.storage.base import Blob
from airflow_provider_geminiimg.core.storage.drivers import FULL, NO_OBJECT, Driver, PutMode
from airflow_provider_geminiimg.exceptions import GeminiImageError, StorageError

_CONFLICT_TRIES = 5
_CHECKSUM = "x-amz-checksum-sha256"
_AMAZON = ".amazonaws.com"

_TAKEN = {"PreconditionFailed", "412"}
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_BUSY = {"ConditionalRequestConflict", "OperationAborted"}  # another conditional write is in progress
_DAMAGED = {"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"}  # on the way; if each time, the store lacks it
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled"}
_UNKNOWN_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed"}
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
    **dict.fromkeys(_NO_SUCH_BUCKET, "Create the bucket {bucket} at {endpoint}, or correct its name or the endpoint."),
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
        _UNKNOWN_KEY,
        "Check the access key and the secret key, which {endpoint} does not accept for {bucket}, and the worker's "
        "clock. If they belong to another store, set its endpoint_url.",
    ),
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
_NO_ANSWER_HINTS = {
    **dict.fromkeys(
        ("EndpointConnectionError", "ConnectTimeoutError"),
        "Check the endpoint {endpoint} of the bucket {bucket}, and the worker's network.",
    ),
    "SSLError": "Check the certificate of {endpoint}. If its authority is your own, set verify in the connection's "
    "extra, or AWS_CA_BUNDLE, to the file with the authority's certificate.",
}
_REFUSALS = {400, 403, 405, 411, 415, 501}
"""HTTP statuses with which a store may refuse a single header of a request."""


_PLAINLY: contextvars.ContextVar[bool] = contextvars.ContextVar("plainly", default=False)


def _ask_for_no_checksums(context: Any, **_: Any) -> None:
    """Prevent botocore from adding checksum headers to a call inside `S3Driver._plainly`."""
    from botocore.config import Config

    if _PLAINLY.get():
        less = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
        context["client_config"] = context["client_config"].merge(less)


def _name_checksum(request: Any, **_: Any) -> None:
    """Tell botocore which header has the checksum of the body. The signature covers this header, so that over TLS
    botocore does not hash the body once more for the signature. Other stores than Amazon's may ignore the header, so
    that only the hash in the signature tells them when a body has changed.
    """
    if _CHECKSUM in request.headers and _AMAZON in urlsplit(request.url).netloc:
        request.context["checksum"] = {"request_algorithm": {"in": "header", "name": _CHECKSUM}}


class S3Driver(Driver):
    """One bucket of S3, or of a store that speaks its language. The client is one of boto3."""

    scheme = "s3"
    _quoted: bool | None = None
    """Whether the store accepts a version in quotes, as HTTP requires; ``None``: not known yet. Ceph refuses it."""

    modes = sorted(
        (PutMode(*asked) for asked in itertools.product((True, False), repeat=3)),
        key=lambda mode: (not mode.condition, [mode.checksum, mode.media_type].count(False), mode.checksum),
    )

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
        arguments: dict[str, str] = {"ContentType": media_type} if mode.media_type else {}
        if condition == NO_OBJECT:
            arguments["IfNoneMatch"] = NO_OBJECT
        if mode.checksum:
            arguments["ChecksumAlgorithm"] = "SHA256"
            arguments["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(digest)).decode()
            self._client().meta.events.register("before-sign.s3.PutObject", _name_checksum, unique_id=_CHECKSUM)
        with contextlib.nullcontext() if mode.checksum else self._plainly():
            if condition is None or condition == NO_OBJECT:
                done = self._put(key, data, **arguments)
            else:
                done = self._replace(key, data, condition, **arguments)
        return None if done is None else self._version_of("put_object", key, done)

    def _replace(self, key: str, data: bytes, version: str, **arguments: str) -> Any:
        """Write over a version. It is sent without quotes only after the store has refused it in quotes although it is
        the stored one: a store that knows quotes might take it for no condition.
        """
        known, bare = self._quoted, version.strip('"')
        done = self._put(key, data, **arguments, IfMatch=bare if known is False else version)
        if known is None and done is not None:
            self._quoted = True
        elif known is None and self.version(key) == version:
            done = self._put(key, data, **arguments, IfMatch=bare)
            self._quoted = self._quoted if done is None else False
        return done

    def _put(self, key: str, data: bytes, **arguments: str) -> Any:
        unmet = _TAKEN | (_ABSENT if "IfMatch" in arguments else set())
        for attempt in range(1, _CONFLICT_TRIES + 1):
            try:
                return self._call("put_object", key, unless=unmet, Body=io.BytesIO(data), **arguments)
            except StorageError as error:
                if attempt == _CONFLICT_TRIES or _answer_of(error)[0] not in _BUSY | _DAMAGED:
                    raise
                time.sleep(random.uniform(0.05, 0.2) * attempt)
        raise AssertionError("unreachable")

    def get(self, key: str, limit: int | None = None) -> Blob | None:
        found = self._get(key)
        if found is None:
            return None
        version = self._version_of("get_object", key, found)
        try:
            age = _age(found)
        except Exception as error:
            raise self._strange("get_object on", key, error) from error
        return Blob(self._body(key, found, limit), version, age)

    def _get(self, key: str) -> Any:
        """Call `get_object`; ``None`` if the object does not exist. Repeats it without checksum headers if they are
        refused.
        """
        try:
            return self._call("get_object", key, unless={"NoSuchKey"})
        except StorageError as refusal:
            if not self.is_refusal(refusal):
                raise
            with self._plainly(), contextlib.suppress(StorageError):
                return self._call("get_object", key, unless={"NoSuchKey"})
            raise

    def _body(self, key: str, found: Any, limit: int | None) -> bytes:
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        try:
            with contextlib.closing(found["Body"]) as stream:
                data = bytes(stream.read() if limit is None else stream.read(limit + 1))
        except (BotoCoreError, HTTPError, OSError) as error:
            raise self._error("get_object", key, type(error).__name__) from error
        # The client compares lengths and checksums only at the end of a body, which a part of a read does not reach.
        expected = int(found.get("ContentLength") or 0)
        if len(data) < (expected if limit is None else min(expected, limit + 1)):
            raise self._error("get_object", key, "the answer ended early")
        return data

    def version(self, key: str) -> str | None:
        found = self._call("head_object", key, unless=_ABSENT)
        return None if found is None else self._version_of("head_object", key, found)

    def _version_of(self, operation: str, key: str, answer: Any) -> str:
        version = str(answer.get("ETag") or "")
        if not version:
            raise self._strange(f"{operation} on", key)
        return version

    def exists(self, key: str) -> bool:
        # The 404 of a HEAD has no body that would tell a missing object from a missing bucket.
        return super().exists(key) or self._get(key) is not None

    def stored_sha256(self, key: str) -> str | None:
        found = self._call("head_object", key, unless=_ABSENT, ChecksumMode="ENABLED") or {}
        stored = found.get("ChecksumSHA256", "")
        # With a dash it is a checksum of the checksums of parts.
        return base64.b64decode(stored).hex() if stored and "-" not in stored else None

    def copy(self, source: str, key: str, *, bucket: str, version: str | None = None) -> bool:
        arguments: dict[str, Any] = {"CopySource": {"Bucket": bucket, "Key": source}, "IfNoneMatch": "*"}
        if version is not None:
            arguments["CopySourceIfMatch"] = version
        if (bucket, source) == (self.bucket, key):  # otherwise S3 refuses it whatever the condition says
            arguments["MetadataDirective"] = "REPLACE"
        return self._call("copy_object", key, unless=_TAKEN | _ABSENT, **arguments) is not None

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        for page in self._pages(Prefix=prefix, **({"StartAfter": after} if after else {})):
            yield from (entry["Key"] for entry in page.get("Contents", ()))

    def folders(self, prefix: str) -> list[str]:
        pages = self._pages(Prefix=prefix, Delimiter="/")
        found = (entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ()))
        return [each[len(prefix) :].rstrip("/") for each in found]

    def delete(self, key: str, version: str | None = None) -> bool:
        if version is None:
            self._call("delete_object", key, unless={"NoSuchKey"})
            return True
        with self._plainly():
            return self._call("delete_object", key, unless=_TAKEN | _ABSENT, IfMatch=version) is not None

    def delete_some(self, keys: Sequence[str]) -> None:
        """Remove at most 1,000 objects in one request; one by one if the store refuses that."""
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        try:
            errors = self._call("delete_objects", None, Delete=wanted).get("Errors", ())
        except StorageError as refusal:
            if not self.is_refusal(refusal):
                raise
            errors = [{"Key": key} for key in keys]
        for key in (error["Key"] for error in errors):  # alone, each gets an error of its own
            self.delete(key)

    def now(self, prefix: str) -> float:
        return _dated(self._page(Prefix=prefix, MaxKeys=1))

    def is_refusal(self, error: StorageError) -> bool:
        code, status = _answer_of(error)
        return not error.retryable and status in _REFUSALS and code not in _TOO_LARGE | _NO_SUCH_BUCKET

    def _pages(self, **wanted: str) -> Iterator[Any]:
        """Iterate over the answers of a listing."""
        while True:
            page = self._page(**wanted)
            yield page
            if not page.get("IsTruncated"):
                return
            if not (token := page.get("NextContinuationToken")):
                raise self._strange("list_objects_v2 on", wanted["Prefix"])
            wanted["ContinuationToken"] = token

    def _page(self, **wanted: Any) -> Any:
        page = self._call("list_objects_v2", None, **wanted)
        if not {"Name", "KeyCount", "IsTruncated"} & page.keys():
            raise self._strange("list_objects_v2 on", wanted["Prefix"])
        return page

    def _call(self, operation: str, key: str | None, *, unless: Collection[str] = (), **arguments: Any) -> Any:
        """Call `operation` of the client; return ``None`` if it fails with a code of `unless`."""
        from botocore.exceptions import BotoCoreError, ClientError

        if key is not None:
            arguments["Key"] = key
        try:
            return getattr(self._client(), operation)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in unless:
                return None
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
            raise self._error(operation, key, f"{code} (HTTP {status})", code, status) from error
        except (BotoCoreError, OSError) as error:
            name = type(error).__name__
            raise self._error(operation, key, name, name) from error
        except GeminiImageError:
            raise
        except Exception as error:
            raise self._strange(f"{operation} on", key, error) from error

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """Context manager for calls without any checksum header, for a store that refuses them."""
        events = self._client().meta.events
        events.register_first("before-parameter-build.s3", _ask_for_no_checksums, unique_id="geminiimg-plainly")
        token = _PLAINLY.set(True)
        try:
            yield
        finally:
            _PLAINLY.reset(token)

    def _error(self, operation: str, key: str | None, why: str, code: str = "", status: int = 0) -> StorageError:
        """Return the error for a failed call; a status of 0 means that there was no answer."""
        may_pass = code in _BUSY or _may_pass(code, status)
        hint = _NO_ANSWER_HINTS.get(code, "") if may_pass else _HINTS.get(code) or _STATUS_HINTS.get(status, "")
        if "{endpoint}" in hint:
            host = urlsplit(self._client().meta.endpoint_url).netloc.rpartition("@")[2]
            hint = hint.replace("{endpoint}", host)
        return self._failed(f"{operation} on", key, why, may_pass=may_pass, hint=hint)


def _answer_of(error: StorageError) -> tuple[str, int]:
    """The code and the HTTP status of a failed call."""
    answer = getattr(error.__cause__, "response", None) or {}  # botocore's time-outs have one that is None
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return str(answer.get("Error", {}).get("Code", "")), int(status or 0)


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
