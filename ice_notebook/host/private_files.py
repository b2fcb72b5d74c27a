"""Files and folders that are for their owner alone, whatever the umask takes away."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def make_private_dir(path: Path) -> None:
    """Make a folder. Raises as `Path.mkdir`."""
    path.mkdir(mode=0o700)
    path.chmod(0o700)


def open_private(path: Path, flags: int) -> int:
    """Return a descriptor of a file, which is made if need be. Raises as `os.open`."""
    fd = os.open(path, os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    with contextlib.suppress(PermissionError):  # it was there, and is somebody else's
        os.fchmod(fd, 0o600)
    return fd
