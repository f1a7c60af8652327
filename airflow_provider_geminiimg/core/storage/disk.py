"""Files on disk: they appear completely or not at all, are synced, and never replace another one by a link.

Paths are texts, and each operation makes as few system calls as it can: each of them releases the interpreter's lock,
which the event loop and up to 32 storage threads compete for.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
from collections.abc import Iterator

from airflow_provider_geminiimg.core.storage.base import OURS, Content
from airflow_provider_geminiimg.core.storage.folders import Modes, set_mode, sync_folder
from airflow_provider_geminiimg.exceptions import StorageError

ABSENT = (FileNotFoundError, NotADirectoryError)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class NoLinksError(StorageError):
    """The file system has no hard links."""


@contextlib.contextmanager
def temporary_file(path: str, content: Content, modes: Modes) -> Iterator[str]:
    """Context manager for a synced file with `content` beside `path`; removed at the end unless it was moved."""
    temporary = f"{os.path.dirname(path)}/.{OURS}{os.urandom(16).hex()}"
    handle = create_file(temporary, os.O_WRONLY, modes)
    try:
        try:
            _write(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _write(handle: int, content: Content) -> None:
    if not isinstance(content, bytes):
        with os.fdopen(handle, "wb", closefd=False) as file:  # joins small pieces
            file.writelines(content)
        return
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def create_file(path: str, flags: int, modes: Modes) -> int:
    """Open a new file; fail if it exists."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | flags, modes.file)
    if modes.exact:
        set_mode(handle, modes.file)
    return handle


def link(temporary: str, path: str) -> bool:
    """Give a temporary file its final name; return False if the name is taken."""
    folder = os.path.dirname(path)
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network file system may have linked it, lost the answer and tried again: then the file has two names.
        if os.stat(temporary).st_nlink < 2:
            return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise NoLinksError(
            f"{folder} is on a file system without hard links, where two writers could replace each other.",
            retryable=False,
            hint="Use another disk, or name a bucket: s3://, gs:// or abfs://.",
        ) from error
    sync_folder(folder)
    return True


def move_to_free_name(temporary: str, path: str, modes: Modes) -> bool:
    """Give a temporary file its final name without a link. An empty file reserves the name until then."""
    try:
        os.close(create_file(path, os.O_WRONLY, modes))
    except FileExistsError:
        return False
    try:
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise
    sync_folder(os.path.dirname(path))
    return True


def read_file(path: str, limit: int | None = None) -> tuple[bytes, float] | None:
    """Return content (at most `limit` + 1 bytes) and modification time; None only if the file does not exist."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without O_NONBLOCK, a named pipe would block
    except ABSENT:
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{path} is not a regular file.", retryable=False)
        return _content(handle, found.st_size, limit), found.st_mtime
    finally:
        os.close(handle)


def _content(handle: int, size: int, limit: int | None) -> bytes:
    """Read a file to its end, or up to `limit` + 1 bytes."""
    parts: list[bytes] = []
    left = math.inf if limit is None else limit + 1
    while left and (part := os.read(handle, int(min(left, size + 1)))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
