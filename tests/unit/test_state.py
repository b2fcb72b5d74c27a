from __future__ import annotations

import dataclasses
import itertools
import typing

import msgspec
import pytest
from histories import History, broken_connection, killed, raised, succeeded

from ice_notebook.runs import state as state_module
from ice_notebook.runs.state import Phase, RankPhase, RunState, replay
from ice_notebook.wire import protocol as p


def phases(state: RunState) -> list[str]:
    return [state.ranks[rank].phase.value for rank in sorted(state.ranks)]


def test_a_run_that_nothing_is_known_of_is_starting() -> None:
    state = RunState()
    assert (state.phase, state.attempt, dict(state.ranks), state.restarts, dict(state.failures)) == (
        Phase.STARTING,
        None,
        {},
        0,
        {},
    )


def test_a_run_goes_from_starting_to_running_when_every_rank_runs() -> None:
    history = History(2)
    assert history.state.agent_pid == 555
    history.begin(running=False)
    assert (history.state.phase, phases(history.state)) == (Phase.STARTING, ["starting", "starting"])
    history.add(p.RankRunning, attempt=0, rank=1)
    assert (history.state.phase, phases(history.state)) == (Phase.STARTING, ["starting", "running"])
    history.add(p.RankRunning, attempt=0, rank=0)
    assert (history.state.phase, phases(history.state)) == (Phase.RUNNING, ["running", "running"])


def test_a_rank_that_is_done_before_another_begins_does_not_keep_the_run_from_running() -> None:
    history = History(2).begin(running=False)
    history.add(p.RankRunning, attempt=0, rank=1).returns(1).exits(1)
    history.add(p.RankRunning, attempt=0, rank=0)
    assert (history.state.phase, phases(history.state)) == (Phase.RUNNING, ["running", "returned"])


def test_a_run_that_succeeds_has_every_value() -> None:
    state = succeeded(["1", "2"]).state
    assert (state.phase, state.restarts, dict(state.failures)) == (Phase.SUCCEEDED, 0, {})
    assert [rank.value.text for rank in state.ranks.values() if rank.value] == ["1", "2"]
    assert [rank.exit_code for rank in state.ranks.values()] == [0, 0]
    assert state.began_at is not None
    assert state.ended_at is not None
    assert state.began_at < state.ended_at


def test_a_value_that_was_lost_is_a_return_without_a_value() -> None:
    state = History(1).begin().loses(0, "no room").exits(0).end().state
    rank = state.ranks[0]
    assert (rank.phase, rank.value, rank.lost) == (RankPhase.RETURNED, None, "no room")


def test_a_script_that_ended_well_is_a_return_without_a_value() -> None:
    state = History(1).begin().succeeds(0).state
    assert (phases(state), state.ranks[0].value, state.ranks[0].lost, state.ranks[0].exit_code) == (["returned"], None, "", 0)


def test_the_failures_name_the_root_first_and_then_the_others_by_rank() -> None:
    history = History(4).begin().fails(3).fails(0, broken_connection()).fails(2, killed()).group_fails(2)
    assert list(history.state.failures) == [2, 0, 3]
    assert history.state.failures[2] == killed()
    assert history.state.attempt is not None
    assert history.state.attempt.root == 2


def test_the_failures_are_in_order_before_the_root_is_known() -> None:
    assert list(History(4).begin().fails(3).fails(1).state.failures) == [1, 3]


def test_a_rank_that_ends_without_a_word_was_stopped_and_one_that_failed_stays_failed() -> None:
    state = (
        History(3).begin().fails(1).returns(2).group_fails(1).exits(0, -15).exits(1, 1).exits(2, -15).end(p.Outcome.FAILED).state
    )
    assert (state.phase, phases(state)) == (Phase.FAILED, ["stopped", "failed", "returned"])
    assert [state.ranks[n].exit_code for n in range(3)] == [-15, 1, -15]


def test_a_note_of_an_exit_is_kept() -> None:
    assert (
        History(1).begin().returns(0).exits(0, -6, "crashed after its value was written").state.ranks[0].note.startswith("crashed")
    )


def test_a_restart_keeps_the_old_attempt_and_counts() -> None:
    history = History(2).begin().fails(1).group_fails(1, restarting=True)
    assert (history.state.phase, history.state.restarts) == (Phase.RESTARTING, 0)
    history.exits(0, -15).exits(1, 1)
    assert history.state.phase is Phase.RESTARTING
    history.begin(running=False)
    assert (history.state.phase, history.state.restarts, phases(history.state)) == (Phase.STARTING, 1, ["starting", "starting"])
    assert dict(history.state.failures) == {}
    old = history.state.attempts[0]
    assert (old.root, old.ranks[1].failure, old.ranks[0].phase) == (1, raised(), RankPhase.STOPPED)
    history.add(p.RankRunning, attempt=1, rank=0).add(p.RankRunning, attempt=1, rank=1)
    assert history.state.phase is Phase.RUNNING


