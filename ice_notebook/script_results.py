"""The value that a script gives: `ice_notebook.set_result`. Runs in the ranks; anywhere else it does nothing."""

from __future__ import annotations

import os
from typing import Any


class ScriptResult:
    """Keeps the value of one script until it has ended."""

    def __init__(self) -> None:
        self._pid = 0
        self.is_set = False
        self.value: Any = None

    def open(self) -> None:
        """Have values of this process kept from now on."""
        self._pid = os.getpid()

    def set(self, value: Any) -> None:
        """Keep a value in the place of the one before. Forked children have none to give."""
        if os.getpid() == self._pid:
            self.is_set, self.value = True, value


script_result = ScriptResult()


def set_result(value: Any) -> None:
    """Make a value the result of this rank of a script, which the notebook finds in `run.results`; the last one counts.

    It is sent when the script has ended well. In a process that is no rank of a script this does nothing, so that the script runs
    everywhere; a function returns its value.
    """
    script_result.set(value)
