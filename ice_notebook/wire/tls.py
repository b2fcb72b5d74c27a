"""A connection between two machines of a run: TLS with a certificate made for this run alone, and a proof of the run's token.

The joining side knows the certificate by the fingerprint in the token; the run's side sends a challenge, fresh for every connection, and
hears nothing that it would decode, let alone unpickle, before the right answer. Until then a peer can take neither memory nor time: what
it sends has a fixed size, and there is a deadline for all of it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import hashlib
import os
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

from ice_notebook.errors.nodes import NodeError
from ice_notebook.wire.token import NONCE_BYTES, PROOF_BYTES, Token

HANDSHAKE_S = 5.0  # for all that comes before the proof
_RETRY_S = 0.2
_GREETING = b"ICENODE1"
_ACCEPTED, _REFUSED = b"+", b"-"
_READ_BYTES = 1 << 18
_DAYS = 366  # a run that takes longer takes no new nodes
_TLS_HANDSHAKE = b"\x16\x03"  # how a TLS client's first record begins
_STORE_CLIENT = bytes([0x00, 0xCE, 0xF7, 0x85, 0x3C])  # torch's TCPStore: QueryType::VALIDATE and its magic number
# A machine that loses its power says nothing: it is missed after about ten seconds.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}


class TlsStream:
    """An encrypted stream with as much of a socket's interface as `frames.Channel` needs. One thread receives, any may send.

    OpenSSL's object may be used by one thread at a time, and a thread that waits for bytes would keep it: here the waiting is done on the
    plain socket, and the object is used between two waits.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, is_server: bool, deadline: float | None) -> None:
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self._using = threading.Lock()
        self._sending = threading.Lock()
        self._deadline = deadline
        self._shake_hands()

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    @property
    def local_address(self) -> str:
        """Return the address of this machine that the connection uses."""
        return str(self._socket.getsockname()[0])

    def peer_fingerprint(self) -> bytes:
        """Return the SHA-256 of the certificate that the other side has shown."""
        return hashlib.sha256(self._tls.getpeercert(binary_form=True) or b"").digest()

    def forget_deadline(self) -> None:
        """Wait without end from now on, and miss a peer that is gone without a word."""
        self._deadline = None
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def recv(self, size: int) -> bytes:
        """Return what is there, waiting for it; b"" at the end."""
        while True:
            with self._using:
                try:
                    return self._tls.read(size)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError as error:  # cut off, or bytes that nobody has encrypted for us
                    raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error
            self._feed()

    def receive_exactly(self, size: int) -> bytes:
        """Return so many bytes.

        Raises:
            EOFError: the other side has closed its end.
        """
        received = b""
        while len(received) < size:
            chunk = self.recv(size - len(received))
            if not chunk:
                raise EOFError
            received += chunk
        return received

    def sendall(self, data: bytes) -> None:
        """Send all of it, waiting until the socket has taken it."""
        with self._sending:
            with self._using:
                try:
                    self._tls.write(data)
                except ssl.SSLError as error:
                    raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error
            self._flush()

    def send(self, data: bytes, flags: int) -> int:  # noqa: ARG002 - a socket's signature
        """Take nothing at once: what is encrypted must be sent to its end."""
        return 0

    def shutdown(self, how: int) -> None:
        """End the connection under whoever waits for it."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
                continue
            self._flush()
            return

    def _flush(self) -> None:
        with self._using:
            data = self._outgoing.read()
        if data:
            self._set_timeout()
            self._socket.sendall(data)

    def _feed(self) -> None:
        self._set_timeout()
        data = self._socket.recv(_READ_BYTES)
        with self._using:
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def _set_timeout(self) -> None:
        if self._deadline is not None:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)


# ---- the run's side ----------------------------------------------------------------------------------------------------------------------


def make_identity() -> tuple[str, bytes]:
    """Return a fresh key with its certificate, as PEM, and the certificate's fingerprint."""
    from cryptography import x509  # noqa: PLC0415 - for runs of several nodes only
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ice_notebook run")])
    now = dt.datetime.now(dt.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=_DAYS))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    return pem.decode(), certificate.fingerprint(hashes.SHA256())


