"""What a process inherits besides environment and signals, and for which launches one that has started can still be used."""

from __future__ import annotations

import os
import resource
from typing import Any

import pytest

from ice_notebook.host import inherited
from ice_notebook.host.inherited import Inherited
from ice_notebook.wire import protocol as p

HAS = Inherited(
    limits={"RLIMIT_NOFILE": (1024, 4096), "RLIMIT_STACK": (8 << 20, -1), "RLIMIT_CORE": (0, -1)},
    cpus=(0, 1),
    nice=5,
    policy=0,
    oom_score_adj=0,
    user=(1, 1, 1, 2, 2, 2, 2),
)


def limits(**changed: tuple[int, int]) -> dict[str, Any]:
    return {"limits": {**HAS.limits, **changed}}


def test_what_is_read_is_what_this_thread_has_and_it_travels():
    found = inherited.read()
    assert found.limits["RLIMIT_NOFILE"] == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert set(found.cpus) == os.sched_getaffinity(0)
    assert found.nice == os.getpriority(os.PRIO_PROCESS, 0)
    assert p.decode(p.encode(found), Inherited) == found
    assert inherited.why_not(found, inherited.read()) == ""


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"nice": 19}, ""),
        ({"oom_score_adj": 200}, ""),
        (limits(RLIMIT_NOFILE=(4096, 4096)), ""),
        (limits(RLIMIT_NOFILE=(10, 20)), ""),
        (limits(RLIMIT_CORE=(-1, -1)), ""),
        ({"nice": 4}, "its scheduling changed"),
        ({"policy": 3}, "its scheduling changed"),
        ({"cpus": (0,)}, "the processors that it may use changed"),
        ({"user": (1000, 1000, 1000)}, "the user changed"),
        (limits(RLIMIT_NOFILE=(1024, 8192)), "RLIMIT_NOFILE changed"),
        (limits(RLIMIT_NOFILE=(1024, -1)), "RLIMIT_NOFILE changed"),
        (limits(RLIMIT_STACK=(1 << 20, -1)), "RLIMIT_STACK changed"),
    ],
)
def test_what_cannot_be_taken_over_makes_a_start_cold_and_is_named(changed, reason):
    assert inherited.why_not(HAS, p.replace(HAS, **changed)) == reason


def test_one_that_does_not_say_is_used():
    assert inherited.why_not(None, HAS) == inherited.why_not(HAS, None) == ""


def test_limits_are_taken_over_as_far_as_they_can_be():
    before = {name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_CORE", "RLIMIT_NOFILE")}
    hard = before["RLIMIT_CORE"][1]
    soft = 4096 if hard == resource.RLIM_INFINITY else hard
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        wanted = p.replace(inherited.read(), limits={"RLIMIT_CORE": (soft, hard), "RLIMIT_NOT_HERE": (1, 1)})
        inherited.take(wanted)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (soft, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before["RLIMIT_CORE"])
        inherited.be_expendable(-inherited.EXPENDABLE)
