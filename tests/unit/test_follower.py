"""How often views are told."""

from __future__ import annotations

from ice_notebook.follower import Pace


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
