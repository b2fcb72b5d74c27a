"""A run that is waited for: what interrupts, signals and a reader that goes away do to it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from histories import History, plan

from ice_notebook.host.interrupts import Interrupts
from ice_notebook.runs.state import Phase, RunState
from ice_notebook.ui.watching import watch
from ice_notebook.wire import protocol as p

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


class WaitedRun:
    """A run that is stopped when somebody ends it."""

    def __init__(self) -> None:
        self.plan = plan(1)
        self.history = History(1).begin()
        self.asked: list[tuple[str, bool, int]] = []
        self.relayed: list[int] = []
        self.unshown = ""

    @property
    def state(self) -> RunState:
        return self.history.state

    @property
    def phase(self) -> Phase:
        return self.state.phase

    def exception(self) -> None:
        return None

    def done(self) -> bool:
        return self.phase.is_final

    def when_done(self, callback: Callable[[], None]) -> None:
        pass

    def relay(self, number: int) -> None:
        self.relayed.append(number)

    def ask_to_stop(self, reason: str, *, is_urgent: bool, by: int = INT) -> None:
        if not self.asked:
            self.history.stop(reason)
        self.asked.append((reason, is_urgent, by))


class Steps(Interrupts):
    """Does the next of some things, or brings the next signal, whenever somebody waits for one. At the end of them the run ends."""

    def __init__(self, run: WaitedRun, *steps: int | Callable[[], object]) -> None:
        super().__init__()
        self.run, self.steps = run, list(steps)

    def wait(self, timeout_s: float | None = None) -> int:
        if not self.steps:
            if not self.run.done():
                self.run.history.end(p.Outcome.STOPPED)
            return 0
        step = self.steps.pop(0)
        if callable(step):
            step()
            return 0
        self.take(step)
        return super().wait(0)


class LinesView:
    """A view that prints."""

    def __init__(self) -> None:
        self.has_lost_reader = False
        self.waits = False
        self.fault = ""
        self.n_waits = 0
        self.n_left = 0  # parts that are still to be printed

    def lose_reader(self) -> None:
        self.has_lost_reader = True

    def flush(self, limit_s: float | None = None) -> bool:
        self.n_left = max(0, self.n_left - 1)
        return self.n_left > 0 or self.waits

    def wait(self, timeout_s: float) -> None:
        self.n_waits += 1


@pytest.mark.parametrize(
    ("signals", "asked"),
    [
        ([INT], [("interrupt", False, INT)]),
        ([INT] * 2, [("interrupt", False, INT), ("interrupt", True, INT)]),
        ([TERM], [("terminated", False, TERM)]),
        ([TERM] * 3, [("terminated", False, TERM)] * 3),  # a scheduler sends several
        ([TERM, INT], [("terminated", False, TERM), ("interrupt", False, INT)]),
        ([INT, HUP], [("interrupt", False, INT), ("terminated", False, HUP)]),
        ([INT, TERM, INT], [("interrupt", False, INT), ("terminated", False, TERM), ("interrupt", True, INT)]),
    ],
)
@pytest.mark.parametrize("view", [None, LinesView()])
def test_only_a_second_press_kills(signals: list[int], asked: list[tuple[str, bool, int]], view: Any) -> None:
    run = WaitedRun()
    with pytest.raises(KeyboardInterrupt):
        watch(run, view, Steps(run, *signals))
    assert run.asked == asked


def test_a_signal_that_is_for_the_program_stops_nothing() -> None:
    run = WaitedRun()
    with pytest.raises(KeyboardInterrupt):
        watch(run, None, Steps(run, signal.SIGUSR1))
    assert (run.relayed, run.asked) == ([signal.SIGUSR1], [])


def test_a_reader_that_goes_away_stops_the_run_once_and_in_order() -> None:
    run, view = WaitedRun(), LinesView()
    with pytest.raises(BrokenPipeError):
        watch(run, view, Steps(run, view.lose_reader, bool, bool))
    assert run.asked == [(p.StopReason.NO_READER, False, INT)]


def test_a_reader_that_goes_away_while_the_run_is_stopped_changes_nothing() -> None:
    run, view = WaitedRun(), LinesView()
    with pytest.raises(KeyboardInterrupt):
        watch(run, view, Steps(run, INT, view.lose_reader, bool))
    assert run.asked == [("interrupt", False, INT)]


def test_an_interrupt_behind_a_reader_that_went_away_is_the_first_press() -> None:
    run, view = WaitedRun(), LinesView()
    with pytest.raises(KeyboardInterrupt):
        watch(run, view, Steps(run, view.lose_reader, INT, bool))
    assert run.asked == [(p.StopReason.NO_READER, False, INT), ("interrupt", False, INT)]


def test_a_disk_that_stays_full_is_not_waited_for_and_is_told() -> None:
    run, view = WaitedRun(), LinesView()
    view.waits, view.fault = True, "No space left on device"
    with pytest.raises(KeyboardInterrupt):
        watch(run, view, Steps(run))
    assert run.unshown == "No space left on device"
    assert view.n_waits == 0


def test_a_slow_reader_of_a_run_that_is_over_is_waited_for_until_a_signal_comes() -> None:
    run, view = WaitedRun(), LinesView()
    view.waits = True
    end = lambda: run.history.end(p.Outcome.SUCCEEDED)  # noqa: E731
    watch(run, view, Steps(run, end, bool, signal.SIGUSR2, INT))
    assert view.n_waits == 3
    assert run.asked == []


def test_a_run_that_is_over_is_printed_to_its_end_however_soon_the_reader_takes_more() -> None:
    run, view = WaitedRun(), LinesView()
    view.n_left = 5
    run.history.end(p.Outcome.SUCCEEDED)
    watch(run, view, Steps(run))
    assert view.n_left == 0
