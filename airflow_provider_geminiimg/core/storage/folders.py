"""Folders on disk: their modes, and their creation and removal."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass


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


def make_folders(path: str, modes: Modes) -> None:
    """Create a folder and its parents. New folders have their mode and are synced to disk when this returns."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    make_folders(above, modes)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, modes.folder)
        if modes.exact:
            set_mode(path, modes.folder)
        sync_folder(above)


def close_folders(top: str, folder: str) -> None:
    """Make `top`, `folder` and the folders between them private; earlier versions left them open."""
    while f"{folder}/".startswith(f"{top}/"):
        if stat.S_ISDIR(mode := os.lstat(folder).st_mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
            set_mode(folder, PRIVATE.folder)
        folder = os.path.dirname(folder)


def set_mode(target: str | int, mode: int) -> None:
    """Set the mode of a path or an open file, where the file system has modes."""
    with contextlib.suppress(OSError):  # some file systems have no modes, and some folders belong to another user
        os.chmod(target, mode)


def sync_folder(path: str) -> None:
    """Write the entries of a folder to disk, where the file system supports this."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def remove_empty(folder: str) -> bool:
    """Remove a folder if it is empty; return whether it was removed."""
    try:
        os.rmdir(folder)
    except OSError:  # it is not empty, or another process has removed it
        return False
    return True


def is_below(path: str, folder: str) -> bool:
    """Return whether `path` is `folder` or in it, either literally or after symbolic links are resolved."""
    spellings = (os.path.normpath(path), os.path.realpath(path))
    return any(
        f"{spelling}/".startswith(f"{at}/") for spelling in spellings for at in (folder, os.path.realpath(folder))
    )
