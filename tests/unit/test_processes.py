from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from ice_notebook.host import identities, processes
from ice_notebook.host.processes import ACKNOWLEDGE_WAIT_S, stop_ladder

INT, TERM, HUP, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL
GROUP = "the whole group gets it"
ASKED = "it knows that the interrupt is ours"
GROUP_KILL = "the whole group is killed"
NO_SUCH_PROCESS = 1 << 29  # above every system's largest process number


# ---- the ladder --------------------------------------------------------------------------------------------------------------------------


@dataclass
class Rank:
    """A rank that reacts as it is told to: by what it does after so many seconds of the ladder's waiting."""

    pid: int
    acknowledges_at: float | None = None
    ends_after: dict[object, float] = field(default_factory=dict)  # seconds from a signal to its end
    computes: bool = False
    computes_until: float = 1e9
    can_be_asked: bool = True
    is_program: bool = False
    group_ends_at: float = 0.0
    own_handlers: set[int] = field(default_factory=set)
    got: list[object] = field(default_factory=list)
    ends_at: float | None = None
    now: float = 0.0

    @property
    def pidfd(self) -> int:
        return -self.pid

    @property
    def has_exited(self) -> bool:
        return self.ends_at is not None and self.now >= self.ends_at

    @property
    def has_acknowledged(self) -> bool:
        return self.acknowledges_at is not None and INT in self.got and self.now >= self.acknowledges_at

    @property
    def has_members(self) -> bool:
        return self.now < self.group_ends_at

    def handles(self, number: int) -> bool:
        return number in self.own_handlers

    def ask(self) -> None:
        self.got.append(ASKED)

    def take(self, what: object) -> None:
        self.got.append(what)
        what = what[1] if isinstance(what, tuple) else what
        after = 0.0 if what in {KILL, GROUP_KILL} else self.ends_after.get(what)
        if after is not None:
            self.ends_at = min(self.now + after, self.ends_at or 1e9)


