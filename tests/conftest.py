"""Every test has a cache of its own, no ranks stand by, and it finds the environment as a user's: without what continuous integration sets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # support.py, fake_run.py

# What stands by after a launch would take the next test's processor time; the tests of it switch it on.
os.environ["ICE_NOTEBOOK_STANDBY"] = "off"
# It makes Python and C flush everything at once, and hides every fault of buffering.
os.environ.pop("PYTHONUNBUFFERED", None)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder cache that nobody else has."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path
