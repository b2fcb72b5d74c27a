"""What an agent does of a run, with ranks that are played: who is placed, judged, restarted, stopped and replaced, and what is said of it."""

from __future__ import annotations

import os
import signal
import time

import pytest
from histories import plan as make_plan
from played_ranks import PlayedRank, played
from support import wait_until

from ice_notebook.host import processes
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire import control as c
from ice_notebook.wire import protocol as p

VALUE, FAILED, EXITED = p.RankReturned, p.RankFailed, p.RankExited


@pytest.fixture
def plan(tmp_path):
    def make(n: int = 2, **changes):
        settled = {"folder": str(tmp_path), "max_restarts": 0, "marker": processes.new_marker(), "kernel_pid": os.getpid()}
        (tmp_path / "payload").write_bytes(b"x")
        return make_plan(
            n, **{**settled, "payload": str(tmp_path / "payload"), "master_addr": "127.0.0.1", "master_port": 0, **changes}
        )

    return make


def script(**changes):
    return {"kind": "script", "script": {"kind": "file", "target": "train.py", **changes}, "payload": ""}


@pytest.fixture(autouse=True)
def short_window(monkeypatch):
    """Ranks that say nothing when another has failed, as these, need not be waited for as long as real ones."""
    monkeypatch.setattr("ice_notebook.agent.attempt.REPORT_WINDOW_S", 0.05)


# ---- how ranks end -------------------------------------------------------------------------------------------------------------------------


def test_a_run_succeeds_when_every_rank_has_returned(plan):
    with played(plan(), lambda rank: rank.returns(f"value of {rank.place[1]}")) as run:
        assert run.finish() is p.Outcome.SUCCEEDED
        assert [type(event).__name__ for event in run.events[:2]] == ["RunBegun", "AttemptBegun"]
        assert sorted((event.rank, event.value.text) for event in run.seen(VALUE)) == [(0, "value of 0"), (1, "value of 1")]
        assert sorted((event.rank, event.exit_code) for event in run.seen(EXITED)) == [(0, 0), (1, 0)]
        assert not os.path.exists(run.plan.payload), "no other attempt will need it"


def test_the_first_failure_is_the_root_and_the_others_are_ended(plan):
    def work(rank: PlayedRank) -> None:
        rank.fails() if rank.place[1] == 1 else rank.was_asked.wait()

    with played(plan(3), work) as run:
        assert run.finish() is p.Outcome.FAILED
        assert [(event.rank, event.failure.headline) for event in run.seen(FAILED)] == [(1, "ValueError: bad loss")]
        assert [(event.root, event.restarting) for event in run.seen(p.AttemptFailed)] == [(1, False)]
        assert sorted((event.rank, event.exit_code) for event in run.seen(EXITED)) == [(0, -15), (1, 1), (2, -15)]


def test_a_broken_connection_is_the_echo_of_the_failure_that_comes_after_it(plan):
    def work(rank: PlayedRank) -> None:
        if rank.place[1] == 0:
            rank.fails("RuntimeError: Connection closed by peer", is_communication=True)
        else:
            wait_until(lambda: [event for event in run.seen(FAILED) if event.rank == 0])
            rank.dies()

    with played(plan(), work) as run:
        assert run.finish() is p.Outcome.FAILED
        assert run.seen(p.AttemptFailed)[0].root == 1
        assert "killed by SIGKILL" in next(event for event in run.seen(FAILED) if event.rank == 1).failure.headline


@pytest.mark.parametrize(
    ("end", "headline"),
    [
        (lambda rank: rank.exits(3), "exit code 3"),
        (lambda rank: rank.exits(0), "exit code 0"),
        (lambda rank: rank.dies(signal.SIGKILL), "killed by SIGKILL"),
        (lambda rank: rank.hangs_up(), "closed its connection to the agent"),
    ],
    ids=["exit code", "exit code 0", "signal", "connection"],
)
def test_a_functions_rank_that_has_not_returned_has_failed_however_it_ended(plan, end, headline):
    def work(rank: PlayedRank) -> None:
        end(rank) if rank.place[1] == 0 else rank.waits()

    with played(plan(), work) as run:
        assert run.finish() is p.Outcome.FAILED
        assert headline in run.seen(FAILED)[0].failure.headline
        assert run.seen(p.AttemptFailed)[0].root == 0