def test_a_change_of_members_is_an_attempt_and_no_restart() -> None:
    history = History(2).begin(0).exits(0, -15).exits(1, -15).begin(0).begin(1)
    assert [attempt.number for attempt in history.state.attempts] == [0, 1, 2]
    assert [attempt.restart_count for attempt in history.state.attempts] == [0, 0, 1]
    assert history.state.restarts == 1


def test_late_events_of_an_old_attempt_change_that_attempt_only() -> None:
    history = History(2).begin().fails(1).group_fails(1, restarting=True).begin()
    before = history.state
    value = p.Value(path="x", size_bytes=1, type_name="int", text="7")
    for late in (
        p.RankReturned(at=9.0, attempt=0, rank=0, value=value),
        p.ValueLost(at=9.0, attempt=0, rank=0, reason="late"),
        p.RankFailed(at=9.0, attempt=0, rank=0, failure=killed()),
        p.RankExited(at=9.0, attempt=0, rank=1, exit_code=-9),
        p.AttemptFailed(at=9.0, attempt=0, root=0, restarting=False),
    ):
        after = before.apply(late)
        assert after.attempts[1] == before.attempts[1]
        assert (after.phase, after.restarts, after.ranks, after.failures) == (Phase.RUNNING, 1, before.ranks, {})
        assert after.attempts[0] != before.attempts[0]


def test_a_late_failure_of_an_old_attempt_does_not_turn_a_running_one_back_into_a_restart() -> None:
    history = History(2).begin().fails(1).group_fails(1, restarting=True).begin()
    assert history.state.apply(p.AttemptFailed(at=9.0, attempt=0, root=0, restarting=True)).phase is Phase.RUNNING


def test_a_rank_that_is_over_does_not_run_again() -> None:
    history = History(2).begin().fails(1).add(p.RankRunning, attempt=0, rank=1)
    assert history.state.ranks[1].phase is RankPhase.FAILED
    assert History(2).begin().returns(1).add(p.RankRunning, attempt=0, rank=1).state.ranks[1].phase is RankPhase.RETURNED


@pytest.mark.parametrize(
    "event",
    [
        p.RankRunning(at=9.0, attempt=7, rank=0),
        p.RankRunning(at=9.0, attempt=0, rank=70),
        p.RankExited(at=9.0, attempt=0, rank=70, exit_code=0),
        p.RankExited(at=9.0, attempt=7, rank=0, exit_code=0),
        p.RankFailed(at=9.0, attempt=7, rank=0, failure=killed()),
    ],
)
def test_an_event_of_a_rank_or_an_attempt_that_is_not_known_changes_nothing_but_the_count(event: p.Event) -> None:
    before = History(2).begin().state
    assert dataclasses.replace(before.apply(event), rev=before.rev) == before


def test_after_the_end_nothing_changes() -> None:
    state = succeeded(["1"]).state
    for event in (
        p.StopAsked(at=9.0, reason=p.StopReason.STOP),
        p.RankFailed(at=9.0, attempt=0, rank=0, failure=killed()),
        p.RunEnded(at=9.0, outcome=p.Outcome.FAILED),
        p.AttemptBegun(at=9.0, attempt=1, restart_count=1, world_size=0, ranks=()),
    ):
        assert state.apply(event) is state


def test_the_revision_counts_events() -> None:
    history = succeeded(["1", "2"])
    states = list(itertools.accumulate(history.events, RunState.apply, initial=RunState()))
    assert [state.rev for state in states] == list(range(len(history.events) + 1))


def test_a_stop_keeps_its_first_reason_and_the_run_stays_stopping() -> None:
    history = History(2).begin(running=False).stop("interrupt").stop("kill")
    assert (history.state.phase, history.state.stop_reason) == (Phase.STOPPING, "interrupt")
    history.add(p.RankRunning, attempt=0, rank=0).add(p.RankRunning, attempt=0, rank=1)
    history.fails(0).group_fails(0, restarting=True)
    assert history.state.phase is Phase.STOPPING
    history.begin()
    assert history.state.phase is Phase.STOPPING
    history.exits(0, -15).exits(1, -15).end(p.Outcome.STOPPED, "interrupt")
    assert (history.state.phase, history.state.end_reason) == (Phase.STOPPED, "interrupt")


def test_at_the_end_no_rank_of_the_newest_attempt_is_left_running() -> None:
    state = History(3).begin().returns(0).fails(1).end(p.Outcome.FAILED, "the agent died").state
    assert (phases(state), state.end_reason) == (["returned", "failed", "stopped"], "the agent died")


def test_a_run_may_end_before_it_had_ranks() -> None:
    state = History().end(p.Outcome.FAILED, "no rank could be started").state
    assert (state.phase, state.attempt, state.end_reason) == (Phase.FAILED, None, "no rank could be started")


