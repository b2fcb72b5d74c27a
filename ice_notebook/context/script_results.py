"""The value that a script gives: `ice_notebook.set_result`. Runs in the ranks; anywhere else it does nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any


class ScriptResult:
    """Passes on what one script gives, one value after the other."""

    def __init__(self) -> None:
        self._pid = 0
        self._giving = threading.RLock()  # a signal handler may give one while another is being given
        self._give: Callable[[Any], None] = lambda _: None

    def open(self, give: Callable[[Any], None]) -> None:
        """Have values of this process given from now on: `give` keeps one in the place of the one before."""
        self._pid, self._give = os.getpid(), give

    def set(self, value: Any) -> None:
        """Give a value. Forked children have none to give."""
        if os.getpid() == self._pid:
            with self._giving:
                self._give(value)


script_result = ScriptResult()


def set_result(value: Any) -> None:
    """Make a value the result of this rank of a script, which the notebook finds in `run.results`; the last one counts.

    It is written when this returns, as it is now: what is changed in it later is not seen. It counts when the script ends with exit code 0,
    however that comes about. In a process that is no rank of a script this does nothing, so that the script runs everywhere; a function
    returns its value.
    """
    script_result.set(value)
