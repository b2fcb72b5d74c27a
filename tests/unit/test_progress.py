"""Loops that are counted: what is told of them, to whom, and what a loop costs."""

from __future__ import annotations

import os
import sys
import threading
import types

import pytest
from support import wait_until

from ice_notebook.context import progress
from ice_notebook.context.current_launcher import EagerContext, RankContext
from ice_notebook.context.progress import Progress, Reporter


@pytest.fixture
def told(monkeypatch):
    """What a rank would tell of its loops."""
    made, found = Reporter(), []
    made.open(found.append)
    monkeypatch.setattr(progress, "reporter", made)
    return found


def test_a_loop_is_told_at_its_beginning_and_its_end(told):
    assert list(RankContext().progress([5, 6, 7], "epoch 1")) == [5, 6, 7]
    assert told == [(("epoch 1", 0, 3),), (("epoch 1", 3, 3),)]


def test_loops_inside_each_other_are_told_together_while_they_run(told):
    for epoch in Progress(range(2), "epoch"):
        for step in Progress(range(3), "step"):
            if step == 1:
                wanted = (("epoch", epoch, 2), ("step", 1, 3))
                wait_until(lambda wanted=wanted: told[-1] == wanted, 10)
    assert told[0] == (("epoch", 0, 2),)
    assert told[-1] == (("epoch", 2, 2),)


def test_a_loop_that_is_stuck_is_told_with_the_step_that_it_is_stuck_in(told):
    for step in Progress(range(1_000)):
        if step == 7:
            wait_until(lambda: told[-1] == (("", 7, 1_000),), 10)


def test_a_loop_that_is_left_is_over(told):
    for item in Progress(range(10), "left"):
        if item == 3:
            break
    list(Progress([1], "next"))
    assert told[-1] == (("next", 1, 1),)


def test_a_total_may_be_unknown_or_given(told):
    list(Progress(iter([1, 2])))
    list(Progress(iter([1, 2]), total=4))
    assert told[1] == (("", 2, None),)
    assert told[3] == (("", 2, 4),)
    assert len(Progress([1, 2])) == 2
    with pytest.raises(TypeError):
        len(Progress(iter([1])))


def test_a_second_pass_counts_anew(told):
    loop = Progress([1, 2], "again")
    list(loop)
    list(loop)
    assert told == [(("again", 0, 2),), (("again", 2, 2),)] * 2


def test_little_is_told_of_many_quick_loops(told):
    for _ in Progress(range(10_000)):
        list(Progress(range(2)))
    assert len(told) < 100


def test_other_threads_and_children_tell_nobody(told):
    thread = threading.Thread(target=lambda: list(Progress([1, 2])))
    thread.start()
    thread.join()
    pid = os.fork()
    if pid == 0:
        list(Progress([1, 2]))
        os._exit(len(told))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert told == []


def test_a_process_that_is_no_rank_has_a_bar_where_there_is_tqdm(monkeypatch):
    drawn = []
    bar = types.ModuleType("tqdm")
    bar.__spec__ = types.SimpleNamespace()
    bar.tqdm = lambda iterable, desc, total: drawn.append((desc, total)) or iterable
    monkeypatch.setitem(sys.modules, "tqdm", bar)
    assert list(EagerContext().progress([1, 2], "epoch", 7)) == [1, 2]
    assert drawn == [("epoch", 7)]
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    assert list(EagerContext().progress([1, 2])) == [1, 2]
