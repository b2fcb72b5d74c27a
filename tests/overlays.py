"""Older packages that a process may have instead of the environment's: folders that stand first on its path.

`tests/older/*.txt` name them, `run-tests` puts each into a folder of its own in the virtual environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parent / "older"
INSTALLED = Path(sys.prefix) / "older"


def is_ci() -> bool:
    """Return whether this is continuous integration, where nothing may be missing."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def fail_in_ci_or_skip(why: str) -> None:
    """End the test: something that it needs is missing here."""
    if is_ci():
        pytest.fail(why)
    pytest.skip(why)


def packages(name: str) -> Path:
    """Return the folder of `tests/older/<name>.txt`; the test fails or is skipped where it was not installed as it stands there."""
    wanted, folder = REQUIREMENTS / f"{name}.txt", INSTALLED / name
    installed = folder / "requirements.txt"
    if not installed.is_file() or installed.read_bytes() != wanted.read_bytes():
        fail_in_ci_or_skip(f"{name} is not installed beside the environment; ./run-tests does that.")
    return folder


def kernels() -> dict[str, Path]:
    """Return the folders of older ipykernels by their names, as far as they are installed."""
    return {file.stem: INSTALLED / file.stem for file in REQUIREMENTS.glob("ipykernel-*.txt") if (INSTALLED / file.stem).is_dir()}
