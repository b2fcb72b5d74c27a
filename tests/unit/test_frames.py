from __future__ import annotations

import os
import select
import socket
import threading

import pytest

from ice_notebook.wire.frames import Channel, Frame


@pytest.fixture
def ends():
    ours, theirs = (Channel(sock) for sock in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def test_what_is_sent_is_received(ends):
    ours, theirs = ends
    ours.send("event", b"\x00raw\xff", rank=3, text="ü", none=None)
    ours.send("empty")
    assert theirs.receive() == Frame("event", {"rank": 3, "text": "ü", "none": None}, b"\x00raw\xff")
    assert theirs.receive() == Frame("empty")


def test_receiving_one_frame_leaves_the_next_in_the_socket_where_a_selector_sees_it(ends):
    ours, theirs = ends
    ours.send("plan", b"x" * 1000)
    ours.send("stop")
    assert theirs.receive().kind == "plan"
    assert select.select([theirs], [], [], 0)[0] == [theirs]
    assert [frame.kind for frame in theirs.receive_ready()] == ["stop"]


def test_frames_that_come_together_are_given_together_and_a_half_one_is_kept(ends):
    ours, theirs = ends
    wire = []
    for n in range(3):
        sender, receiver = socket.socketpair()
        Channel(sender).send("event", b"body", n=n)
        wire.append(receiver.recv(1 << 16))
        sender.close()
        receiver.close()
    together = b"".join(wire)
    for cut in range(1, len(together)):
        ours._socket.sendall(together[:cut])
        first = theirs.receive_ready()
        ours._socket.sendall(together[cut:])
        assert [frame.fields["n"] for frame in first + theirs.receive_ready()] == [0, 1, 2]


def test_a_frame_that_is_larger_than_a_read_is_put_together(ends):
    ours, theirs = ends
    body = os.urandom(1 << 20)
    thread = threading.Thread(target=ours.send, args=["value", body])
    thread.start()
    assert theirs.receive().body == body
    thread.join()


def test_several_threads_may_send(ends):
    ours, theirs = ends
    threads = [threading.Thread(target=lambda n=n: [ours.send("line", bytes(100 * n), n=n) for _ in range(50)]) for n in range(4)]
    for thread in threads:
        thread.start()
    received = [theirs.receive() for _ in range(200)]
    for thread in threads:
        thread.join()
    assert all(len(frame.body) == 100 * frame.fields["n"] for frame in received)


def test_the_end_of_one_side_is_an_end_of_file_on_the_other(ends):
    ours, theirs = ends
    ours.send("last")
    ours.close()
    assert theirs.receive().kind == "last"
    with pytest.raises(EOFError):
        theirs.receive()
    with pytest.raises(OSError):  # EPIPE or ECONNRESET
        theirs.send("too late")


def test_a_close_reaches_the_other_side_while_a_thread_waits_for_a_frame(ends):
    ours, theirs = ends
    ended = threading.Event()

    def wait():
        with pytest.raises((EOFError, OSError)):
            ours.receive()
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    ours.close()
    with pytest.raises(EOFError):
        theirs.receive()
    assert ended.wait(5)
    thread.join()


def test_an_end_with_bytes_unread_is_an_end_of_file_too(ends):
    ours, theirs = ends
    theirs.send("never read")
    ours.close()  # resets the connection
    with pytest.raises(EOFError):
        theirs.receive()


def test_a_closed_channel_has_no_descriptor(ends):
    ours, _ = ends
    ours.close()
    ours.close()
    assert ours.fileno() == -1
