"""Where bytes are kept: the ledger's objects (`Store`) and the users' pictures (`Files`), on disk, S3 and elsewhere.

A picture that was paid for is only as safe as the writes below it, so this is the one module that touches a disk or
a bucket. What must stay true:

- Only one of any number of writers creates an object. S3: `If-None-Match: *`. Disk: a temporary file in the same
  folder, fsync, `os.link`. A later write names the version that it replaces.
- "Absent" is said only where the store said so. A refusal (403, EACCES) and a failure are `StorageError`.
- Ages come from the store's own clock: those of two workers may differ.
- A lost answer is possible on every write. botocore repeats a request whose answer was lost, and our own success then
  comes back as "taken". So after `None` from `create` or `replace` the caller reads the object and compares its claim.
- Picture bytes reach botocore as streams: it logs plain `bytes` bodies at DEBUG.
- Keys and URIs are taken literally: a percent sign is a percent sign, and `..` is refused.
"""

from __future__ import annotations

import abc
import base64
import contextlib
import email.utils
import errno
import fcntl
import hashlib
import io
import os
import random
import re
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, StorageError

S3ClientFactory = Callable[[str | None], Any]
"""Gives a boto3 S3 client for an Airflow connection id, or for ``None`` by boto3's own chain of credentials."""

State = Literal["there", "gone", "unknown"]

LOCK_SECONDS = 30.0
"""How long a replacing writer waits for another one on the same disk. The lock is held for about a millisecond."""

_S3_SCHEMES = ("s3", "s3a", "s3n")
_WEB_SCHEMES = ("http", "https")
_OURS = "#"  # in the names of temporary and lock files; `encode_segment` never lets it into a key
_CONFLICT_TRIES = 5
_S3_JSON = "application/json"

# --- names and addresses ----------------------------------------------------------------------------------------------

_ENCODED = re.compile(r"[^A-Za-z0-9_.~+:-]|:(?=:)|(?<=:):")
_MAX_SEGMENT = 120


def encode_segment(segment: str) -> str:
    """One path segment for any text, a different one for every different text.

    All but ``[A-Za-z0-9_.~+-]`` and single ``:`` is percent-encoded, as are ``.`` and ``..``; what gets longer than
    120 bytes is cut and ends in ``=`` and a hash; the empty text is ``=`` alone.

    :param segment: a DAG id, run id, task id or the like.
    """
    if segment in ("", ".", ".."):
        return segment.replace(".", "%2E") or "="
    encoded = _ENCODED.sub(lambda found: _percent(found.group()), segment)
    if len(encoded) <= _MAX_SEGMENT:
        return encoded
    digest = hashlib.sha256(segment.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{encoded[: _MAX_SEGMENT - len(digest) - 1]}={digest}"


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def join_uri(directory: str, name: str) -> str:
    """The URI of `name` (which may hold ``/``) in the directory URI `directory`."""
    return f"{directory}{name}" if directory.endswith("/") else f"{directory}/{name}"


@dataclass(frozen=True)
class _Location:
    """A URI taken apart. `path` is absolute for files, else the key within `bucket`."""

    scheme: str
    conn_id: str | None
    bucket: str
    path: str
    uri: str = field(repr=False)

    @property
    def shown(self) -> str:
        """The URI as a message may repeat it: without a query and without user names and passwords."""
        if self.scheme in _WEB_SCHEMES:
            return f"{self.scheme}://{self.bucket}/{self.path}".partition("?")[0]
        conn = f"{self.conn_id.partition(':')[0]}@" if self.conn_id else ""
        return self.path if self.scheme == "file" else f"{self.scheme}://{conn}{self.bucket}/{self.path}"

    def segments(self) -> tuple[str, ...]:
        """What `allowed_roots` are compared by: scheme, connection, bucket, and each part of the path."""
        if self.scheme == "file":
            return ("file", "", "", *(part for part in os.path.realpath(self.path).split("/") if part))
        path = self.path.partition("?")[0].partition("#")[0] if self.scheme in _WEB_SCHEMES else self.path
        return (self.scheme, self.conn_id or "", self.bucket, *path.rstrip("/").split("/"))


def _locate(uri: str, what: str = "uri") -> _Location:
    """Take a URI apart.

    :raises BadRequestError: it is relative, has no bucket, or holds `..` or a NUL.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator and uri.startswith("/"):
        scheme, rest = "file", uri
    elif not separator:
        raise BadRequestError(
            f"{what}: {uri[:200]!r} is neither a URI nor an absolute path.",
            hint="Write it as s3://bucket/key, s3://conn_id@bucket/key, file:///folder/name or /folder/name.",
        )
    scheme = "s3" if scheme.lower() in _S3_SCHEMES else scheme.lower()
    authority, _, path = rest.partition("/")
    conn_id, _, bucket = authority.rpartition("@")
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise BadRequestError(f"{what}: a file URI names no host; write file:///folder/name (three slashes).")
        conn_id, bucket, path = "", "", f"/{path}"
    place = _Location(scheme, conn_id or None, bucket.lower() if scheme in _WEB_SCHEMES else bucket, path, uri)
    if scheme != "file" and not bucket:
        raise BadRequestError(f"{what}: {place.shown} names no bucket.")
    parts = (unquote(path).replace("\\", "/") if scheme in _WEB_SCHEMES else path).partition("?")[0].split("/")
    if ".." in parts or (scheme == "file" and "\0" in path):
        raise BadRequestError(f'{what}: {place.shown} holds "..", which is not allowed in a path.')
    return place


# --- one disk ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _disk(doing: str, path: str) -> Iterator[None]:
    """Turn any failure of the operating system into a `StorageError` that names what was done to what."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{doing} {path} failed: {error.strerror or type(error).__name__}.",
            hint="Check that the disk is mounted and writable for the user that runs the worker.",
        ) from error


