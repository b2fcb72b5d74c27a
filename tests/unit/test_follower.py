"""How often views are told, and what of a rank's output reaches them."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
from histories import History, plan, succeeded

from ice_notebook.kernel.follower import GATHER_S, Follower, Pace
from ice_notebook.kernel.run import Run
from ice_notebook.runs.log_files import END_BYTES
from ice_notebook.runs.logs import RunLogs
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import Happened, Output


def taken_at(pace: Pace, begin: float, end: float, step: float = 0.01) -> list[float]:
    """Return when it happened for somebody who always wants it to."""
    times = []
    for i in range(round((end - begin) / step)):
        now = begin + i * step
        if now >= pace.free_at:
            pace.take(now)
            times.append(now)
    return times


def test_a_burst_comes_at_once_and_then_the_steady_beat():
    times = taken_at(Pace(0.1, burst=3), 100.0, 101.0)
    assert [round(time - 100, 2) for time in times[:3]] == [0.0, 0.01, 0.02]
    assert len(times) == 3 + 9  # one more every tenth of a second


def test_a_pause_earns_one_burst_however_long_it_was():
    pace = Pace(0.1, burst=3)
    taken_at(pace, 100.0, 101.0)
    assert len(taken_at(pace, 200.0, 200.05)) == 3


def test_without_a_burst_it_happens_once_an_interval():
    assert len(taken_at(Pace(0.1, burst=1), 100.0, 101.0)) == 10


class Heard:
    """As much of a run as takes output."""

    def __init__(self, folder):
        self.plan = type("Plan", (), {"run_id": "heard"})()
        self.logs = RunLogs(folder.output_log)
        self.events = []

    def take_event(self, event):
        self.events.append(event)


class Told:
    """A view that notes what there was to show whenever it was told."""

    def __init__(self, run):
        self.run = run
        self.looks = []

    def update(self):
        self.looks.append((len(self.run.events), self.run.logs.tail(0, 1)))


def output(missed, body=b""):
    return Output(attempt=0, rank=0, missed=missed, body=body)


@pytest.mark.parametrize("n_lines", [10, 20_000])
def test_a_ranks_last_words_are_shown_although_the_agent_could_not_send_them(tmp_path, n_lines):
    folder = RunFolder(tmp_path)
    log = folder.output_log(0, 0)
    log.parent.mkdir(parents=True)
    begins, rest = b"first\r\nsecond and", b" half\r\n" + b"a line\r\n" * n_lines + b"last words\r\n"
    log.write_bytes(begins + rest)
    run = Heard(folder)
    follower = Follower(run, folder, None)
    follower._from_agent.take(output(0, begins))
    follower._from_agent.take(output(len(rest)))
    assert run.logs.tail(0, 2) == ["a line", "last words"]
    chunks = run.logs.since({}).chunks
    assert chunks[-1].end == n_lines + 3, "all lines are counted"
    assert len(rest) < END_BYTES or chunks[-1].first > 2, "and those that are not shown are a gap"


def test_a_run_whose_agent_did_not_wait_for_us_ended_as_its_journal_says_with_all_it_printed(tmp_path):
    history = succeeded(["1", "2"])
    (tmp_path / "events.jsonl").write_bytes(history.journal)
    run = Run(plan(2, folder=str(tmp_path), payload=str(tmp_path / "payload")), RunFolder(tmp_path))
    for rank in (0, 1):
        log = run._folder.output_log(0, rank)
        log.parent.mkdir(parents=True)
        log.write_text("first line\r\nsecond line\r\nlast words\r\n")
    follower = Follower(run, RunFolder(tmp_path), SimpleNamespace(close=lambda _: 0))
    for event in history.events[:3]:
        follower._from_agent.take(Happened(event=event))
    follower._from_agent.take(output(0, b"first line\r\nseco"))
    follower._close_agent()
    assert (run.done(), run.state) == (True, history.state)
    assert [run.logs.tail(rank, 9) for rank in (0, 1)] == [["first line", "second line", "last words"]] * 2
    assert (tmp_path / "events.jsonl").read_bytes() == history.journal  # nobody says it twice


def test_an_agent_that_died_in_the_middle_of_a_run_is_said_to_have(tmp_path):
    history = History(1).begin()
    (tmp_path / "events.jsonl").write_bytes(history.journal)
    run = Run(plan(1, folder=str(tmp_path), payload=str(tmp_path / "payload")), RunFolder(tmp_path))
    Follower(run, RunFolder(tmp_path), SimpleNamespace(close=lambda _: -9))._close_agent()
    assert (run.done(), run.phase, run.state.end_reason) == (True, "failed", "the agent ended with signal 9")
    assert run._folder.read_events()[-1].reason == "the agent ended with signal 9"


def test_views_hear_of_a_beginning_with_the_first_line(tmp_path):
    run = Heard(RunFolder(tmp_path))
    frames = []
    agent = SimpleNamespace(deadline=None, channel=SimpleNamespace(receive_ready=lambda: [frames.pop(0)]))
    follower, view = Follower(run, RunFolder(tmp_path), agent), Told(run)
    follower.subscribe(view)
    follower._tell_views()
    assert view.looks == [(0, [])]
    frames += [Happened(event=p.RankRunning(at=1.0, attempt=0, rank=rank)) for rank in range(2)]
    follower._on_agent()
    follower._on_agent()
    assert 0 < follower._select_timeout() <= GATHER_S
    follower._news_due += 60  # as if no time passed from here on
    follower._tell_views()
    assert view.looks == [(0, [])]
    frames.append(output(0, b"a line\r\n"))
    follower._on_agent()
    assert follower._select_timeout() == 0
    follower._tell_views()
    assert view.looks == [(0, []), (2, ["a line"])]
    frames.append(Happened(event=p.RankRunning(at=1.0, attempt=0, rank=2)))
    follower._on_agent()
    follower._news_due = time.monotonic()  # nothing else came
    follower._tell_views()
    assert view.looks[2:] == [(3, ["a line"])]


def test_what_is_still_to_be_shown_of_a_run_that_is_over_holds_no_descriptor(tmp_path):
    class Wants:
        """A view that wants to be called again, as a panel does until a page has confirmed the end."""

        def __init__(self):
            self.calls = 0

        def update(self):
            self.calls += 1
            return 0.01 if self.calls < 5 else None

    before = set(os.listdir("/proc/self/fd"))
    followers = [Follower(Heard(RunFolder(tmp_path)), RunFolder(tmp_path), None) for _ in range(10)]
    views = [Wants() for _ in followers]
    for follower, view in zip(followers, views, strict=True):
        assert follower.subscribe(view)
        follower.start()
    assert set(os.listdir("/proc/self/fd")) <= before, "others may be collected meanwhile"
    for follower, view in zip(followers, views, strict=True):
        follower.join(30)
        assert view.calls == 5
        assert not follower.subscribe(view), "it is over: somebody else must show it"
