"""What panel, report and text view say of several nodes."""

from __future__ import annotations

from histories import History, plan

from ice_notebook.runs.report import failure_lines, format_text, join_command, waiting_sentence
from ice_notebook.runs.state import Phase
from ice_notebook.ui.text_view import _node_lines, _opening, _restart_lines
from ice_notebook.ui.widgets.panel_state import banner
from ice_notebook.wire import protocol as p

NODES = p.NodesPlan(least=2, most=3, address="127.0.0.1", last_call=1.0, join_timeout=600.0, token="T" * 64, environment={})
PLAN = plan(1, nodes=NODES)
COMMAND = f"ICE_NOTEBOOK_TOKEN={'T' * 64} python -m ice_notebook join 127.0.0.1:7"
LOST = "node 1 (other) was lost"


def waiting() -> History:
    history = History(1).add(p.NodesAwaited, address="127.0.0.1", port=7)
    return history.add(p.NodeJoined, node=0, name="this machine", n_ranks=1, devices="cpu:0")


def text_of_banner(history: History) -> str:
    shown = banner(PLAN, history.state)
    assert shown is not None
    return shown["text"]


def test_the_command_is_there_from_when_nodes_can_join_to_the_end_of_the_run() -> None:
    assert join_command(PLAN, History(1).state) == ""
    history = waiting()
    assert join_command(PLAN, history.state) == COMMAND
    assert join_command(plan(1), history.state) == ""
    assert join_command(PLAN, history.end(p.Outcome.STOPPED).state) == ""


def test_an_address_with_colons_stands_in_brackets() -> None:
    state = History(1).add(p.NodesAwaited, address="::1", port=7).state
    assert join_command(PLAN, state).endswith(" join [::1]:7")


def test_a_run_that_waits_says_for_how_many_and_who_was_refused() -> None:
    history = waiting()
    assert waiting_sentence(PLAN, history.state) == "waiting for nodes: 1 of 2 is here"
    history.add(p.NodeRefused, address="10.0.0.3", reason="It is a torchrun.")
    assert text_of_banner(history) == (
        f"Waiting for nodes: 1 of 2 is here. On each other node run:\n{COMMAND}\n"
        "Only this machine reaches 127.0.0.1: give master_addr an address of it to let others in. 10.0.0.3: It is a torchrun."
    )
    history.add(p.NodeJoined, node=1, name="other", n_ranks=1, devices="cpu:0")
    assert waiting_sentence(PLAN, history.state) == ""
    assert text_of_banner(history) == f"2 of up to 3 nodes are here. Others join with:\n{COMMAND}"


def test_the_text_view_says_each_thing_once_by_its_key() -> None:
    history = waiting().add(p.NodeJoined, node=1, name="other", n_ranks=1, devices="cpu:0")
    history.add(p.NodeLeft, node=1, name="other", reason="was lost").add(
        p.NodeRefused, address="10.0.0.3", reason="It is a torchrun."
    )
    lines = dict(_node_lines(PLAN, history.state))
    assert list(lines.values()) == [
        f"run: other nodes join with: {COMMAND} (only this machine reaches 127.0.0.1: give master_addr an address of it to let others in)",
        "node 1 (other) joined: 1 rank on cpu:0",
        LOST,
        "a node was refused: 10.0.0.3: It is a torchrun.",
    ]


def test_why_an_attempt_began_is_told_everywhere() -> None:
    history = waiting().begin().add(p.RoundEnded, attempt=0, reason=LOST, restarting=True)
    assert text_of_banner(history) == "Node 1 (other) was lost. All ranks are started again."
    assert [line for _, line in _restart_lines(PLAN, history.state)] == [f"attempt 2: {LOST}"]
    history.begin(restart_count=0)
    assert text_of_banner(history) == f"Attempt 2: {LOST}. All ranks were started again."
    text = format_text(PLAN, history.returns(0).end(p.Outcome.SUCCEEDED).state).splitlines()
    assert text[1] == f"attempt 2: {LOST}"


def test_a_run_that_a_missing_node_has_ended_says_so_and_blames_no_rank() -> None:
    history = waiting().begin().fails(0)
    why = f"{LOST}, and 1 node is left of the 2 that the run needs"
    history.add(p.RoundEnded, attempt=0, reason=why, restarting=False).end(p.Outcome.FAILED, why)
    assert failure_lines(PLAN, history.state)[0] == why
    assert text_of_banner(history) == f"N{why[1:]}."


# ---- nodes that are each started by hand

BY_HAND = plan(1, group=p.GroupPlan(least=2, most=4, address="10.0.0.1", port=29401, join_timeout=600.0, backend="c10d"))


def gathering(*here: str, problem: str = "") -> p.NodesGathering:
    return p.NodesGathering(at=1.0, where="10.0.0.1:29401", here=here, least=2, most=4, problem=problem)


def test_nodes_that_are_started_by_hand_say_what_they_wait_for_until_they_have_met() -> None:
    state = History(1).state
    assert list(_opening(BY_HAND, state)) == []  # nothing is known yet
    said = {
        gathering(problem="nothing listens there"): "waiting for nodes: 10.0.0.1:29401 is not reached yet: nothing listens there",
        gathering("10.0.0.1"): "waiting for nodes at 10.0.0.1:29401: 1 of 2 is here (10.0.0.1)",
        gathering(
            "10.0.0.1", "10.0.0.7", "n3"
        ): "waiting for nodes at 10.0.0.1:29401: 3 of up to 4 are here (10.0.0.1, 10.0.0.7 and n3)",
    }
    for event, sentence in said.items():
        state = state.apply(event)
        assert waiting_sentence(BY_HAND, state) == sentence
        assert [line for _, line in _opening(BY_HAND, state)] == [f"run: {sentence}"]
        assert format_text(BY_HAND, state).startswith("Run: waiting for nodes · 1 rank · ")
        shown = banner(BY_HAND, state)
        assert shown is not None
        assert shown["text"] == f"W{sentence[1:]}."
    start = p.RankStart(rank=3, local_rank=0, device="cpu:0", pid=7)
    state = state.apply(p.AttemptBegun(at=2.0, attempt=0, restart_count=0, world_size=4, ranks=(start,), has_others=True))
    assert waiting_sentence(BY_HAND, state) == ""
    assert [line for _, line in _opening(BY_HAND, state)] == ["run: running · 4 ranks on cpu:0"]
    # It runs when this node's ranks do: nothing is told of the others.
    assert state.apply(p.RankRunning(at=3.0, attempt=0, rank=3)).phase is Phase.RUNNING


def test_a_run_that_is_over_waits_for_nobody() -> None:
    state = History(1).state.apply(gathering("10.0.0.1")).apply(p.RunEnded(at=2.0, outcome=p.Outcome.STOPPED))
    assert waiting_sentence(BY_HAND, state) == ""
    assert format_text(BY_HAND, state).startswith("Run: stopped · ")
