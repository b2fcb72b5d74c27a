"""When the kernel's part of a launch has come how far. Runs in the kernel that is measured.

The product is not asked to note times: two of its functions are wrapped from here, at a cost of microseconds, and a value that is loaded
in a rank says when.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from ice_notebook.kernel.run import Run
from ice_notebook.runs.store import RunFolder

noted: dict[str, float] = {}  # of the last launch


class Moment:
    """Arrives, wherever it is unpickled, as the time of that."""

    def __reduce__(self) -> tuple[Callable[[], float], tuple[()]]:
        return time.time, ()


def watch() -> None:
    """Note from now on when a launch's plan is written, and when its run is over and the kernel knows."""
    RunFolder.write_plan = _noting("planned", RunFolder.write_plan)  # type: ignore[method-assign]
    Run.end = _noting("known", Run.end)  # type: ignore[method-assign]


def _noting(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        noted[key] = time.time()
        return value

    return noting
