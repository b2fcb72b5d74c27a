"""Whose a file is. Whoever may write to a folder can put another file under a name in it: a path says nothing of who wrote what is there.

So what is unpickled, appended to or believed is asked for its owner, after it was opened. What the system's administrator owns is trusted, too.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

_ROOT = 0


class ForeignFileError(PermissionError):
    """A file or a folder belongs to somebody else; `strerror` says so."""


def open_own(path: str | os.PathLike[str], flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a file that this user has written, and return its descriptor.

    Raises:
        ForeignFileError: it belongs to somebody else, or is a link.
        OSError: it cannot be opened.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ForeignFileError(errno.EPERM, "it is a link", os.fspath(path)) from None
        raise
    owner = os.fstat(fd).st_uid
    if not _is_trusted(owner):
        os.close(fd)
        raise ForeignFileError(errno.EPERM, f"it belongs to {name_of(owner)}", os.fspath(path))
    return fd


def check_folder(path: str | os.PathLike[str]) -> None:
    """Make sure that a folder is this user's: others cannot put anything under its name but a folder of theirs.

    Raises:
        ForeignFileError: it belongs to somebody else.
        OSError: there is none.
    """
    owner = os.stat(path).st_uid
    if not _is_trusted(owner):
        raise ForeignFileError(errno.EPERM, f"it belongs to {name_of(owner)}", os.fspath(path))


def is_own_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether there is such a folder, and it is this user's."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and _is_trusted(found.st_uid)


def other_writers(path: Path) -> str:
    """Return which folder, this one or one above it, others may write to, so that they can exchange what is below; empty when there is none.

    In a folder with the sticky bit, as /tmp has it, names can be changed by their owners only.
    """
    for folder in (path, *path.parents):
        try:
            found = os.stat(folder)
        except OSError:  # it cannot be seen from here
            continue
        if not _is_trusted(found.st_uid):
            return f"{folder}, which belongs to {name_of(found.st_uid)}"
        if found.st_mode & stat.S_ISVTX:
            continue
        if found.st_mode & stat.S_IWOTH:
            return f"{folder}, where everybody may write"
        if found.st_mode & stat.S_IWGRP and (group := _shared_group(found.st_gid)):
            return f"{folder}, where the group {group} may write"
    return ""


def name_of(uid: int) -> str:
    """Return what a person calls a user."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


def _is_trusted(uid: int) -> bool:
    return uid in {os.geteuid(), _ROOT}


def _shared_group(gid: int) -> str:
    """Return the name of a group that has other members than this user, as far as can be seen; empty for a user's own group."""
    if gid == _ROOT:
        return ""
    own = name_of(os.geteuid())
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return str(gid)  # nobody knows who is in it
    is_own = gid == os.getegid() and group.gr_name == own
    return "" if is_own and set(group.gr_mem) <= {own} else group.gr_name