def _events_of(journal: bytes) -> list[p.Event]:
    """Read a journal up to the line that was torn when its writer died."""
    events = []
    for line in journal.splitlines():
        try:
            events.append(p.decode_event(line))
        except msgspec.MsgspecError:
            break
    return events


def test_a_journal_of_an_agent_that_died_while_writing_is_a_run_up_to_there() -> None:
    history = History(2).begin().returns(0, "7").fails(1).group_fails(1).end(p.Outcome.FAILED)
    journal = history.journal
    whole = [replay(history.events[:n]) for n in range(len(history.events) + 1)]
    for length in range(len(journal) + 1):
        n_lines = journal.count(b"\n", 0, length)
        state = replay(_events_of(journal[:length]))
        # A line whose newline alone is missing is whole.
        assert state in (whole[n_lines], whole[min(n_lines + 1, len(history.events))])
        assert state.rev in (n_lines, n_lines + 1)


def test_a_journal_that_another_closes_after_its_writer_died_ends() -> None:
    history = History(2).begin().returns(0, "7")
    torn = history.journal + b'{"event":"rank_ret'
    closing = p.RunEnded(at=2e9, outcome=p.Outcome.FAILED, reason="the agent died")
    state = replay([*_events_of(torn), closing])
    assert (state.phase, state.end_reason, phases(state)) == (Phase.FAILED, "the agent died", ["returned", "stopped"])


def test_states_are_values() -> None:
    history = History(2).begin().fails(1)
    first, second = replay(history.events), replay(history.events)
    assert first == second
    assert first is not second
    assert first != first.apply(p.StopAsked(at=9.0, reason=p.StopReason.STOP))
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.phase = Phase.FAILED  # type: ignore[misc]
    with pytest.raises(TypeError):
        first.ranks[0] = None  # type: ignore[index]


def test_a_state_is_not_changed_by_what_comes_after() -> None:
    history = History(2).begin().fails(1).group_fails(1, restarting=True).begin().returns(0).stop().end(p.Outcome.STOPPED)
    states = [RunState()]
    kept = [repr(states[0])]
    for event in history.events:
        states.append(states[-1].apply(event))
        kept.append(repr(states[-1]))
    assert [repr(state) for state in states] == kept


def test_every_kind_of_event_has_its_rule() -> None:
    assert set(state_module._APPLY) == set(typing.get_args(p.AnyEvent))


def test_every_outcome_is_a_final_phase() -> None:
    assert {Phase(outcome.value) for outcome in p.Outcome} == {phase for phase in Phase if phase.is_final}
    assert {phase for phase in RankPhase if phase.is_final} == {RankPhase.RETURNED, RankPhase.FAILED, RankPhase.STOPPED}


# ---- several nodes -----------------------------------------------------------------------------------------------------------------------


def test_an_attempt_has_the_ranks_of_all_nodes_and_runs_when_all_do() -> None:
    history = History(1)
    for node in (0, 1):
        ranks = (p.RankStart(rank=node, local_rank=0, device="cpu:0", pid=9, node=node),)
        history.add(p.AttemptBegun, attempt=0, restart_count=0, world_size=2, ranks=ranks)
        assert history.state.phase is Phase.STARTING
        history.add(p.RankRunning, attempt=0, rank=node)
    state = history.state
    assert (state.phase, len(state.attempts), [state.ranks[n].node for n in (0, 1)]) == (Phase.RUNNING, 1, [0, 1])


def test_nodes_come_and_go_and_a_change_of_them_ends_an_attempt_for_which_no_rank_is_to_blame() -> None:
    history = History(1).add(p.NodesAwaited, address="127.0.0.1", port=7)
    history.add(p.NodeJoined, node=0, name="this machine", n_ranks=1, devices="cpu:0")
    history.add(p.NodeJoined, node=1, name="other", n_ranks=2, devices="cpu:0,1")
    assert history.state.meeting == ("127.0.0.1", 7)
    assert [node.name for node in history.state.present_nodes] == ["this machine", "other"]
    history.begin().add(p.NodeLeft, node=1, name="other", reason="was lost")
    history.add(p.NodeLeft, node=9, name="nobody", reason="was lost")
    history.add(p.RoundEnded, attempt=0, reason="node 1 (other) was lost", restarting=True)
    state = history.state
    assert (state.phase, state.attempts[0].ended_by, state.attempts[0].root) == (Phase.RESTARTING, "node 1 (other) was lost", None)
    assert [(node.node, node.left) for node in state.nodes.values()] == [(0, ""), (1, "was lost")]
    assert [node.node for node in state.present_nodes] == [0]


def test_the_last_refusals_are_kept() -> None:
    history = History(1)
    for n in range(9):
        history.add(p.NodeRefused, address=f"10.0.0.{n}", reason="It is a torchrun.")
    assert history.state.refused == tuple(f"10.0.0.{n}: It is a torchrun." for n in range(4, 9))
