"""Real agents and CPU ranks. A run that a test launches must leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import Kernel, end_all

from ice_notebook import ElasticLauncher
from ice_notebook.pool import pool
from ice_notebook.run import Run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/launch/" in str(item.path):
            item.add_marker(pytest.mark.launch)


@pytest.fixture
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """Return `start(function, *args, n=2, **options)`, which begins a run on CPU ranks and returns at once.

    A module whose tests do not depend on how ranks are started says `START_METHOD = "forkserver"`: its launches take a tenth of the time.
    """
    runs: list[Run] = []
    method = getattr(request.module, "START_METHOD", "spawn")
    if method == "forkserver":
        monkeypatch.setattr(pool(), "default", "auto")  # the server stays from one launch to the next

    def begin(function: Callable[..., Any], *args: Any, n: int = 2, **options: Any) -> Run:
        launcher = ElasticLauncher(**{"devices": f"cpu:0-{n - 1}", "ui": "none", "start_method": method, **options})
        run = launcher.start(function, *args)
        runs.append(run)
        return run

    yield begin
    end_all(runs)


@pytest.fixture
def launch(start: Callable[..., Run]) -> Callable[..., Run]:
    """Return `launch(function, *args, n=2, **options)`, which waits for the end of the run and never raises for it."""

    def begin_and_wait(function: Callable[..., Any], *args: Any, **options: Any) -> Run:
        run = start(function, *args, **options)
        assert run.wait(120)
        return run

    return begin_and_wait


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """A fresh kernel with the extension loaded."""
    made = Kernel()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel for several tests of a module that leave it as they found it."""
    # It is made before the tests' own cache is.
    made = Kernel(env={**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))})
    yield made
    made.close()