def server_context(identity: str) -> ssl.SSLContext:
    """Return what `accept` needs of an identity. The key touches no disk."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # no session is resumed: every connection proves the token
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)  # the ssl module reads keys from files only
    try:
        os.write(fd, identity.encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


@contextlib.contextmanager
def _closed_unless_met(sock: socket.socket, broken: Callable[[OSError | EOFError], NodeError]) -> Iterator[None]:
    """Close the socket when the two sides do not come to know each other; `broken` says what it means that the connection broke."""
    try:
        yield
    except NodeError:
        sock.close()
        raise
    except (OSError, EOFError) as error:
        sock.close()
        raise broken(error) from error


def accept(sock: socket.socket, context: ssl.SSLContext, token: Token) -> TlsStream:
    """Return the stream of a peer that has proved the token; the socket is closed otherwise.

    Raises:
        NodeError: it has not, or not in time.
    """
    deadline = time.monotonic() + HANDSHAKE_S
    with _closed_unless_met(sock, NodeError.no_proof):
        _look_at_first_bytes(sock, deadline)
        stream = TlsStream(sock, context, is_server=True, deadline=deadline)
        nonce = secrets.token_bytes(NONCE_BYTES)
        stream.sendall(_GREETING + nonce)
        if not token.is_proved_by(stream.receive_exactly(PROOF_BYTES), nonce):
            stream.sendall(_REFUSED)
            raise NodeError.wrong_token()
        stream.sendall(_ACCEPTED)
        stream.forget_deadline()
    return stream


def _look_at_first_bytes(sock: socket.socket, deadline: float) -> None:
    """Refuse by name what speaks another language."""
    sock.settimeout(max(0.01, deadline - time.monotonic()))
    first = sock.recv(len(_STORE_CLIENT), socket.MSG_PEEK)
    if first.startswith(_TLS_HANDSHAKE[: len(first)]):
        return
    if _STORE_CLIENT.startswith(first) and first:
        raise NodeError.torchrun()
    raise NodeError.garbage()


# ---- the joining side --------------------------------------------------------------------------------------------------------------------


def connect(host: str, port: int, token: Token, *, timeout_s: float) -> TlsStream:
    """Return a stream to a run's own machine, which has been recognised and has accepted the token.

    Raises:
        NodeError: nobody answers in time, somebody else does, or the token is refused.
    """
    where = f"{host}:{port}"
    sock = _reach(host, port, timeout_s)
    deadline = time.monotonic() + HANDSHAKE_S
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # no authority has signed it: it is known by its fingerprint
    with _closed_unless_met(sock, lambda _: NodeError.no_run(where)):
        stream = TlsStream(sock, context, is_server=False, deadline=deadline)
        if stream.peer_fingerprint() != token.fingerprint:
            raise NodeError.other_run(where)
        greeting = stream.receive_exactly(len(_GREETING) + NONCE_BYTES)
        if not greeting.startswith(_GREETING):
            raise NodeError.other_version(where)
        stream.sendall(token.prove(greeting[len(_GREETING) :]))
        if stream.receive_exactly(1) != _ACCEPTED:
            raise NodeError.token_refused(where)
        stream.forget_deadline()
    return stream


def _reach(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connect, trying again for as long as nobody listens there: either machine may be the first."""
    until = time.monotonic() + timeout_s
    while True:
        left_s = until - time.monotonic()
        try:
            return socket.create_connection((host, port), timeout=max(0.1, left_s))
        except socket.gaierror as error:
            raise NodeError.unknown_host(host, error) from error
        except OSError as error:
            if time.monotonic() + _RETRY_S >= until:
                raise NodeError.unreachable(f"{host}:{port}", timeout_s, error) from error
            with contextlib.suppress(InterruptedError):
                time.sleep(_RETRY_S)  # nothing announces that a machine elsewhere begins to listen
