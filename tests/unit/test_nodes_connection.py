"""Token and connection: who proves the token is served, and nobody else gets anywhere."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ice_notebook.errors.nodes import NodeError
from ice_notebook.host.listening import listen
from ice_notebook.wire import tls
from ice_notebook.wire.frames import Channel, pack
from ice_notebook.wire.token import NONCE_BYTES, Token, parse_token

IDENTITY, FINGERPRINT = tls.make_identity()
TOKEN = Token.new(FINGERPRINT)


class Listening:
    """The run's side: what became of each connection, in order."""

    def __init__(self) -> None:
        self.socket = listen("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.thread: threading.Thread | None = None
        self.outcome: Any = None

    def accept_one(self) -> None:
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        sock, _ = self.socket.accept()
        try:
            self.outcome = tls.accept(sock, tls.server_context(IDENTITY), TOKEN)
        except NodeError as error:
            self.outcome = error

    def finish(self) -> Any:
        assert self.thread is not None
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.outcome


@pytest.fixture
def listening() -> Iterator[Listening]:
    made = Listening()
    made.accept_one()
    yield made
    made.socket.close()
    if isinstance(made.outcome, tls.TlsStream):
        made.outcome.close()


def join(listening: Listening, token: Token = TOKEN) -> tls.TlsStream:
    return tls.connect("127.0.0.1", listening.port, token, timeout_s=5)


# ---- the token ---------------------------------------------------------------------------------------------------------------------------


def test_a_token_is_one_word_that_reads_back() -> None:
    text = TOKEN.format()
    assert len(text) == 64
    assert parse_token(f" {text}\n") == TOKEN
    assert text not in repr(TOKEN)


@pytest.mark.parametrize(
    "text",
    ["", "x", TOKEN.format()[:-4], TOKEN.format() + "AAAA", "é" * 64, "$" * 64],
    ids=["empty", "short", "cut", "longer", "not ASCII", "not base64"],
)
def test_what_is_no_whole_token_is_refused(text: str) -> None:
    with pytest.raises(NodeError, match=f"and this one has {len(text)} characters"):
        parse_token(text)


def test_an_answer_is_right_for_its_own_challenge_only() -> None:
    nonce = bytes(NONCE_BYTES)
    proof = TOKEN.prove(nonce)
    assert TOKEN.is_proved_by(proof, nonce)
    assert not TOKEN.is_proved_by(proof, b"1" + nonce[1:])
    assert not Token.new(FINGERPRINT).is_proved_by(proof, nonce)


# ---- the connection ----------------------------------------------------------------------------------------------------------------------


def test_frames_of_any_size_go_both_ways_at_once(listening: Listening) -> None:
    ours = Channel(join(listening))
    theirs = Channel(listening.finish())
    body = bytes(range(256)) * (1 << 14)  # 4 MiB, more than any buffer on the way

    def echo() -> None:
        with contextlib.suppress(EOFError, OSError):  # the test ends with either end
            while True:
                theirs.send_packed(pack(*theirs.receive_frame()))

    threading.Thread(target=echo, daemon=True).start()
    sender = threading.Thread(target=lambda: [ours.send_packed(pack(b"%d" % n, body)) for n in range(4)])
    sender.start()
    for number in range(4):
        frame = ours.receive_frame()
        assert (frame.head, frame.body == body) == (b"%d" % number, True)
    sender.join()
    ours.close()
    theirs.close()


def test_the_end_of_a_connection_is_heard(listening: Listening) -> None:
    ours, theirs = Channel(join(listening)), Channel(listening.finish())
    theirs.close()
    with pytest.raises((EOFError, ConnectionError)):
        ours.receive_frame()
    ours.close()


def test_a_run_with_another_certificate_is_not_spoken_to(listening: Listening) -> None:
    with pytest.raises(NodeError, match="is not the one that this token belongs to"):
        join(listening, Token.new(bytes(32)))
    assert isinstance(listening.finish(), NodeError)


def test_the_wrong_secret_is_refused_on_both_sides(listening: Listening) -> None:
    with pytest.raises(NodeError, match="does not accept the token"):
        join(listening, Token.new(FINGERPRINT))
    assert str(listening.finish()) == "It does not have the run's token."


def test_a_recorded_answer_is_worth_nothing(listening: Listening) -> None:
    class Recorded(Token):
        def prove(self, nonce: bytes) -> bytes:
            return TOKEN.prove(bytes(NONCE_BYTES))

    with pytest.raises(NodeError, match="does not accept the token"):
        join(listening, Recorded(TOKEN.secret, FINGERPRINT))
    assert str(listening.finish()) == "It does not have the run's token."


def send(data: bytes) -> Callable[[socket.socket], None]:
    return lambda sock: sock.sendall(data)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (send(b"GET / HTTP/1.1\r\n\r\n"), "What it sent is not the beginning of a TLS connection."),
        (send(b"\x16\x03" + b"\xff" * 300), "The connection closed before it had proved the run's token"),
        (lambda sock: sock.shutdown(socket.SHUT_WR), "The connection closed before it had proved"),
        (send(b"\x00\xce\xf7\x85\x3c\x0c"), "It is a torchrun, or another client of torch's TCPStore."),
    ],
    ids=["http", "garbage", "nothing", "torchrun"],
)
def test_what_is_no_node_is_refused_by_name(listening: Listening, act: Callable[[socket.socket], None], said: str) -> None:
    with socket.create_connection(("127.0.0.1", listening.port)) as sock:
        act(sock)
        assert str(listening.finish()).startswith(said)


def test_a_connection_that_stays_silent_is_given_up(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_S", 0.05)
    other = Listening()
    other.accept_one()
    with socket.create_connection(("127.0.0.1", other.port)) as sock:
        assert str(other.finish()).startswith("The connection closed before it had proved the run's token")
        assert sock.recv(1) == b""
    other.socket.close()
    join(listening).close()


def test_one_who_stops_after_the_handshake_is_given_up(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Token, "prove", lambda *_: b"")  # the joining side says nothing, and waits
    monkeypatch.setattr(tls, "HANDSHAKE_S", 0.3)
    with pytest.raises(NodeError):
        join(listening)
    assert str(listening.finish()).startswith("The connection closed before it had proved the run's token")


def test_a_host_that_nobody_knows_and_a_port_where_nobody_listens_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(NodeError, match=rf"No run was reached at 127.0.0.1:{port} within 0.1 s: Connection refused"):
        tls.connect("127.0.0.1", port, TOKEN, timeout_s=0.1)
    with pytest.raises(NodeError, match=r"The host 'no-such-host.invalid' is not known here"):
        tls.connect("no-such-host.invalid", port, TOKEN, timeout_s=0.1)


def test_a_server_that_is_no_run_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            sock, _ = server.accept()
            sock.close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(NodeError, match=r"is not an ice_notebook run. A torchrun there cannot be joined"):
            tls.connect("127.0.0.1", server.getsockname()[1], TOKEN, timeout_s=1)
