"""What the soak says of launches and of what they leave behind. Nothing is launched here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks is no part of the package

from benchmarks import soak
from benchmarks.soak import Held, Soak

SETTLED = Held(fds=12, threads=2, marked=0, shared=0)


class Run:
    """A run that is over, or never is."""

    id = "20260101-000000-aaaaaaaa"
    plan = SimpleNamespace(marker="a-marker")
    folder = "/runs/1"

    def __init__(self, phase="succeeded", results=None, *, is_over=True):
        self.phase = SimpleNamespace(value=phase) if phase == "running" else phase
        self.results = {0: 2, 1: 2} if results is None else results
        self.state = SimpleNamespace(attempts=[SimpleNamespace(start="forked")])
        self.is_over = is_over
        self.was_killed = False

    def wait(self, _timeout):
        return self.is_over

    def kill(self):
        self.was_killed = True


def launcher_of(run):
    return SimpleNamespace(start=lambda _function: run)


def test_what_comes_and_goes_is_no_leak():
    assert Held(fds=12 + 8, threads=2, marked=0, shared=0).excess(SETTLED) == ""


@pytest.mark.parametrize(
    ("held", "text"),
    [
        (Held(fds=12, threads=2, marked=1, shared=0), "1 processes of ended runs"),
        (Held(fds=12, threads=2, marked=0, shared=3), "3 folders on shared memory"),
        (Held(fds=300, threads=2, marked=0, shared=0), "300 descriptors, 12 before"),
        (Held(fds=12, threads=40, marked=0, shared=0), "40 threads, 2 before"),
    ],
)
def test_what_grows_or_stays_is_a_leak(held, text):
    assert held.excess(SETTLED) == text


def test_launches_are_told_by_median_the_slowest_hundredth_and_the_slowest():
    told = Soak(taken_s=[0.1] * 98 + [0.5, 2.0], starts={"standby": 60, "forked": 40})
    assert told.describe() == (
        "100 launches (40 forked, 60 standby): median 0.100 s, 99 of 100 within 2.000 s, at most 2.000 s; 0 faults"
    )


def test_a_launch_that_comes_out_as_it_should_is_no_fault():
    mine = Soak()
    assert mine.launch(launcher_of(Run()))
    assert (len(mine.taken_s), mine.starts, mine.faults) == (1, {"forked": 1}, [])


def test_a_launch_with_other_values_is_a_fault_and_the_next_one_follows():
    mine = Soak()
    assert mine.launch(launcher_of(Run(results={0: 2})))
    assert "launch 1 is not as it should be" in mine.faults[0]


def test_a_launch_that_hangs_is_a_fault_is_killed_and_is_the_last():
    mine, run = Soak(), Run("running", is_over=False)
    assert not mine.launch(launcher_of(run))
    assert mine.faults == [f"launch 1 hangs: running after {soak.HANG_S:g} s, in /runs/1"]
    assert run.was_killed
