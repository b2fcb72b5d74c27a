"""What the agent tells the kernel: in order, without waiting, and with a count of what it left out."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ice_notebook.agent.outbox import OUTPUT_LIMIT_BYTES, Outbox
from ice_notebook.wire import control as c
from ice_notebook.wire.messages import Message, MessageChannel, pack_message

PIECE = b"x" * (64 << 10)


class Ends:
    """An outbox and the kernel's end of its connection."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(30)
        self.agents: MessageChannel = MessageChannel(ours, c.ToAgent)
        self.kernel: MessageChannel = MessageChannel(theirs, c.FromAgent)
        self.outbox = Outbox(self.agents)

    def receive(self, count: int) -> list[Message]:
        return [self.kernel.receive() for _ in range(count)]


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.kernel.close()
    made.agents.close()


def test_what_the_socket_takes_is_sent_at_once_and_in_order(ends: Ends) -> None:
    messages = [c.Taken(), c.Imported(modules=["sympy"]), c.Stopping()]
    for message in messages:
        ends.outbox.post(message)
    assert ends.receive(3) == messages
    assert ends.outbox.ident is None, "without the thread, which has not even been started"


def test_what_is_packed_already_goes_as_it_is(ends: Ends) -> None:
    ends.outbox.post(pack_message(c.Taken()))
    assert ends.receive(1) == [c.Taken()]


def test_what_may_wait_goes_with_the_next_frame(ends: Ends) -> None:
    ends.outbox.post_later(c.Taken())
    ends.kernel._socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        ends.kernel.receive()
    ends.kernel._socket.settimeout(30)
    ends.outbox.post(c.Stopping())
    assert ends.receive(2) == [c.Taken(), c.Stopping()]


def test_what_may_wait_is_sent_at_the_end_at_the_latest(ends: Ends) -> None:
    ends.outbox.post_later(c.Taken())
    ends.outbox.drain(timeout_s=30)
    assert ends.receive(1) == [c.Taken()]


def test_a_kernel_that_does_not_read_holds_nobody_up_and_learns_what_it_has_missed(ends: Ends) -> None:
    n_pieces = 4 * OUTPUT_LIMIT_BYTES // len(PIECE)
    for _ in range(n_pieces):  # returns: nobody waits for the kernel
        ends.outbox.post_output(0, 1, PIECE)
    ends.outbox.post(c.Stopping())
    came = missed = 0
    while isinstance(message := ends.kernel.receive(), c.Output):
        came += len(message.body)
        missed += message.missed
    assert message == c.Stopping(), "which is never left out, and comes after what was said before it"
    assert came < n_pieces * len(PIECE)

    ends.outbox.drain(timeout_s=30)
    last = ends.kernel.receive()
    assert last == c.Output(attempt=0, rank=1, missed=last.missed)
    assert came + missed + last.missed == n_pieces * len(PIECE)

    ends.outbox.post_output(0, 1, PIECE)
    assert ends.kernel.receive().body == PIECE, "there is room again"


def test_progress_that_waits_is_replaced(ends: Ends) -> None:
    filler = c.Spoiled(body=b"x" * (4 << 20))  # more than the socket takes at once
    ends.outbox.post(filler)
    for done in range(5):
        ends.outbox.post_progress(c.Progress(attempt=0, rank=1, bars=[["epoch", done, 5]]))
    ends.outbox.post(c.Stopping())
    assert ends.receive(3) == [filler, c.Progress(attempt=0, rank=1, bars=[["epoch", 4, 5]]), c.Stopping()]


def test_output_that_waits_is_sent_as_one_as_long_as_it_is_of_one_kind(ends: Ends) -> None:
    ends.outbox.post(c.Spoiled(body=b"x" * (4 << 20)))
    for piece in (b"one ", b"two "):
        ends.outbox.post_output(0, 1, piece)
    ends.outbox.post_output(0, 1, b"lost", is_kept=False, is_stderr=True)
    ends.outbox.post_output(0, 2, b"another's")
    assert ends.receive(4)[1:] == [
        c.Output(attempt=0, rank=1, body=b"one two "),
        c.Output(attempt=0, rank=1, is_kept=False, is_stderr=True, body=b"lost"),
        c.Output(attempt=0, rank=2, body=b"another's"),
    ]


def test_a_kernel_that_is_gone_is_told_nothing_and_waited_for_no_longer(ends: Ends) -> None:
    ends.outbox.post(c.Spoiled(body=b"x" * (4 << 20)))
    ends.kernel.close()
    ends.outbox.join(timeout=30)
    assert not ends.outbox.is_alive()
    ends.outbox.post(c.Taken())
    ends.outbox.drain(timeout_s=30)
    assert not ends.outbox._queue
