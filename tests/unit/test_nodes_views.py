"""What panel, report and text view say of several nodes."""

from __future__ import annotations

from histories import History, plan

from ice_notebook import protocol as p
from ice_notebook.report import failure_lines, format_text, join_command, waiting_sentence
from ice_notebook.text_view import _node_lines, _restart_lines
from ice_notebook.widgets.panel_state import banner

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
