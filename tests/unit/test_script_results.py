"""The value that a script gives."""

from __future__ import annotations

import os

from ice_notebook.context import script_results
from ice_notebook.context.script_results import ScriptResult, set_result


def test_a_process_that_is_no_rank_of_a_script_gives_nothing(monkeypatch):
    given: list[object] = []
    monkeypatch.setattr(script_results, "script_result", ScriptResult())
    set_result([1, 2])  # and it is no error
    script_results.script_result.open(given.append)
    assert given == []
    set_result(3)
    assert given == [3]


def test_every_value_is_given_at_once_and_none_is_one():
    given: list[object] = []
    result = ScriptResult()
    result.set("before there is anybody to take it")
    result.open(given.append)
    for value in ("an early one", None):
        result.set(value)
    assert given == ["an early one", None]


def test_a_forked_child_has_none_to_give(monkeypatch):
    given: list[object] = []
    result = ScriptResult()
    result.open(given.append)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    result.set(3)
    assert given == []
