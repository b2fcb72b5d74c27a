"""A run that goes on, opened from its folder: it says so, its end can be waited for, and it can be stopped."""

from __future__ import annotations

import gc
import weakref

import pytest
from support import HANG_S, wait_until

from ice_notebook import Run
from ice_notebook.errors import ControlError


def two_steps(gate):
    import os
    import time

    print("one", flush=True)
    while not os.path.exists(gate):
        time.sleep(0.01)
    print("two", flush=True)
    return int(os.environ["RANK"])


def wait_for_ever():
    import time

    print("begun", flush=True)
    try:
        time.sleep(10_000)
    finally:
        print("cleaned up", flush=True)


def test_a_run_that_goes_on_is_not_done_and_its_end_is_waited_for(start, tmp_path):
    run = start(two_steps, tmp_path / "gate", dist_init="no")
    wait_until(lambda: "one" in run.output(1))
    opened = Run.open(run.folder)
    assert (opened.done(), opened.wait(0.1), opened.phase) == (False, False, "running")
    assert repr(opened).startswith("Run: running")
    assert "one" in opened.output(1)
    (tmp_path / "gate").touch()
    assert opened.wait(HANG_S)
    assert (opened.done(), opened.phase, dict(opened.results)) == (True, "succeeded", {0: 0, 1: 1})
    assert opened.output(1).split() == ["one", "two"]
    assert opened.logs.tail(1, 9) == ["one", "two"]


@pytest.mark.parametrize(("way", "left"), [("stop", ["begun", "cleaned up"]), ("kill", ["begun"])])
def test_whoever_has_opened_it_can_stop_it(start, way, left):
    run = start(wait_for_ever, dist_init="no")
    wait_until(lambda: all("begun" in run.output(rank) for rank in (0, 1)))
    opened = Run.open(run.folder)
    getattr(opened, way)()
    assert opened.wait(HANG_S)
    assert run.wait(HANG_S)
    assert opened.phase == run.phase
    assert opened.output(0).split("\n")[:-1] == [f"{line}\r"[:-1] for line in left]


def test_one_whose_agent_cannot_be_reached_is_refused_in_a_sentence(start, monkeypatch):
    run = start(wait_for_ever, dist_init="no")
    wait_until(lambda: run.state.agent is not None)
    monkeypatch.setattr("ice_notebook.kernel.onlooker.is_alive", lambda _: None)  # of another container, say
    opened = Run.open(run.folder)
    assert not opened.done(), "its owner holds it"
    with pytest.raises(ControlError, match="is done by a process that cannot be reached from here"):
        opened.stop()
    run.kill()
    assert opened.wait(HANG_S)


def test_an_opened_run_that_nobody_has_any_more_is_not_looked_at(start):
    run = start(wait_for_ever, dist_init="no")
    wait_until(lambda: run.state.agent is not None)
    opened = Run.open(run.folder)
    thread, gone = opened._onlooker, weakref.ref(opened)
    del opened
    wait_until(lambda: gc.collect() is not None and gone() is None)
    thread.join(HANG_S)
    assert not thread.is_alive()
