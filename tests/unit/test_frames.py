from __future__ import annotations

import os
import select
import socket
import threading

import pytest

from ice_notebook.wire.frames import Channel, Frame, pack, unpack


@pytest.fixture
def ends():
    ours, theirs = (Channel(sock) for sock in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def test_what_is_sent_is_received(ends):
    ours, theirs = ends
    ours.send_packed(pack(b"head", b"\x00raw\xff"))
    ours.send_packed(pack(b"empty"))
    assert theirs.receive_frame() == Frame(b"head", b"\x00raw\xff")
    assert theirs.receive_frame() == Frame(b"empty")


def test_a_packed_frame_is_unpacked_and_a_part_of_one_is_refused():
    packed = pack(b"head", b"body")
    assert unpack(packed) == Frame(b"head", b"body")
    for wrong in (b"", packed[:5], packed[:-1], packed + b"!"):
        with pytest.raises(ValueError, match="not a whole frame"):
            unpack(wrong)


def test_receiving_one_frame_leaves_the_next_in_the_socket_where_a_selector_sees_it(ends):
    ours, theirs = ends
    ours.send_packed(pack(b"plan", b"x" * 1000))
    ours.send_packed(pack(b"stop"))
    assert theirs.receive_frame().head == b"plan"
    assert select.select([theirs], [], [], 0)[0] == [theirs]
    assert theirs.receive_ready_frames() == [Frame(b"stop")]


def test_frames_that_come_together_are_given_together_and_a_half_one_is_kept(ends):
    ours, theirs = ends
    together = b"".join(pack(b"%d" % n, b"body") for n in range(3))
    for cut in range(1, len(together)):
        ours._socket.sendall(together[:cut])
        first = theirs.receive_ready_frames()
        ours._socket.sendall(together[cut:])
        assert [frame.head for frame in first + theirs.receive_ready_frames()] == [b"0", b"1", b"2"]


def test_a_frame_that_is_larger_than_a_read_is_put_together(ends):
    ours, theirs = ends
    body = os.urandom(1 << 20)
    thread = threading.Thread(target=ours.send_packed, args=[pack(b"value", body)])
    thread.start()
    assert theirs.receive_frame().body == body
    thread.join()


def test_several_threads_may_send(ends):
    ours, theirs = ends
    threads = [
        threading.Thread(target=lambda n=n: [ours.send_packed(pack(b"%d" % n, bytes(100 * n))) for _ in range(50)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    received = [theirs.receive_frame() for _ in range(200)]
    for thread in threads:
        thread.join()
    assert all(len(frame.body) == 100 * int(frame.head) for frame in received)


def test_the_end_of_one_side_is_an_end_of_file_on_the_other(ends):
    ours, theirs = ends
    ours.send_packed(pack(b"last"))
    ours.close()
    assert theirs.receive_frame().head == b"last"
    with pytest.raises(EOFError):
        theirs.receive_frame()
    with pytest.raises(OSError):  # EPIPE or ECONNRESET
        theirs.send_packed(pack(b"too late"))


def test_a_close_reaches_the_other_side_while_a_thread_waits_for_a_frame(ends):
    ours, theirs = ends
    ended = threading.Event()

    def wait():
        with pytest.raises((EOFError, OSError)):
            ours.receive_frame()
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    ours.close()
    with pytest.raises(EOFError):
        theirs.receive_frame()
    assert ended.wait(5)
    thread.join()


def test_an_end_with_bytes_unread_is_an_end_of_file_too(ends):
    ours, theirs = ends
    theirs.send_packed(pack(b"never read"))
    ours.close()  # resets the connection
    with pytest.raises(EOFError):
        theirs.receive_frame()


def test_a_closed_channel_has_no_descriptor(ends):
    ours, _ = ends
    ours.close()
    ours.close()
    assert ours.fileno() == -1
