"""Real agents and CPU ranks. A run that a test launches must leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import Kernel, end_all

from ice_notebook import ElasticLauncher
from ice_notebook.kernel.pool import pool
from ice_notebook.kernel.run import Run


def _forks(module: object) -> bool:
    return getattr(module, "START_METHOD", "forkserver") == "forkserver"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/launch/" in str(item.path):
            item.add_marker(pytest.mark.launch)


@pytest.fixture(autouse=True)
def keep_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the fork server stay from one launch to the next, where ranks are forked."""
    if _forks(request.module):
        monkeypatch.setattr(pool(), "default", "auto")


@pytest.fixture(scope="session", autouse=True)
def leave_nothing() -> Iterator[None]:
    yield
    pool().stop()


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Run]]:
    """Return `start(function, *args, n=2, **options)`, which begins a run on CPU ranks and returns at once.

    Ranks are forked, which takes a tenth of the time: nearly everything holds for them as for fresh ones. A test that is about fresh ones says
    `start_method="spawn"`, and also `standby="off"` if its agent is to be fresh; a module whose tests all are says `START_METHOD = "spawn"`.
    """
    runs: list[Run] = []
    method = "forkserver" if _forks(request.module) else "spawn"

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
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """A fresh kernel with the extension loaded."""
    made = Kernel(forks=_forks(request.module))
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel for several tests of a module that leave it as they found it."""
    # It is made before the tests' own cache is.
    made = Kernel(forks=_forks(request.module), env={**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))})
    yield made
    made.close()