class World:
    """Ranks, and a clock that only the ladder's waiting moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ranks: Rank) -> None:
        self.ranks = {rank.pid: rank for rank in ranks}
        self.now = 0.0
        self.pressed_again_at: float | None = None
        monkeypatch.setattr(signal, "pidfd_send_signal", lambda pidfd, number: self.ranks[-pidfd].take(number))
        monkeypatch.setattr(
            os, "killpg", lambda pid, number: self.ranks[pid].take(GROUP_KILL if number == KILL else (GROUP, number))
        )
        monkeypatch.setattr(processes, "has_members", lambda pid: self.ranks[pid].has_members)
        monkeypatch.setattr(processes, "cpu_time", self.cpu_time)
        monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: self.now))

    def cpu_time(self, pid: int) -> float:
        rank = self.ranks[pid]
        return min(self.now, rank.computes_until) if rank.computes else 0.0

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        end = self.now + timeout_s
        while not condition() and self.now < end:
            self.now = min(end, self.now + 0.01)
            for rank in self.ranks.values():
                rank.now = self.now

    def stop(self, *, by: signal.Signals | None = INT, grace_s: float = 5.0) -> None:
        def is_urgent() -> bool:
            return self.pressed_again_at is not None and self.now >= self.pressed_again_at

        stop_ladder(list(self.ranks.values()), self.wait, by=by, grace_s=grace_s, is_urgent=is_urgent)


def test_a_rank_that_acknowledges_has_its_grace_and_is_not_terminated(monkeypatch):
    world = World(monkeypatch, rank := Rank(1, acknowledges_at=0.05, ends_after={INT: 4.0}))
    world.stop()
    assert rank.got == [ASKED, INT]
    assert world.now == pytest.approx(4.0, abs=0.02)


def test_a_rank_that_acknowledges_and_does_not_end_is_killed_with_its_group_after_grace(monkeypatch):
    world = World(monkeypatch, rank := Rank(1, acknowledges_at=0.05))
    world.stop()
    assert rank.got == [ASKED, INT, GROUP_KILL, KILL]
    assert rank.ends_at == pytest.approx(5.0)


def test_a_rank_that_is_blocked_is_terminated_at_once(monkeypatch):
    world = World(monkeypatch, rank := Rank(1, ends_after={TERM: 0.0}))
    world.stop()
    assert rank.got == [ASKED, INT, TERM]
    assert world.now == pytest.approx(ACKNOWLEDGE_WAIT_S)


def test_a_rank_that_computes_may_still_answer(monkeypatch):
    world = World(monkeypatch, rank := Rank(1, computes=True, acknowledges_at=3.0, ends_after={INT: 3.5}))
    world.stop()
    assert rank.got == [ASKED, INT]


def test_a_rank_that_is_blocked_a_little_later_is_terminated_then(monkeypatch):
    world = World(monkeypatch, rank := Rank(1, computes=True, computes_until=0.3, ends_after={TERM: 0.0}))
    world.stop()
    assert rank.got == [ASKED, INT, TERM]
    assert world.now == pytest.approx(3 * ACKNOWLEDGE_WAIT_S, abs=0.02)


def test_a_rank_that_cannot_be_asked_is_terminated(monkeypatch):
    world = World(monkeypatch, rank := Rank(1, can_be_asked=False, ends_after={TERM: 0.0}), other := Rank(2, ends_after={INT: 0.0}))
    world.stop()
    assert rank.got == [TERM]
    assert other.got == [ASKED, INT]


def test_without_asking_all_are_terminated_and_killed_after_grace(monkeypatch):
    world = World(monkeypatch, obedient := Rank(1, ends_after={TERM: 0.5}), deaf := Rank(2))
    world.stop(by=None, grace_s=2.0)
    assert obedient.got == [TERM]
    assert deaf.got == [TERM, GROUP_KILL, KILL]
    assert deaf.ends_at == pytest.approx(2.0)


def test_a_signal_goes_on_to_a_rank_that_has_a_handler_of_its_own_for_it_and_counts_as_answered(monkeypatch):
    world = World(
        monkeypatch, saving := Rank(1, own_handlers={TERM}, ends_after={TERM: 4.0}), other := Rank(2, ends_after={INT: 0.0})
    )
    world.stop(by=TERM)
    assert saving.got == [TERM]
    assert other.got == [ASKED, INT]  # its default would end it without its `finally`
    assert world.now == pytest.approx(4.0, abs=0.02)


def test_an_interrupt_is_asked_for_whatever_handlers_a_python_has(monkeypatch):
    world = World(monkeypatch, rank := Rank(1, own_handlers={INT, TERM}, acknowledges_at=0.1, ends_after={INT: 0.2}))
    world.stop(by=INT)
    assert rank.got == [ASKED, INT]


def test_a_hang_up_reaches_a_handler_for_it_and_else_one_for_sigterm(monkeypatch):
    world = World(
        monkeypatch,
        both := Rank(1, own_handlers={HUP, TERM}, ends_after={HUP: 0.0}),
        one := Rank(2, own_handlers={TERM}, ends_after={TERM: 0.0}),
    )
    world.stop(by=HUP)
    assert (both.got, one.got) == ([HUP], [TERM])


def test_a_program_is_signalled_with_its_group_and_what_it_started_has_the_same_grace(monkeypatch):
    shell = Rank(1, is_program=True, can_be_asked=False, group_ends_at=3.0, ends_after={TERM: 0.0})
    world = World(monkeypatch, shell, stubborn := Rank(2, is_program=True, can_be_asked=False, own_handlers={INT}))
    world.stop(by=INT)
    assert shell.got == [(GROUP, TERM)]
    assert stubborn.got == [(GROUP, INT), GROUP_KILL, KILL]


def test_a_shell_that_traps_sigterm_gets_that_although_every_shell_handles_interrupts(monkeypatch):
    world = World(
        monkeypatch, shell := Rank(1, is_program=True, can_be_asked=False, own_handlers={INT, TERM}, ends_after={TERM: 0.0})
    )
    world.stop(by=INT)
    assert shell.got == [(GROUP, TERM)]


def test_the_children_of_a_program_that_has_ended_are_waited_for(monkeypatch):
    world = World(monkeypatch, Rank(1, is_program=True, can_be_asked=False, group_ends_at=3.0, ends_after={TERM: 0.0}))
    world.stop(by=TERM)
    assert world.now == pytest.approx(3.0, abs=0.1)


def test_a_second_press_kills_at_once(monkeypatch):
    world = World(monkeypatch, rank := Rank(1, acknowledges_at=0.0, ends_after={INT: 100.0}))
    world.pressed_again_at = 1.0
    world.stop(grace_s=1000.0)
    assert rank.got == [ASKED, INT, GROUP_KILL, KILL]
    assert world.now == pytest.approx(1.0, abs=0.02)


def test_who_has_ended_gets_no_signal(monkeypatch):
    gone = Rank(1, ends_at=0.0)
    world = World(monkeypatch, gone, Rank(2, ends_after={INT: 0.0}))
    world.stop()
    assert gone.got == []


def test_the_ladder_ends_as_soon_as_all_are_gone(monkeypatch):
    world = World(monkeypatch, Rank(1, acknowledges_at=0.0, ends_after={INT: 0.1}), Rank(2, ends_after={INT: 0.05}))
    world.stop(grace_s=1000.0)
    assert world.now == pytest.approx(0.1, abs=0.02)


# ---- who is who --------------------------------------------------------------------------------------------------------------------------


def test_a_process_that_is_not_there_has_used_no_processor():
    assert processes.cpu_time(NO_SUCH_PROCESS) == 0.0
    assert processes.caught_signals(NO_SUCH_PROCESS) == set()


def test_a_handler_of_a_process_is_seen():
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert signal.SIGUSR2 in processes.caught_signals(os.getpid())
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert signal.SIGUSR2 not in processes.caught_signals(os.getpid())


def test_a_search_finds_no_stranger_and_not_the_process_that_searches(monkeypatch):
    assert processes.find_marked("a marker that nobody carries") == []
    monkeypatch.setattr(processes, "_carries", lambda pid, markers: True)
    assert os.getpid() not in processes.find_marked("any")


def play(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    """Have the system say this of its processes."""
    for module in (processes, identities):
        monkeypatch.setattr(module, "open", lambda path, *_, **__: io.BytesIO(files[path]), raising=False)


@pytest.mark.parametrize(
    ("carried", "is_found"),
    [
        ("abc", True),
        ("abc:0", True),
        ("abc:agent", True),
        ("abcd", False),
        ("abcd:0", False),
        ("ab", False),
        (":abc", False),
        ("", False),
    ],
)
def test_a_marker_is_carried_alone_or_with_a_serial_behind_it(monkeypatch, carried, is_found):
    files = {
        "/proc/7/environ": b"HOME=/root\0" + f"{processes.MARKER}={carried}".encode() + b"\0NOT_A_MARKER=abc\0",
        "/proc/7/stat": b"7 (a) strange (name) S 1 7 7",
    }
    play(monkeypatch, files)
    assert processes._carries(7, ["abc"]) is is_found


def test_a_zombie_is_gone(monkeypatch):
    files = {"/proc/7/environ": f"{processes.MARKER}=abc\0".encode(), "/proc/7/stat": b"7 (python) Z 1 7 7"}
    play(monkeypatch, files)
    assert not processes._carries(7, ["abc"])


# ---- memory ------------------------------------------------------------------------------------------------------------------------------


def test_kills_for_want_of_memory_are_counted_by_the_system(monkeypatch):
    counters = "nr_free_pages 1\noom_kill_disable 3\noom_kill 42\npgfault 7\n"
    monkeypatch.setattr(processes, "open", lambda *_, **__: io.StringIO(counters), raising=False)
    assert processes.out_of_memory_kills() == 42


def test_a_system_that_does_not_count_them_says_0(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(processes, "open", refuse, raising=False)
    assert processes.out_of_memory_kills() == 0
    monkeypatch.setattr(processes, "open", lambda *_, **__: io.StringIO("pgfault 7\n"), raising=False)
    assert processes.out_of_memory_kills() == 0


@pytest.mark.parametrize(("counted", "words"), [(6, "the system was out of memory"), (5, "something outside the run ended it")])
def test_a_rank_killed_while_the_system_counted_one_more_was_out_of_memory(monkeypatch, tmp_path, counted, words):
    import socket

    from histories import plan

    from ice_notebook.agent.io import AgentIO
    from ice_notebook.wire import protocol as p
    from ice_notebook.wire.frames import Channel

    @dataclass
    class Dead:
        attempt: int = 0
        rank: int = 0

    ours, theirs = socket.socketpair()
    monkeypatch.setattr(processes, "out_of_memory_kills", lambda: 5)
    agent_io = AgentIO(plan().preparation(), Channel(ours))
    agent_io.begin(p.replace(plan(), folder=str(tmp_path)))
    monkeypatch.setattr(processes, "out_of_memory_kills", lambda: counted)
    assert words in agent_io.reports.failure_from_exit(Dead(), -signal.SIGKILL).headline
    assert "memory" not in agent_io.reports.failure_from_exit(Dead(), -signal.SIGTERM).headline
    ours.close()
    theirs.close()
