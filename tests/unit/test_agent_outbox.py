"""What the agent tells the kernel: in order, without waiting, and with a count of what it left out."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ice_notebook.agent.outbox import OUTPUT_LIMIT_BYTES, Outbox
from ice_notebook.wire.frames import Channel

PIECE = b"x" * (64 << 10)


class Ends:
    """An outbox and the kernel's end of its connection."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(30)
        self.agents, self.kernel = Channel(ours), Channel(theirs)
        self.outbox = Outbox(self.agents)

    def receive(self, count: int) -> list[str]:
        return [self.kernel.receive().kind for _ in range(count)]


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.kernel.close()
    made.agents.close()


def test_what_the_socket_takes_is_sent_at_once_and_in_order(ends: Ends) -> None:
    for kind in ("one", "two", "three"):
        ends.outbox.post(kind)
    assert ends.receive(3) == ["one", "two", "three"], "without the thread, which has not even been started"


def test_what_may_wait_goes_with_the_next_frame(ends: Ends) -> None:
    ends.outbox.post_later("beginning")
    ends.kernel._socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        ends.kernel.receive()
    ends.kernel._socket.settimeout(30)
    ends.outbox.post("news")
    assert ends.receive(2) == ["beginning", "news"]


def test_what_may_wait_is_sent_at_the_end_at_the_latest(ends: Ends) -> None:
    ends.outbox.post_later("beginning")
    ends.outbox.drain(timeout_s=30)
    assert ends.receive(1) == ["beginning"]


def test_a_kernel_that_does_not_read_holds_nobody_up_and_learns_what_it_has_missed(ends: Ends) -> None:
    ends.outbox.start()
    n_pieces = 4 * OUTPUT_LIMIT_BYTES // len(PIECE)
    for _ in range(n_pieces):  # returns: nobody waits for the kernel
        ends.outbox.post_output(0, 1, PIECE)
    ends.outbox.post("event")
    came = missed = 0
    while (frame := ends.kernel.receive()).kind == "output":
        came += len(frame.body)
        missed += frame.fields["missed"]
    assert frame.kind == "event", "which is never left out, and comes after what was said before it"
    assert came < n_pieces * len(PIECE)

    ends.outbox.drain(timeout_s=30)
    last = ends.kernel.receive()
    assert (last.kind, last.body) == ("output", b"")
    assert came + missed + last.fields["missed"] == n_pieces * len(PIECE)

    ends.outbox.post_output(0, 1, PIECE)
    assert ends.kernel.receive().body == PIECE, "there is room again"


def test_progress_that_waits_is_replaced(ends: Ends) -> None:
    ends.outbox.start()
    ends.outbox.post("filler", b"x" * (4 << 20))  # more than the socket takes at once
    for done in range(5):
        ends.outbox.post_progress(0, 1, [["epoch", done, 5]])
    ends.outbox.post("end")
    assert ends.receive(1) == ["filler"]
    progress = ends.kernel.receive()
    assert progress.fields["bars"] == [["epoch", 4, 5]]
    assert ends.receive(1) == ["end"]


def test_a_kernel_that_is_gone_is_told_nothing_and_waited_for_no_longer(ends: Ends) -> None:
    ends.outbox.start()
    ends.outbox.post("filler", b"x" * (4 << 20))
    ends.kernel.close()
    ends.outbox.join(timeout=30)
    assert not ends.outbox.is_alive()
    ends.outbox.post("news")
    ends.outbox.drain(timeout_s=30)
    assert not ends.outbox._queue
