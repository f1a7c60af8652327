"""The disk that all workers share.

Invariants: an object appears completely or not at all (a synced temporary file in the same folder gets the final name).
One of several creators wins (`os.link` never replaces). A writer that replaces an object holds the root's lock, which
excludes threads and processes. Everything under the root is accessible to its owner only, regardless of the umask.
Times come from the disk, which may differ from this machine's clock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from airflow_provider_geminiimg.core.storage.base import (
    OURS,
    Backend,
    Blob,
    Content,
    Store,
    checked_key,
    pieces,
    sha256,
)
from airflow_provider_geminiimg.core.storage.folders import (
    BY_UMASK,
    PRIVATE,
    Modes,
    close_folders,
    make_folders,
    remove_empty,
    set_mode,
    sync_folder,
)
from airflow_provider_geminiimg.core.storage.uris import Location
from airflow_provider_geminiimg.exceptions import StorageError

LOCK_SECONDS = 30.0
"""Seconds that a writer waits for the root's lock. The lock is held for about a millisecond."""

_REMOVED_AT_ONCE = 200  # files, under one lock: a second on a slow network file system

IMAGES = "images"
"""Folder under the root for images without an output path of their own."""

_ABSENT = (FileNotFoundError, NotADirectoryError)
_REFUSALS = (  # permanent failures
    errno.EACCES,
    errno.EFBIG,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class LocalStore(Store):
    """A folder. New folders have the mode 0700 and files 0600, regardless of the umask.

    :param root: its absolute path; created with the first write.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(os.path.normpath(root))
        super().__init__(f"file://{self._root}")
        self._lock_path = self._root / f".{OURS}lock"

    def create(self, key: str, data: bytes) -> str | None:
        path = self._path(key)
        with _failures("Creating", path):
            make_folders(self._root.parent, BY_UMASK)
            try:
                return self._create(path, data)
            except FileNotFoundError:  # `delete_all` has just removed the empty folder
                return self._create(path, data)

    def _create(self, path: Path, data: bytes) -> str | None:
        make_folders(path.parent, PRIVATE)
        with _temporary(path, data, PRIVATE) as temporary:
            return sha256(data) if _link(temporary, path) else None

    def read(self, key: str, limit: int | None = None) -> Blob | None:
        path = self._path(key)
        with _failures("Reading", path):
            found = _read_file(path, limit)
            if found is None:
                return None
            data, changed = found
            return Blob(data, sha256(data), max(0.0, self.now() - changed))

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        path = self._path(key)
        with _failures("Replacing", path):
            if not path.parent.is_dir():
                return None
            with _temporary(path, data, PRIVATE) as temporary:
                with self._locked():
                    found = _read_file(path)
                    if found is None or sha256(found[0]) != version:
                        return None
                    temporary.replace(path)
                sync_folder(path.parent)
            return sha256(data)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _failures("Removing", path), contextlib.suppress(*_ABSENT):
            path.stat()
            with self._locked():
                path.unlink()

    def delete_all(self, keys: Iterable[str]) -> None:
        """See `Store.delete_all`. Folders that are empty then are removed, too."""
        paths = [self._path(key) for key in keys]
        for start in range(0, len(paths), _REMOVED_AT_ONCE):
            some = paths[start : start + _REMOVED_AT_ONCE]
            with _failures("Removing", some[0]), self._locked():
                for path in some:
                    with contextlib.suppress(*_ABSENT):
                        path.unlink()
            if start + _REMOVED_AT_ONCE < len(paths):
                time.sleep(0.02)  # the lock has no queue: who waits for it looks every 10 ms at most
        for folder in {path.parent for path in paths}:
            remove_empty(folder, self._root)

    def keys(self, prefix: str) -> Iterator[str]:
        folder, slash, _ = prefix.rpartition("/")
        start = self._path(folder) if slash else self._root
        found: list[str] = []
        with _failures("Listing", start):
            for path, _, names in os.walk(start, onerror=_raise_unless_absent):
                parent = Path(path).relative_to(self._root)
                found += [(parent / name).as_posix() for name in names if OURS not in name]
        return iter(sorted((key for key in found if key.startswith(prefix)), key=os.fsencode))

    def folders(self, folder: str) -> list[str]:
        start = self._path(folder)
        with _failures("Listing", start):
            try:
                return sorted(path.name for path in start.iterdir() if path.is_dir())
            except _ABSENT:
                return []

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def now(self) -> float:
        """See `Store.now`. Touches a file on the disk and reads its time back."""
        try:
            with self._lock_file() as handle:
                os.utime(handle)
                return os.fstat(handle).st_mtime
        except OSError:
            return time.time()  # a read-only process makes no decision by ages

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the root's lock. Each call opens the file itself, so that threads exclude each other as processes do."""
        with self._lock_file() as handle:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _try_lock(handle):
                if time.monotonic() > deadline:
                    raise StorageError(f"{self._lock_path} has been locked for {LOCK_SECONDS:.0f} s.")
                time.sleep(random.uniform(0.001, 0.01))
            try:
                yield
            finally:
                # Closing is not enough: a process that was forked in the meantime holds a copy of the handle.
                fcntl.flock(handle, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _lock_file(self) -> Iterator[int]:
        try:
            handle = _create_file(self._lock_path, os.O_RDWR, PRIVATE)
        except FileExistsError:
            handle = os.open(self._lock_path, os.O_CREAT | os.O_RDWR, PRIVATE.file)
        try:
            yield handle
        finally:
            os.close(handle)


class _NoLinksError(StorageError):
    """The file system has no hard links."""


class DiskFiles(Backend):
    """Users' files. Under the root they are accessible to their owner only; elsewhere the umask applies.

    :param warn: receives a text about missing features of a file system.
    :param root: path of the root, if it is on disk.
    """

    def __init__(self, warn: Callable[[str], None], root: Path | None = None) -> None:
        self._warn = warn
        self._root = root

    def read(self, place: Location, max_bytes: int) -> bytes | None:
        with _failures("Reading", place.file):
            found = _read_file(place.file, max_bytes)
        return None if found is None else found[0]

    def create(self, place: Location, data: bytes, media_type: str) -> bool:
        with _failures("Writing", place.file):
            modes = self._prepare(place.file)
            with _temporary(place.file, data, modes) as temporary:
                try:
                    return _link(temporary, place.file)
                except _NoLinksError:
                    written = _move_to_free_name(temporary, place.file, modes)
        self._warn(
            f"{place.file.parent} is on a file system without hard links: a file replaces an empty file of its name. "
            "If the worker is killed at that moment, the empty file remains."
        )
        return written

    def sha256(self, place: Location) -> str | None:
        with _failures("Reading", place.file):
            found = _read_file(place.file)
        return None if found is None else sha256(found[0])

    def put(self, place: Location, content: Content, media_type: str) -> None:
        with _failures("Writing", place.file):
            modes = self._prepare(place.file)
            with _temporary(place.file, content, modes) as temporary:
                temporary.replace(place.file)
            sync_folder(place.file.parent)

    def exists(self, place: Location) -> bool:
        with _failures("Looking for", place.file):
            try:
                return stat.S_ISREG(place.file.stat().st_mode)
            except _ABSENT:
                return False

    def remove(self, place: Location) -> None:
        with _failures("Removing", place.file):
            place.file.unlink(missing_ok=True)

    def _prepare(self, file: Path) -> Modes:
        """Create the folder of a new file, and return the modes for it."""
        if self._root is None or not _is_below(file, self._root):
            make_folders(file.parent, BY_UMASK)
            return BY_UMASK
        make_folders(self._root.parent, BY_UMASK)
        make_folders(file.parent, PRIVATE)
        if _is_below(file, self._root / IMAGES):
            close_folders(self._root / IMAGES, file.parent)
        return PRIVATE


@contextlib.contextmanager
def _failures(doing: str, path: Path) -> Iterator[None]:
    """Convert any failure of the operating system into a `StorageError` that names the operation and the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{doing} {path} failed: {error.strerror or type(error).__name__}.",
            retryable=error.errno not in _REFUSALS,
            hint="Check that the disk is mounted and writable for the user that runs the worker.",
        ) from error


def _is_below(path: Path, folder: Path) -> bool:
    """Return whether `path` is in `folder`, either literally or after symbolic links are resolved."""
    spellings = (Path(os.path.normpath(path)), Path(os.path.realpath(path)))
    return any(spelling.is_relative_to(at) for spelling in spellings for at in (folder, Path(os.path.realpath(folder))))


@contextlib.contextmanager
def _temporary(path: Path, content: Content, modes: Modes) -> Iterator[Path]:
    """Context manager for a synced file with `content` beside `path`; removed at the end unless it was moved."""
    temporary = path.with_name(f".{OURS}{uuid.uuid4().hex}")
    try:
        handle = _create_file(temporary, os.O_WRONLY, modes)
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces(content))
            file.flush()
            os.fsync(handle)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _create_file(path: Path, flags: int, modes: Modes) -> int:
    """Open a new file; fail if it exists."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | flags, modes.file)
    if modes.exact:
        set_mode(handle, modes.file)
    return handle


def _link(temporary: Path, path: Path) -> bool:
    """Give a temporary file its final name; return False if the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network file system may have linked it, lost the answer and tried again: then the file has two names.
        if temporary.stat().st_nlink < 2:
            return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise _NoLinksError(
            f"{path.parent} is on a file system without hard links, where two writers could replace each other.",
            retryable=False,
            hint="Use another disk or a bucket.",
        ) from error
    sync_folder(path.parent)
    return True


def _move_to_free_name(temporary: Path, path: Path, modes: Modes) -> bool:
    """Give a temporary file its final name without a link. An empty file reserves the name until then."""
    try:
        os.close(_create_file(path, os.O_WRONLY, modes))
    except FileExistsError:
        return False
    try:
        temporary.replace(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return True


def _read_file(path: Path, limit: int | None = None) -> tuple[bytes, float] | None:
    """Return content (at most `limit` + 1 bytes) and modification time; None only if the file does not exist."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without O_NONBLOCK, a named pipe would block
    except _ABSENT:
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{path} is not a regular file.", retryable=False)
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read() if limit is None else file.read(limit + 1), found.st_mtime
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, _ABSENT):
        raise error
