"""The value that a script gives."""

from __future__ import annotations

import os

from ice_notebook.script_results import ScriptResult, script_result, set_result


def test_a_process_that_is_no_rank_of_a_script_keeps_nothing():
    set_result([1, 2])
    assert not script_result.is_set


def test_the_last_value_counts_and_none_is_one():
    result = ScriptResult()
    result.open()
    assert not result.is_set
    for value in ("an early one", None):
        result.set(value)
    assert (result.is_set, result.value) == (True, None)


def test_a_forked_child_has_none_to_give(monkeypatch):
    result = ScriptResult()
    result.open()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    result.set(3)
    assert not result.is_set
