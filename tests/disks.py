"""Disks that get full: one that a test plays, and a small file system."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

FULL = os.strerror(errno.ENOSPC)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


class Disk:
    """Has room for so many bytes, whoever writes, and takes at most `most` of them in one write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = self.most = 1 << 30
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        taken = min(self.room, self.most, len(data))
        if not taken:
            raise OSError(errno.ENOSPC, FULL)
        self.room -= taken
        return self._write(fd, bytes(data)[:taken])


class mounted:
    """A file system of its own with a size in MiB."""

    def __init__(self, path: Path, size_mib: int) -> None:
        self.path, self.size_mib = path, size_mib

    def __enter__(self) -> None:
        self.path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.size_mib}m", "tmpfs", str(self.path)], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)  # values may still be mapped
