"""The disk that all workers share.

Invariants: an object appears completely or not at all (a synced temporary file in the same folder gets the final name).
One of several creators wins (`os.link` never replaces). A writer that replaces an object holds the root's lock, which
excludes threads and processes. Everything under the root is accessible to its owner only, regardless of the umask.
Times come from the disk, which may differ from this machine's clock.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import fcntl
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from airflow_provider_geminiimg.core.storage.base import (
    OURS,
    Backend,
    Blob,
    Content,
    Store,
    checked_key,
    sha256,
)
from airflow_provider_geminiimg.core.storage.disk import (
    ABSENT,
    NoLinksError,
    create_file,
    link,
    move_to_free_name,
    read_file,
    temporary_file,
)
from airflow_provider_geminiimg.core.storage.folders import (
    BY_UMASK,
    PRIVATE,
    Modes,
    close_folders,
    is_below,
    make_folders,
    remove_empty,
    sync_folder,
)
from airflow_provider_geminiimg.core.storage.uris import Location
from airflow_provider_geminiimg.exceptions import StorageError

LOCK_SECONDS = 30.0
"""Seconds that a writer waits for the root's lock. The lock is held for about a millisecond, or `_HELD_SECONDS`."""

_HELD_SECONDS = 0.02  # for which a removal of many files holds the lock, and for one more file of each thread
_FREE_SECONDS = 0.011  # until it locks again: the lock has no queue, and who waits for it looks every 10 ms at most
_TURN_SECONDS = 1.0  # that a thread waits for the other threads of its process before it tries the file's lock
_FOLDERS = 1000  # of images, whose modes are remembered
_VANISHED = 10  # how often a missing folder is made for one new object

IMAGES = "images"
"""Folder under the root for images without an output path of their own."""

_LOCKS: dict[str, threading.RLock] = {}  # of the threads of this process, by path
os.register_at_fork(after_in_child=_LOCKS.clear)  # a fork copies their states, without the threads that hold them

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


