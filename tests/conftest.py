"""Every test has a cache of its own, no ranks stand by, and it finds the environment as a user's: without what continuous integration sets."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # support.py, fake_run.py

# What stands by after a launch would take the next test's processor time; the tests of it switch it on.
os.environ["ICE_NOTEBOOK_STANDBY"] = "off"
# It makes Python and C flush everything at once, and hides every fault of buffering.
os.environ.pop("PYTHONUNBUFFERED", None)
# A shell that runs the tests in the background, or under nohup, has these ignored, and every program that a test starts would inherit that.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder cache that nobody else has."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is loaded
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have the tests of one file run in one worker and in order, and so all that launch, and all that need the browser.

    Those of a kind share what takes long to start, or watch the whole machine.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByKind(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            kind = Path(file).parent.name
            return kind if kind in {"browser", "launch"} else file

    return ByKind(config, log)