def test_a_crash_after_the_value_was_written_is_noted_and_no_failure(plan):
    def work(rank: PlayedRank) -> None:
        rank.gives()
        rank.exits(0 if rank.place[1] else 139)

    with played(plan(), work) as run:
        assert run.finish() is p.Outcome.SUCCEEDED
        notes = {event.rank: event.note for event in run.seen(EXITED)}
        assert notes == {0: "left with exit code 139 after its value was written", 1: ""}


# ---- scripts -------------------------------------------------------------------------------------------------------------------------------


def test_a_script_succeeds_by_its_exit_code_and_gives_the_last_of_its_values(plan):
    def work(rank: PlayedRank) -> None:
        if rank.place[1] == 0:
            rank.gives("an early one")
            rank.gives("the last one")
        rank.exits(0)

    with played(plan(**script()), work) as run:
        assert run.finish() is p.Outcome.SUCCEEDED
        assert [(event.rank, event.value.text) for event in run.seen(VALUE)] == [(0, "the last one")]
        assert [event.rank for event in run.seen(p.RankSucceeded)] == [1]


def test_a_value_of_a_script_that_fails_does_not_count_and_is_freed(plan, tmp_path):
    def work(rank: PlayedRank) -> None:
        rank.gives()
        rank.exits(5)

    with played(plan(1, **script()), work) as run:
        assert run.finish() is p.Outcome.FAILED
        assert not run.seen(VALUE)
        assert "exit code 5" in run.seen(FAILED)[0].failure.headline
        assert RunFolder(tmp_path).result_file(0, 0).parent.exists()
        assert not RunFolder(tmp_path).result_file(0, 0).exists()


# ---- restarts ------------------------------------------------------------------------------------------------------------------------------


def test_all_ranks_are_started_again_until_it_works_or_no_restart_is_left(plan):
    def work(rank: PlayedRank) -> None:
        attempt, number = rank.place
        if attempt < 2 and number == 1:
            rank.fails(f"ValueError: attempt {attempt}")
        else:
            rank.waits() if attempt < 2 else rank.returns()

    with played(plan(max_restarts=2), work) as run:
        assert run.finish() is p.Outcome.SUCCEEDED
        assert [(e.attempt, e.restart_count, len(e.ranks)) for e in run.seen(p.AttemptBegun)] == [(0, 0, 2), (1, 1, 2), (2, 2, 2)]
        assert [(event.root, event.restarting) for event in run.seen(p.AttemptFailed)] == [(1, True), (1, True)]
        assert len({rank.pid for rank in run.ranks if rank.go is not None}) == 6, "all are fresh"


def test_no_restart_is_left_in_the_end(plan):
    with played(plan(1, max_restarts=1), lambda rank: rank.fails()) as run:
        assert run.finish() is p.Outcome.FAILED
        assert [event.restarting for event in run.seen(p.AttemptFailed)] == [True, False]
        assert not [each for each in run.ranks if each.go is not None and each.go.attempt > 1]


def test_the_payload_stays_as_long_as_there_may_be_another_attempt(plan):
    def work(rank: PlayedRank) -> None:
        rank.gives()
        rank.was_asked.wait()
        rank.exits(0)

    with played(plan(1, max_restarts=1), work) as run:
        wait_until(lambda: run.seen(VALUE))
        assert os.path.exists(run.plan.payload)


def test_a_rank_that_hears_nothing_of_its_place_is_replaced_before_anybody_begins(plan, monkeypatch):
    monkeypatch.setattr("ice_notebook.agent.attempt.STANDBY_ACCEPT_WAIT_S", 0.2)
    begun = []

    def work(rank: PlayedRank) -> None:
        begun.append(rank.serial)
        rank.returns()

    with played(plan(), work, deaf=lambda serial: serial == 1, stands_by=True) as run:
        assert run.finish() is p.Outcome.SUCCEEDED
        assert sorted(begun) == [0, 2]
        [replaced] = run.seen(p.RankReplaced)
        assert replaced.pid == run.ranks[2].pid
        assert run.seen(p.AttemptBegun)[0].start == "standby"