def _sync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no fsync of a folder
            raise
    finally:
        os.close(handle)


def _make_folders(path: str, mode: int) -> None:
    """`os.makedirs` whose every new folder has `mode` and is on the disk when this returns."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_folders(parent, mode)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
        _sync_folder(parent)


@contextlib.contextmanager
def _temporary(path: str, data: bytes, mode: int) -> Iterator[str]:
    """A synced file with `data` beside `path`, removed at the end unless it was moved away."""
    name = os.path.join(os.path.dirname(path), f".{_OURS}{uuid.uuid4().hex}")
    try:
        handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _link(temporary: str, path: str) -> bool:
    """Give a temporary file its final name; False where the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network file system may have linked it, lost the answer and asked again: then the file has two names.
        if os.stat(temporary).st_nlink < 2:
            return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise StorageError(
                f"{os.path.dirname(path)} is on a file system without hard links, on which two writers can't be told "
                "apart.",
                retryable=False,
                hint="Use another disk or a bucket.",
            ) from error
        raise
    _sync_folder(os.path.dirname(path))
    return True


def _read_file(path: str, limit: int | None = None) -> tuple[bytes, float] | None:
    """Content and time of last change; at most `limit` + 1 bytes; None only where there is no such file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{path} is not a regular file.", retryable=False)
        return file.read() if limit is None else file.read(limit + 1), found.st_mtime


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- the ledger's objects ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """One stored object.

    :param data: its bytes.
    :param version: names this content for `Store.replace`.
    :param age: seconds since it was last written, by the store's clock; never below 0.
    """

    data: bytes = field(repr=False)
    version: str
    age: float


_PROBED: set[tuple[int, str]] = set()
_PROBING = threading.Lock()


class Store(abc.ABC):
    """Objects under one root, addressed by keys such as ``a/b/c.json``. Blocking: call it through `asyncio.to_thread`.

    Every failure is a `StorageError`. A version names a content: two writes of the same bytes may have the same one.

    :param uri: the root, without a slash at its end.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abc.abstractmethod
    def create(self, key: str, data: bytes) -> str | None:
        """Create an object that is not there yet.

        :returns: its version, or ``None`` where the key is taken. It may be taken by this very call (a lost answer):
            read it and compare the claim before believing that somebody else won.
        """

    @abc.abstractmethod
    def read(self, key: str) -> Blob | None:
        """The object, or ``None`` only where the store says that there is none."""

    @abc.abstractmethod
    def replace(self, key: str, data: bytes, version: str) -> str | None:
        """Replace an object if it still has `version`.

        :returns: the new version, or ``None`` where the stored one is another or gone. As with `create`, read it
            before believing that somebody else wrote.
        """

    @abc.abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""

    @abc.abstractmethod
    def keys(self, prefix: str) -> Iterator[str]:
        """All keys that start with `prefix`, in the order of their bytes."""

    def probe(self) -> None:
        """Refuse a root on which promises don't hold. Done once per process and root; writes and removes one object.

        :raises StorageError: the same key could be created twice, or replaced by the name of another version.
        """
        with _PROBING:
            if (os.getpid(), self.uri) in _PROBED:
                return
            self._probe()
            _PROBED.add((os.getpid(), self.uri))

    def _probe(self) -> None:
        key, first, second = f"probe/{uuid.uuid4().hex}", uuid.uuid4().bytes, uuid.uuid4().bytes
        try:
            self.create(key, first)
            again = self.create(key, second)
            found = self.read(key)
            if again is not None or found is None or found.data != first:
                raise self._unfit("creates the same object twice")
            replaced = self.replace(key, second, found.version)
            stale = self.replace(key, first, found.version)
            found = self.read(key)
            if stale is not None or found is None or found.data != second:
                raise self._unfit(f"{'ignores' if replaced else 'refuses'} conditions on replacing an object")
        finally:
            with contextlib.suppress(StorageError):
                self.delete(key)

    def _unfit(self, what: str) -> StorageError:
        return StorageError(
            f"{self.uri} can't hold the record of what was paid for: it {what}.",
            retryable=False,
            hint="Set [geminiimg] root to a bucket with conditional writes (If-None-Match, If-Match) or to a disk.",
        )


