"""Folders on disk: their modes, and their creation and removal."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Modes:
    """The modes of new folders and files.

    :param exact: set the modes exactly; otherwise the umask applies.
    """

    folder: int
    file: int
    exact: bool


PRIVATE = Modes(0o700, 0o600, exact=True)
BY_UMASK = Modes(0o777, 0o666, exact=False)


def make_folders(path: Path, modes: Modes) -> None:
    """Create a folder and its parents. New folders have their mode and are synced to disk when this returns."""
    if path.is_dir():
        return
    make_folders(path.parent, modes)
    with contextlib.suppress(FileExistsError):
        path.mkdir(modes.folder)
        if modes.exact:
            set_mode(path, modes.folder)
        sync_folder(path.parent)


def close_folders(top: Path, folder: Path) -> None:
    """Make `top`, `folder` and the folders between them private; earlier versions left them open."""
    for path in (folder, *folder.parents):
        if not path.is_relative_to(top):
            return
        if stat.S_ISDIR(mode := path.lstat().st_mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
            set_mode(path, PRIVATE.folder)


def set_mode(target: Path | int, mode: int) -> None:
    """Set the mode of a path or an open file, where the file system has modes."""
    with contextlib.suppress(OSError):  # some file systems have no modes, and some folders belong to another user
        os.chmod(target, mode)  # noqa: PTH101 - it may be an open file


def sync_folder(path: Path) -> None:
    """Write the entries of a folder to disk, where the file system supports this."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def remove_empty(folder: Path, top: Path) -> None:
    """Remove `folder` if it is empty, and then the folders above it up to `top`, which stays."""
    with contextlib.suppress(OSError):  # a folder is not empty, or another process has removed it
        while folder != top:
            folder.rmdir()
            folder = folder.parent