class LocalStore(Store):
    """A folder. New folders have the mode 0700 and files 0600, regardless of the umask.

    :param root: its absolute path; created with the first write.
    """

    concurrency = 8  # some file systems take a millisecond for an operation

    def __init__(self, root: str) -> None:
        self._root = os.path.normpath(root)
        super().__init__(f"file://{self._root}")
        self._lock_path = f"{self._root}/.{OURS}lock"

    def create(self, key: str, data: bytes) -> str | None:
        path = self._path(key)
        with _failures("Creating", path):
            for attempt in range(_VANISHED + 1):
                try:
                    if attempt:
                        make_folders(os.path.dirname(self._root), BY_UMASK)
                        make_folders(os.path.dirname(path), PRIVATE)
                    return self._create(path, data)
                except FileNotFoundError:  # there was no folder yet, or `delete_all` has just removed an empty one
                    if attempt == _VANISHED:
                        raise
        raise AssertionError("unreachable")

    def _create(self, path: str, data: bytes) -> str | None:
        with temporary_file(path, data, PRIVATE) as temporary:
            return sha256(data) if link(temporary, path) else None

    def read(self, key: str, limit: int | None = None) -> Blob | None:
        path = self._path(key)
        with _failures("Reading", path):
            found = read_file(path, limit)
            if found is None:
                return None
            data, changed = found
            return Blob(data, sha256(data), max(0.0, self.now() - changed))

    def replace(self, key: str, data: bytes, version: str) -> str | None:
        path = self._path(key)
        with _failures("Replacing", path):
            try:
                with temporary_file(path, data, PRIVATE) as temporary:
                    with self._locked():
                        found = read_file(path)
                        if found is None or sha256(found[0]) != version:
                            return None
                        os.replace(temporary, path)
                    sync_folder(os.path.dirname(path))
            except ABSENT:  # without its folder, the object does not exist
                return None
            return sha256(data)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _failures("Removing", path), contextlib.suppress(*ABSENT):
            os.stat(path)
            with self._locked():
                os.unlink(path)

    def delete_all(self, keys: Iterable[str]) -> None:
        """See `Store.delete_all`. Folders that are empty then are removed, too."""
        paths = [self._path(key) for key in keys]
        self._each_locked(paths, os.unlink)
        self._remove_empty_folders(paths)

    def _remove_empty_folders(self, paths: Iterable[str]) -> None:
        folders = set(map(os.path.dirname, paths))
        while folders := set(filter(None, self.map(self._folder_above_removed, list(folders)))):
            pass

    def _folder_above_removed(self, folder: str) -> str | None:
        """Remove a folder if it is empty, and return the folder above it, which may be empty now."""
        return os.path.dirname(folder) if folder != self._root and remove_empty(folder) else None

    def delete_where(self, keys: Iterable[str], is_wanted: Callable[[str, Blob], bool]) -> None:
        paths = {self._path(key): key for key in keys}

        def remove(path: str) -> None:
            found = read_file(path)
            if found is not None and is_wanted(paths[path], Blob(found[0], sha256(found[0]), 0.0)):
                os.unlink(path)

        self._each_locked(list(paths), remove)

    def delete_unchanged(self, versions: Mapping[str, str]) -> set[str]:
        """See `Store.delete_unchanged`. Folders that are empty then are removed, too."""
        changed = set()

        def is_unchanged(key: str, blob: Blob) -> bool:
            if blob.version != versions[key]:
                changed.add(key)
            return blob.version == versions[key]

        self.delete_where(versions, is_unchanged)
        self._remove_empty_folders(map(self._path, versions))
        return changed

    def _each_locked(self, paths: Sequence[str], remove: Callable[[str], None]) -> None:
        """Remove files while holding the root's lock, which others get in between."""
        rest, are_left = iter(paths), bool(paths)

        def take(end: float) -> bool:
            """Remove some files, and return whether more may be left."""
            for path in rest:
                with _failures("Removing", path), contextlib.suppress(*ABSENT):
                    remove(path)
                if time.monotonic() > end:
                    return True
            return False

        while are_left:
            with _failures("Locking", self._lock_path), self._locked():
                ends = [time.monotonic() + _HELD_SECONDS] * min(self.concurrency, len(paths))
                are_left = any(self.map(take, ends))
            if are_left:
                time.sleep(_FREE_SECONDS)

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        folder, slash, _ = prefix.rpartition("/")
        return self._below(self._path(folder) if slash else self._root, folder + slash, prefix, after)

    def _below(self, path: str, folder: str, prefix: str, after: str) -> Iterator[str]:
        """Walk through a folder in the order of the keys; folders without a wanted key are not read.

        :param folder: its path in keys, with a slash at its end; empty for the root.
        """
        names = _listed(path)
        rest = after.removeprefix(folder) if after.startswith(folder) else ""
        begin, slash, _ = rest.partition("/")
        for name in names[bisect.bisect_left(names, os.fsencode(begin + slash), key=os.fsencode) :]:
            key = folder + name
            is_before = os.fsencode(key) <= os.fsencode(after)
            if not name.endswith("/"):
                if key.startswith(prefix) and not is_before:
                    yield key
            elif key.startswith(prefix[: len(key)]) and (not is_before or after.startswith(key)):
                yield from self._below(f"{self._root}/{key[:-1]}", key, prefix, after)

    def folders(self, folder: str) -> list[str]:
        start = self._path(folder)
        with _failures("Listing", start):
            try:
                return sorted(name for name in os.listdir(start) if os.path.isdir(f"{start}/{name}"))
            except ABSENT:
                return []

    def _path(self, key: str) -> str:
        return f"{self._root}/{checked_key(key)}"

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
        """Hold the root's lock, which is that of a file.

        The threads of this process wait for each other first, because nobody wakes those who wait for the lock of a
        file: they try again and again. A lock that a killed call has left costs each later one `_TURN_SECONDS`.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        of_process = _LOCKS.setdefault(self._lock_path, threading.RLock())
        try:  # a signal handler may raise at any line
            of_process.acquire(timeout=_TURN_SECONDS)
            with self._lock_file() as handle:
                while not _try_lock(handle):
                    if time.monotonic() > deadline:
                        raise StorageError(f"{self._lock_path} has been locked for {LOCK_SECONDS:.0f} s.")
                    time.sleep(random.uniform(0.001, 0.01))
                try:
                    yield
                finally:
                    # Closing is not enough: a process that was forked in the meantime holds a copy of the handle.
                    fcntl.flock(handle, fcntl.LOCK_UN)
        finally:
            try:  # noqa: SIM105 - a call of `suppress` could be interrupted before the release
                of_process.release()
            except RuntimeError:  # this thread does not hold it
                pass

    @contextlib.contextmanager
    def _lock_file(self) -> Iterator[int]:
        try:
            handle = os.open(self._lock_path, os.O_RDWR)
        except FileNotFoundError:
            try:
                handle = create_file(self._lock_path, os.O_RDWR, PRIVATE)
            except FileExistsError:  # another process was first
                handle = os.open(self._lock_path, os.O_RDWR)
        try:
            yield handle
        finally:
            os.close(handle)


class DiskFiles(Backend):
    """Users' files. Under the root they are accessible to their owner only; elsewhere the umask applies.

    :param warn: receives a text about missing features of a file system.
    :param root: path of the root, if it is on disk.
    """

    def __init__(self, warn: Callable[[str], None], root: str | None = None) -> None:
        self._warn = warn
        self._root = root
        self._modes: dict[str, Modes] = {}  # of the folders that were written to

    def read(self, place: Location, max_bytes: int) -> bytes | None:
        with _failures("Reading", place.file):
            found = read_file(place.file, max_bytes)
        return None if found is None else found[0]

    def create(self, place: Location, data: bytes, media_type: str, digest: str) -> bool:
        file = place.file
        with _failures("Writing", file):
            modes = self._prepare(file)
            with temporary_file(file, data, modes) as temporary:
                try:
                    return link(temporary, file)
                except NoLinksError:
                    written = move_to_free_name(temporary, file, modes)
        self._warn(
            f"{os.path.dirname(file)} is on a file system without hard links: a file replaces an empty file of its "
            "name. If the worker is killed at that moment, the empty file remains."
        )
        return written

    def sha256(self, place: Location) -> str | None:
        with _failures("Reading", place.file):
            found = read_file(place.file)
        return None if found is None else sha256(found[0])

    def put(self, place: Location, content: Content, media_type: str) -> None:
        file = place.file
        with _failures("Writing", file):
            with temporary_file(file, content, self._prepare(file)) as temporary:
                os.replace(temporary, file)
            sync_folder(os.path.dirname(file))

    def exists(self, place: Location) -> bool:
        with _failures("Looking for", place.file):
            try:
                return stat.S_ISREG(os.stat(place.file).st_mode)
            except ABSENT:
                return False

    def remove(self, place: Location) -> None:
        with _failures("Removing", place.file), contextlib.suppress(FileNotFoundError):
            os.unlink(place.file)

    def _prepare(self, file: str) -> Modes:
        """Create the folder of a new file, and return the modes for it. What holds for a folder is found out once."""
        folder = os.path.dirname(file)
        modes = self._modes.get(folder)
        if modes is None or not os.path.isdir(folder):
            if len(self._modes) >= _FOLDERS:
                self._modes.clear()
            modes = self._modes[folder] = self._made(folder)
        return modes

    def _made(self, folder: str) -> Modes:
        if self._root is None or not is_below(folder, self._root):
            make_folders(folder, BY_UMASK)
            return BY_UMASK
        make_folders(os.path.dirname(self._root), BY_UMASK)
        make_folders(folder, PRIVATE)
        if is_below(folder, f"{self._root}/{IMAGES}"):
            close_folders(f"{self._root}/{IMAGES}", folder)
        return PRIVATE


@contextlib.contextmanager
def _failures(doing: str, path: str) -> Iterator[None]:
    """Convert any failure of the operating system into a `StorageError` that names the operation and the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{doing} {path} failed: {error.strerror or type(error).__name__}.",
            retryable=error.errno not in _REFUSALS,
            hint="Check that the disk is mounted and writable for the user that runs the worker.",
        ) from error


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _listed(path: str) -> list[str]:
    """Return the names of the files in a folder, and of its folders with a slash at their end, in byte order."""
    with _failures("Listing", path):
        try:
            with os.scandir(path) as entries:
                names = [name for entry in entries if OURS not in entry.name and (name := _name_of(entry))]
        except ABSENT:
            return []
    names.sort(key=None if all(map(str.isascii, names)) else os.fsencode)
    return names


def _name_of(entry: os.DirEntry[str]) -> str | None:
    if entry.is_dir(follow_symlinks=False):
        return f"{entry.name}/"
    return None if entry.is_symlink() and entry.is_dir() else entry.name
