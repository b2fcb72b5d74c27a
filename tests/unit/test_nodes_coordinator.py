"""When rounds of several nodes begin and end: histories of what nodes say, and what is made of them."""

from __future__ import annotations

from typing import Any

from ice_notebook.agent.coordinator import COMMUNICATION_WINDOW_S, WINDOW_S, Begin, Coordinator, End, Finished
from ice_notebook.wire.node_messages import RoundFailed

LAST_CALL_S, JOIN_S = 1.0, 60.0


class Group:
    """A coordinator with a clock that stands still until it is told to go on."""

    def __init__(self, least: int, most: int, *, max_restarts: int = 0) -> None:
        self.now = 100.0
        self.coordinator = Coordinator(
            least=least, most=most, max_restarts=max_restarts, last_call_s=LAST_CALL_S, join_timeout_s=JOIN_S, now=self.now
        )
        self.coordinator.join("first")

    def join(self, name: str = "other") -> list[Any]:
        return self.ready(self.coordinator.join(name))

    def ready(self, *nodes: int) -> list[Any]:
        return [order for node in nodes for order in self.coordinator.ready(node, self.now)]

    def fails(self, node: int, rank: int = 0, number: int = 0, *, is_communication: bool = False) -> list[Any]:
        failure = RoundFailed(number=number, rank=rank, headline="ValueError: bad loss", is_communication=is_communication)
        return self.coordinator.failed(node, failure, self.now)

    def loses(self, node: int) -> list[Any]:
        return self.coordinator.lose(node, "was lost", self.now)

    def wait(self, seconds: float) -> list[Any]:
        self.now += seconds
        return self.coordinator.tick(self.now)

    def until_deadline(self) -> list[Any]:
        deadline = self.coordinator.deadline
        assert deadline is not None
        return self.wait(deadline - self.now)


def running(least: int, most: int, n_nodes: int, **options: Any) -> Group:
    """Return a group whose first round has begun on so many nodes."""
    group = Group(least, most, **options)
    for _ in range(n_nodes - 1):
        group.coordinator.join("other")
    orders = group.ready(*range(n_nodes))
    orders += group.until_deadline() if not orders else []
    assert orders == [Begin(0, tuple(range(n_nodes)), 0)]
    return group


def test_a_round_begins_when_all_nodes_are_there_in_either_order() -> None:
    group = Group(2, 2)
    assert group.ready(0) == []
    assert group.join() == [Begin(0, (0, 1), 0)]
    group = Group(2, 2)
    assert group.join() == []
    assert group.ready(0) == [Begin(0, (0, 1), 0)]
    assert group.coordinator.deadline is None


def test_with_a_range_there_is_a_last_call() -> None:
    group = Group(1, 3)
    assert group.ready(0) == []
    assert group.coordinator.deadline == group.now + LAST_CALL_S
    assert group.wait(LAST_CALL_S / 2) == []
    assert group.until_deadline() == [Begin(0, (0,), 0)]


def test_a_node_that_comes_during_the_last_call_is_waited_for() -> None:
    group = Group(1, 2)
    group.ready(0)
    node = group.coordinator.join("slow to import torch")
    assert group.wait(LAST_CALL_S) == []
    assert group.wait(10 * LAST_CALL_S) == []
    assert group.ready(node) == [Begin(0, (0, 1), 0)]


def test_a_run_gives_up_when_its_nodes_do_not_come() -> None:
    group = Group(2, 2)
    group.ready(0)
    [end] = group.until_deadline()
    assert end == End(-1, restarting=False, why="no other node has joined within 60 s, and the run needs 2")
    assert group.coordinator.is_over
    assert group.join() == group.ready(0) == []


def test_a_run_is_finished_when_all_nodes_are() -> None:
    group = running(2, 2, 2)
    assert group.coordinator.done(1, 0) == []
    assert group.coordinator.done(0, 7) == []  # of another round
    assert group.coordinator.done(0, 0) == [Finished(0)]