def _checked_key(key: str) -> str:
    if any(part in ("", ".", "..") for part in key.split("/")) or _OURS in key or "\0" in key:
        raise StorageError(f"{key!r} is no key of a store.", retryable=False)
    return key


class LocalStore(Store):
    """A folder on a disk that all workers share. New folders are 0700, files 0600.

    :param root: its absolute path; made when it is first written to.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.normpath(root)
        super().__init__(f"file://{self._root}")
        self._lock_path = os.path.join(self._root, f".{_OURS}lock")

    def create(self, key: str, data: bytes) -> str | None:
        path = self._path(key)
        with _disk("Creating", path):
            self._make_room(path)
            with _temporary(path, data, 0o600) as temporary:
                return _sha256(data) if _link(temporary, path) else None

    def read(self, key: str) -> Blob | None:
        path = self._path(key)
        with _disk("Reading", path):
            found = _read_file(path)
            if found is None:
                return None
            return Blob(found[0], _sha256(found[0]), max(0.0, self._now() - found[1]))

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        path = self._path(key)
        with _disk("Replacing", path):
            if not os.path.isdir(os.path.dirname(path)):
                return None
            with _temporary(path, data, 0o600) as temporary:
                with self._locked():
                    found = _read_file(path)
                    if found is None or _sha256(found[0]) != version:
                        return None
                    os.replace(temporary, path)
                _sync_folder(os.path.dirname(path))
            return _sha256(data)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _disk("Removing", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)
            with self._locked():
                os.unlink(path)

    def keys(self, prefix: str) -> Iterator[str]:
        folder = self._path(_checked_key(prefix.rpartition("/")[0])) if "/" in prefix else self._root
        found: list[str] = []
        with _disk("Listing", folder):
            for path, _, names in os.walk(folder, onerror=_raise_unless_absent):
                found += [os.path.relpath(os.path.join(path, name), self._root) for name in names if _OURS not in name]
        return iter(sorted((key for key in found if key.startswith(prefix)), key=os.fsencode))

    def _path(self, key: str) -> str:
        return os.path.join(self._root, _checked_key(key))

    def _make_room(self, path: str) -> None:
        if not os.path.isdir(self._root):
            os.makedirs(os.path.dirname(self._root), exist_ok=True)
        _make_folders(os.path.dirname(path), 0o700)

    def _now(self) -> float:
        """The disk's own clock: a file is touched there and its time read back."""
        try:
            with open(os.open(self._lock_path, os.O_CREAT | os.O_RDWR, 0o600), "rb") as file:
                os.utime(file.fileno())
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return time.time()  # who may only read here decides nothing by ages

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the root's lock: one open file each, so that threads exclude each other as processes do."""
        handle = os.open(self._lock_path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _try_lock(handle):
                if time.monotonic() > deadline:
                    raise StorageError(f"{self._lock_path} has been locked for {LOCK_SECONDS:.0f} s.")
                time.sleep(random.uniform(0.001, 0.01))
            yield
        finally:
            # Closing is not enough: a process forked meanwhile holds a copy of the handle.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


# --- S3 ---------------------------------------------------------------------------------------------------------------

_TAKEN = {"PreconditionFailed", "412"}
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_BUSY = {"ConditionalRequestConflict", "OperationAborted"}
_REFUSED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_S3_HINTS = {
    "NoSuchBucket": "Create the bucket {bucket}, or correct its name.",
    "NoCredentialsError": "Give the worker AWS credentials, or name an Airflow connection: s3://conn_id@bucket/key.",
    **{
        code: "Grant the worker's AWS identity s3:GetObject, s3:PutObject and s3:ListBucket on {bucket}."
        for code in _REFUSED
    },
}


class _S3:
    """Calls on one bucket's objects; every failure of boto3 comes out as a `StorageError`."""

    def __init__(self, factory: S3ClientFactory, conn_id: str | None, bucket: str) -> None:
        self._factory, self._conn_id, self.bucket = factory, conn_id, bucket

    def call(self, operation: str, key: str, *, absent_ok: set[str] | None = None, **arguments: Any) -> Any:
        """Call `operation` of the client; ``None`` where it fails with a code of `absent_ok`."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client(), operation)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in (absent_ok or ()):
                return None
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            raise self._failed(operation, key, code, status) from error
        except (BotoCoreError, OSError) as error:
            raise self._failed(operation, key, type(error).__name__, None) from error

    def put(self, key: str, data: bytes, media_type: str, **condition: str) -> Any:
        """Write one object whole; ``None`` where the condition does not hold."""
        for attempt in range(1, _CONFLICT_TRIES + 1):
            try:
                return self.call(
                    "put_object",
                    key,
                    absent_ok=_TAKEN | (_ABSENT if "IfMatch" in condition else set()),
                    Key=key,
                    Body=io.BytesIO(data),
                    ContentType=media_type,
                    ChecksumSHA256=base64.b64encode(hashlib.sha256(data).digest()).decode(),
                    **condition,
                )
            except StorageError as error:
                if error.code not in _BUSY or attempt == _CONFLICT_TRIES:
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
            raise self._failed("get_object", key, type(error).__name__, None) from error

    def _client(self) -> Any:
        try:
            return self._factory(self._conn_id)
        except GeminiImageError:
            raise
        except Exception as error:
            name = f"the connection {self._conn_id!r}" if self._conn_id else "boto3's own credentials"
            raise StorageError(f"No S3 client could be made from {name}: {type(error).__name__}.") from error

    def _failed(self, operation: str, key: str, code: str, status: int | None) -> StorageError:
        return StorageError(
            f"{operation} on s3://{self.bucket}/{key} failed: {code or 'no code'}.",
            code=code or None,
            status_code=status,
            hint=_S3_HINTS.get(code, "Check the bucket and the worker's network.").format(bucket=self.bucket),
        )


def _age(found: Any) -> float:
    """Seconds between an object's last change and the store's own clock, which dates every answer."""
    dated = found["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    now = email.utils.parsedate_to_datetime(dated).timestamp() if dated else time.time()
    return max(0.0, now - float(found["LastModified"].timestamp()))


class S3Store(Store):
    """A prefix of a bucket with conditional writes.

    :param uri: ``s3://bucket/prefix`` or ``s3://conn_id@bucket/prefix``.
    :param s3_client: gives the client; asked at every call, so it should keep what it made.
    """

    def __init__(self, uri: str, s3_client: S3ClientFactory) -> None:
        place = _locate(uri)
        prefix = place.path.strip("/")
        super().__init__(uri.rstrip("/"))
        self._prefix = f"{prefix}/" if prefix else ""
        self._s3 = _S3(s3_client, place.conn_id, place.bucket)

    def create(self, key: str, data: bytes) -> str | None:
        done = self._s3.put(self._key(key), data, _S3_JSON, IfNoneMatch="*")
        return None if done is None else str(done["ETag"])

    def read(self, key: str) -> Blob | None:
        key = self._key(key)
        found = self._s3.call("get_object", key, absent_ok={"NoSuchKey"}, Key=key)
        return None if found is None else Blob(self._s3.body(key, found), str(found["ETag"]), _age(found))

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        done = self._s3.put(self._key(key), data, _S3_JSON, IfMatch=version)
        return None if done is None else str(done["ETag"])

    def delete(self, key: str) -> None:
        self._s3.call("delete_object", self._key(key), absent_ok={"NoSuchKey"}, Key=self._key(key))

    def keys(self, prefix: str) -> Iterator[str]:
        wanted: dict[str, str] = {"Prefix": self._prefix + prefix}
        while True:
            page = self._s3.call("list_objects_v2", wanted["Prefix"], **wanted)
            yield from (entry["Key"][len(self._prefix) :] for entry in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            wanted["ContinuationToken"] = page["NextContinuationToken"]

    def _key(self, key: str) -> str:
        return self._prefix + _checked_key(key)


def open_store(uri: str, s3_client: S3ClientFactory) -> Store:
    """The store at a root URI.

    :param uri: ``s3://[conn_id@]bucket[/prefix]``, ``file:///folder`` or ``/folder``.
    :param s3_client: gives S3 clients, such as `default_s3_client`.
    :raises BadRequestError: another scheme, which has no exclusive creation.
    """
    place = _locate(uri, "root")
    if place.scheme == "s3":
        return S3Store(uri, s3_client)
    if place.scheme == "file":
        return LocalStore(place.path)
    raise BadRequestError(
        f"root: {place.shown} can't hold the record of what was paid for; allowed: s3:// and file://.",
        hint="Pictures may go anywhere (output_path); [geminiimg] root needs a store that creates exclusively.",
    )


_CLIENTS: dict[tuple[int, str | None], Any] = {}
_CLIENTS_LOCK = threading.Lock()


def default_s3_client(conn_id: str | None) -> Any:
    """A boto3 S3 client, made once per process and connection. `AWS_ENDPOINT_URL` and the like are honoured.

    :param conn_id: an Airflow AWS connection, opened by the amazon provider with that connection's own settings;
        ``None``: boto3's own chain, 10 s to connect, 60 s for an answer, standard retries.
    :raises BadRequestError: the connection does not exist, or the amazon provider is not installed.
    """
    slot = (os.getpid(), conn_id)  # sockets must not be shared with a forked process
    with _CLIENTS_LOCK:
        if slot not in _CLIENTS:
            _CLIENTS[slot] = _plain_client() if conn_id is None else _airflow_client(conn_id)
        return _CLIENTS[slot]


def _plain_client() -> Any:
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard"}, max_pool_connections=32)
    return boto3.session.Session().client("s3", config=config)


def _airflow_client(conn_id: str) -> Any:
    try:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    except ImportError as error:
        raise BadRequestError(
            f"s3://{conn_id}@… names an Airflow connection, which needs the amazon provider; it is not installed.",
            hint="pip install apache-airflow-providers-amazon, or leave the connection out of the URI.",
        ) from error
    from airflow.exceptions import AirflowNotFoundException

    hook = S3Hook(aws_conn_id=conn_id)
    try:
        hook.get_connection(conn_id)  # S3Hook itself would go on with another identity
    except AirflowNotFoundException as error:
        raise BadRequestError(f"s3://{conn_id}@… names the Airflow connection {conn_id!r}: there is none.") from error
    return hook.get_conn()


# --- pictures anywhere ------------------------------------------------------------------------------------------------


class Files:
    """Reads and writes pictures wherever a URI points. Blocking: call it through `asyncio.to_thread`.

    ``s3://`` goes through boto3, ``file://`` and plain paths to the disk, ``https://`` (reading only) through
    `airflow_provider_geminiimg.download`, and all else through Airflow's ``ObjectStoragePath``.

    :param s3_client: gives S3 clients, such as `default_s3_client`.
    :param allowed_roots: URI prefixes, connection part included, within which every URI must lie; compared by whole
        path segments after symbolic links are resolved. Default: anywhere.
    """

    def __init__(self, *, s3_client: S3ClientFactory, allowed_roots: Sequence[str] = ()) -> None:
        self._s3_client = s3_client
        self._roots = {root: _without_empty_end(_locate(root, "allowed_roots").segments()) for root in allowed_roots}

    def check(self, uri: str, field: str) -> None:
        """Refuse a URI that is malformed or outside the allowed roots.

        :param uri: an input, an output, or one that was recorded.
        :param field: what the message calls it.
        :raises BadRequestError: with the reason and the allowed roots.
        """
        self._place(uri, field)

    def read(self, uri: str, *, max_bytes: int) -> bytes:
        """All bytes of a file.

        :param uri: where it is.
        :param max_bytes: the largest size to take.
        :raises BadRequestError: it is not there, too large, or the scheme is not known.
        :raises StorageError: it could not be read.
        """
        place = self._place(uri, "uri")
        data = self._backend(place).read(place, max_bytes)
        if data is None:
            raise BadRequestError(f"{place.shown} does not exist.")
        if len(data) > max_bytes:
            raise BadRequestError(f"{place.shown} is larger than the {max_bytes} bytes that are allowed.")
        return data

    def write(self, uri: str, data: bytes, *, media_type: str, sha256: str) -> bool:
        """Write a new file whole, never over other bytes.

        :param uri: where to.
        :param data: its bytes.
        :param media_type: its content type, where the store keeps one.
        :param sha256: hex digest of `data`.
        :returns: True where it is written or was there with the same bytes; False where the name is taken by others.
        :raises StorageError: it could not be written.
        """
        place = self._place(uri, "uri")
        backend = self._backend(place)
        return backend.create(place, data, media_type) or backend.sha256(place) == sha256

    def put(self, uri: str, data: bytes, *, media_type: str) -> None:
        """Write a file whole, replacing one of that name.

        :raises StorageError: it could not be written.
        """
        place = self._place(uri, "uri")
        self._backend(place).put(place, data, media_type)

    def state(self, uri: str) -> State:
        """Whether a file is there. ``unknown`` where the store would not or could not say."""
        place = self._place(uri, "uri")
        try:
            return "there" if self._backend(place).exists(place) else "gone"
        except GeminiImageError:
            return "unknown"

    def check_writable(self, directory_uri: str) -> None:
        """Find out whether a directory takes files, before money is spent. Leaves no file behind.

        On S3 this starts and aborts a multipart upload, which no event notification tells of.

        :raises BadRequestError: it does not.
        """
        place = self._place(join_uri(directory_uri, f".geminiimg-{uuid.uuid4().hex}"), "output_path")
        try:
            self._backend(place).try_writing(place)
        except StorageError as error:
            raise BadRequestError(
                f"output_path: {place.shown.rpartition('/')[0]} can't be written to. {error.message}", hint=error.hint
            ) from error

    def _place(self, uri: str, field: str) -> _Location:
        place = _locate(uri, field)
        if self._roots:
            segments = place.segments()
            if not any(segments[: len(root)] == root for root in self._roots.values()):
                raise BadRequestError(
                    f"{field}: {place.shown} is outside [geminiimg] allowed_roots.",
                    hint=f"Allowed: {', '.join(self._roots)}.",
                )
        return place

    def _backend(self, place: _Location) -> _Backend:
        if place.scheme == "s3":
            return _S3Files(_S3(self._s3_client, place.conn_id, place.bucket))
        if place.scheme in _WEB_SCHEMES:
            return _WebFiles()
        return _DiskFiles() if place.scheme == "file" else _OtherFiles()


def _without_empty_end(segments: tuple[str, ...]) -> tuple[str, ...]:
    return segments[:-1] if segments[-1] == "" and len(segments) > 3 else segments


class _Backend(abc.ABC):
    """What `Files` needs of a kind of storage. Failures are `StorageError`."""

    @abc.abstractmethod
    def read(self, place: _Location, max_bytes: int) -> bytes | None:
        """At most `max_bytes` + 1 bytes; None where there is no such file."""

    @abc.abstractmethod
    def create(self, place: _Location, data: bytes, media_type: str) -> bool:
        """Write a new file; False where the name is taken."""

    @abc.abstractmethod
    def sha256(self, place: _Location) -> str | None:
        """Hex digest of what is there."""

    @abc.abstractmethod
    def put(self, place: _Location, data: bytes, media_type: str) -> None:
        """Write a file, replacing one of that name."""

    @abc.abstractmethod
    def exists(self, place: _Location) -> bool:
        """False only where the store says so."""

    @abc.abstractmethod
    def try_writing(self, place: _Location) -> None:
        """Do what `create` would need, and leave nothing."""


class _DiskFiles(_Backend):
    """Files get the mode that the process's umask leaves, as any other file of that user."""

    def read(self, place: _Location, max_bytes: int) -> bytes | None:
        with _disk("Reading", place.path):
            found = _read_file(place.path, max_bytes)
        return None if found is None else found[0]

    def create(self, place: _Location, data: bytes, media_type: str) -> bool:
        with _disk("Writing", place.path):
            _make_folders(os.path.dirname(place.path), 0o777)
            with _temporary(place.path, data, 0o666) as temporary:
                return _link(temporary, place.path)

    def sha256(self, place: _Location) -> str | None:
        with _disk("Reading", place.path):
            found = _read_file(place.path)
        return None if found is None else _sha256(found[0])

    def put(self, place: _Location, data: bytes, media_type: str) -> None:
        with _disk("Writing", place.path):
            _make_folders(os.path.dirname(place.path), 0o777)
            with _temporary(place.path, data, 0o666) as temporary:
                os.replace(temporary, place.path)
            _sync_folder(os.path.dirname(place.path))

    def exists(self, place: _Location) -> bool:
        with _disk("Looking for", place.path):
            try:
                return stat.S_ISREG(os.stat(place.path).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def try_writing(self, place: _Location) -> None:
        self.create(place, b"", "")
        with _disk("Removing", place.path):
            os.unlink(place.path)


class _S3Files(_Backend):
    def __init__(self, s3: _S3) -> None:
        self._s3 = s3

    def read(self, place: _Location, max_bytes: int) -> bytes | None:
        found = self._s3.call("get_object", place.path, absent_ok={"NoSuchKey"}, Key=place.path)
        return None if found is None else self._s3.body(place.path, found, max_bytes)

    def create(self, place: _Location, data: bytes, media_type: str) -> bool:
        return self._s3.put(place.path, data, media_type, IfNoneMatch="*") is not None

    def sha256(self, place: _Location) -> str | None:
        found = self._s3.call("head_object", place.path, absent_ok=_ABSENT, Key=place.path, ChecksumMode="ENABLED")
        stored = (found or {}).get("ChecksumSHA256", "")
        if stored and "-" not in stored:  # with a dash it is a checksum of the checksums of parts
            return base64.b64decode(stored).hex()
        found = self._s3.call("get_object", place.path, absent_ok={"NoSuchKey"}, Key=place.path)
        return None if found is None else _sha256(self._s3.body(place.path, found))

    def put(self, place: _Location, data: bytes, media_type: str) -> None:
        self._s3.put(place.path, data, media_type)

    def exists(self, place: _Location) -> bool:
        # Not head_object: its 404 has no body that would tell a missing object from a missing bucket.
        found = self._s3.call("get_object", place.path, absent_ok={"NoSuchKey"}, Key=place.path)
        if found is not None:
            found["Body"].close()
        return found is not None

    def try_writing(self, place: _Location) -> None:
        upload = self._s3.call("create_multipart_upload", place.path, Key=place.path)
        with contextlib.suppress(StorageError):
            self._s3.call("abort_multipart_upload", place.path, Key=place.path, UploadId=upload["UploadId"])


class _WebFiles(_Backend):
    """Public https addresses as inputs, under the same rules as result links."""

    SECONDS = 120.0

    def read(self, place: _Location, max_bytes: int) -> bytes | None:
        import asyncio

        from airflow_provider_geminiimg.download import download

        try:
            return asyncio.run(download(place.uri, max_bytes=max_bytes, timeout=self.SECONDS))
        except GeminiImageError as error:
            kind = StorageError if error.kind == "upstream_failed" else BadRequestError
            raise kind(f"{place.shown} can't be read. {error.message}", status_code=error.status_code) from error

    def create(self, place: _Location, data: bytes, media_type: str) -> bool:
        raise self._read_only(place)

    def sha256(self, place: _Location) -> str | None:
        raise self._read_only(place)

    def put(self, place: _Location, data: bytes, media_type: str) -> None:
        raise self._read_only(place)

    def exists(self, place: _Location) -> bool:
        raise self._read_only(place)

    def try_writing(self, place: _Location) -> None:
        raise self._read_only(place)

    def _read_only(self, place: _Location) -> BadRequestError:
        return BadRequestError(f"{place.shown} is a web address: it can be read, not written.")


_CONTENT_TYPE_ARGUMENT = {"gs": "content_type", "gcs": "content_type"}


class _OtherFiles(_Backend):
    """All else, as Airflow's providers bring it. Not exclusive: a look before the write is all that fsspec offers."""

    def read(self, place: _Location, max_bytes: int) -> bytes | None:
        with self._errors("Reading", place):
            try:
                with self._path(place).open("rb") as file:
                    return bytes(file.read(max_bytes + 1))
            except FileNotFoundError:
                return None

    def create(self, place: _Location, data: bytes, media_type: str) -> bool:
        if self.exists(place):
            return False
        self.put(place, data, media_type)
        return True

    def sha256(self, place: _Location) -> str | None:
        with self._errors("Reading", place):
            return _sha256(self._path(place).read_bytes())

    def put(self, place: _Location, data: bytes, media_type: str) -> None:
        argument = _CONTENT_TYPE_ARGUMENT.get(place.scheme)
        with self._errors("Writing", place):
            path = self._path(place)
            path.fs.makedirs(path.fs._parent(path.path), exist_ok=True)
            with path.open("wb", **({argument: media_type} if argument else {})) as file:
                file.write(data)

    def exists(self, place: _Location) -> bool:
        with self._errors("Looking for", place):
            path = self._path(place)
            path.fs.invalidate_cache()
            try:
                path.fs.info(path.path)  # not exists(): it takes any failure for absence
            except FileNotFoundError:
                return False
            return True

    def try_writing(self, place: _Location) -> None:
        self.put(place, b"", "application/octet-stream")
        with self._errors("Removing", place):
            self._path(place).unlink()

    def _path(self, place: _Location) -> Any:
        from airflow.sdk import ObjectStoragePath

        try:
            path = ObjectStoragePath(place.uri)
            path.fs  # noqa: B018  (the first moment at which an unknown scheme shows)
        except (ValueError, ImportError) as error:
            raise BadRequestError(
                f"{place.shown}: no installed Airflow provider serves {place.scheme}://.",
                hint="Install the provider for it, or use s3://, file:// or a plain path.",
            ) from error
        return path

    @contextlib.contextmanager
    def _errors(self, doing: str, place: _Location) -> Iterator[None]:
        try:
            yield
        except GeminiImageError:
            raise
        except Exception as error:
            raise StorageError(f"{doing} {place.shown} failed: {type(error).__name__}.") from error