# ---- stops -----------------------------------------------------------------------------------------------------------------------------------


def test_ranks_that_unwind_are_stopped_and_have_not_failed(plan):
    with played(plan(), lambda rank: rank.waits()) as run:
        wait_until(lambda: len(run.seen(p.RankRunning)) == 2)
        run.tell(c.Stop(reason=p.StopReason.STOP))
        assert run.finish() is p.Outcome.STOPPED
        assert run.outcome == (p.Outcome.STOPPED, "stop")
        assert (run.seen(FAILED), {event.exit_code for event in run.seen(EXITED)}) == ([], {130})
        assert c.Stopping() in run.heard


def test_a_rank_that_does_not_answer_and_does_nothing_is_terminated_at_once(plan):
    with played(plan(1, grace=60), lambda rank: None) as run:
        wait_until(lambda: run.seen(p.RankRunning))
        begin = time.monotonic()
        run.tell(c.Stop(reason=p.StopReason.INTERRUPT))
        assert run.finish() is p.Outcome.STOPPED
        assert [event.exit_code for event in run.seen(EXITED)] == [-signal.SIGTERM]
        assert time.monotonic() - begin < 30, "it was not given its grace, which is longer"


def test_one_that_answers_and_goes_on_is_killed_when_its_grace_is_over(plan):
    def work(rank: PlayedRank) -> None:
        rank.was_asked.wait()
        rank._asked.send(b"!")

    with played(plan(1, grace=0.3), work) as run:
        wait_until(lambda: run.seen(p.RankRunning))
        run.tell(c.Stop(reason=p.StopReason.STOP))
        assert run.finish() is p.Outcome.STOPPED
        assert [event.exit_code for event in run.seen(EXITED)] == [-signal.SIGKILL]


def test_a_second_press_kills_whatever_has_answered(plan):
    def work(rank: PlayedRank) -> None:
        rank.was_asked.wait()
        rank._asked.send(b"!")

    with played(plan(1, grace=600), work) as run:
        wait_until(lambda: run.seen(p.RankRunning))
        run.tell(c.Stop(reason=p.StopReason.STOP))
        wait_until(lambda: run.ranks[0].seen_by_agent.has_acknowledged)
        run.tell(c.Stop(reason=p.StopReason.STOP, is_urgent=True))
        assert run.finish() is p.Outcome.STOPPED
        assert [event.exit_code for event in run.seen(EXITED)] == [-signal.SIGKILL]


def test_an_interrupt_that_nobody_asked_for_is_a_failure(plan):
    with played(plan(1), lambda rank: rank.unwinds()) as run:
        assert run.finish() is p.Outcome.FAILED
        assert [event.rank for event in run.seen(FAILED)] == [0]


def test_a_run_whose_time_is_over_has_failed_and_says_so(plan):
    with played(plan(timeout=0.2), lambda rank: rank.waits()) as run:
        assert run.finish() is p.Outcome.FAILED
        assert run.outcome == (p.Outcome.FAILED, "timeout")
        assert [event.reason for event in run.seen(p.StopAsked)] == [p.StopReason.TIMEOUT]


def test_what_a_rank_prints_is_in_its_log_and_comes_before_its_end(plan, tmp_path):
    def work(rank: PlayedRank) -> None:
        rank.prints(f"a line of {rank.place[1]}\r\n")
        rank.returns()

    with played(plan(), work) as run:
        run.finish()
        for rank in (0, 1):
            assert RunFolder(tmp_path).output_log(0, rank).read_bytes() == f"a line of {rank}\r\n".encode()
            output, end = (
                next(i for i, said in enumerate(run.heard) if matches(said))
                for matches in (
                    lambda said, rank=rank: isinstance(said, c.Output) and said.rank == rank,
                    lambda said, rank=rank: (
                        isinstance(said, c.Happened) and isinstance(said.event, EXITED) and said.event.rank == rank
                    ),
                )
            )
            assert output < end