def test_a_node_that_is_done_may_leave() -> None:
    group = running(2, 2, 2)
    group.coordinator.done(1, 0)
    assert group.loses(1) == []
    assert group.coordinator.done(0, 0) == [Finished(0)]


def test_the_first_failure_that_is_no_broken_connection_is_the_cause() -> None:
    group = running(3, 3, 3)
    assert group.fails(0, 0, is_communication=True) == []
    assert group.coordinator.deadline == group.now + COMMUNICATION_WINDOW_S
    assert group.fails(2, 5) == []
    assert group.coordinator.deadline == group.now + WINDOW_S
    assert group.fails(1, 3) == [End(0, restarting=False, why="rank 5: ValueError: bad loss", root=5)]


def test_a_failure_is_settled_when_the_others_have_nothing_to_say() -> None:
    group = running(2, 2, 2)
    group.fails(1, 1)
    assert group.until_deadline() == [End(0, restarting=False, why="rank 1: ValueError: bad loss", root=1)]


def test_restarts_are_counted_for_all_nodes_together() -> None:
    group = running(2, 2, 2, max_restarts=1)
    group.fails(1, 1)
    assert group.until_deadline() == [End(0, restarting=True, why="rank 1: ValueError: bad loss", root=1)]
    assert group.ready(0) == []
    assert group.ready(1) == [Begin(1, (0, 1), 1)]
    group.fails(0, 0, number=0)  # late, of the first round
    assert group.coordinator.deadline is None
    group.fails(0, 0, number=1)
    [end] = group.until_deadline()
    assert not end.restarting


def test_losing_a_node_within_the_bounds_begins_a_new_round_and_is_no_restart() -> None:
    group = running(1, 2, 2)
    assert group.loses(1) == [End(0, restarting=True, why="node 1 (other) was lost")]
    assert group.ready(0) == [Begin(1, (0,), 0)]


def test_a_lost_node_explains_the_broken_connections_of_the_others() -> None:
    group = running(1, 2, 2)
    assert group.fails(0, is_communication=True) == []
    assert group.loses(1) == [End(0, restarting=True, why="node 1 (other) was lost")]


def test_losing_a_node_that_is_needed_ends_the_run() -> None:
    group = running(2, 2, 2, max_restarts=3)
    [end] = group.loses(1)
    assert end == End(0, restarting=False, why="node 1 (other) was lost, and 1 node is left of the 2 that the run needs")
    assert group.coordinator.is_over


def test_a_node_that_leaves_between_two_rounds_is_not_waited_for() -> None:
    group = running(1, 3, 3, max_restarts=1)
    group.fails(0)
    group.until_deadline()
    group.ready(0, 1)
    assert group.loses(2) == [Begin(1, (0, 1), 1)]


def test_the_run_ends_when_the_nodes_become_too_few_between_two_rounds() -> None:
    group = running(2, 2, 2, max_restarts=1)
    group.fails(0)
    group.until_deadline()
    [end] = group.loses(1)
    assert (end.restarting, end.why) == (False, "node 1 (other) was lost, and 1 node is left of the 2 that the run needs")


def test_a_node_that_leaves_before_the_first_round_can_be_replaced() -> None:
    group = Group(2, 2)
    group.ready(0)
    node = group.coordinator.join("early")
    assert group.coordinator.is_full
    assert group.loses(node) == []
    assert group.join("late") == [Begin(0, (0, 2), 0)]


def test_a_node_that_joins_a_running_group_begins_a_new_round_when_it_is_ready() -> None:
    group = running(1, 2, 1)
    node = group.coordinator.join("late")
    assert group.coordinator.deadline is None
    assert group.ready(node) == [End(0, restarting=True, why="node 1 (late) joined")]
    assert group.ready(0) == [Begin(1, (0, 1), 0)]


def test_what_was_returned_is_not_taken_back_for_a_node_that_joins() -> None:
    group = running(1, 3, 2)
    group.coordinator.done(0, 0)
    assert group.join("late") == []
    assert group.coordinator.done(1, 0) == [Finished(0)]
