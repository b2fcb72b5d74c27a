"""Messages: structures that travel in frames, and tables of what is done with each.

A message travels as JSON that names its kind, which is the name of its class. What a `Bulk` carries travels raw behind that. An end that only
waits for the next word has a `MessageChannel`; one that is told many things has `Handlers` as well.
"""

from __future__ import annotations

import functools
import operator
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from ice_notebook.wire import exact_json
from ice_notebook.wire.frames import Channel, Frame, is_readable_within, pack, unpack

PART_WAIT_S = 5.0  # between two parts of what the other side says in one go
K = TypeVar("K", bound="Message")
M = TypeVar("M")


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="message", tag=True):
    """The base of all messages: immutable; each says `frozen` and `kw_only` again, which do not inherit."""


class Bulk(Message, frozen=True, kw_only=True):
    """A message with raw bytes."""

    body: bytes = b""


def pack_message(message: Message) -> bytes:
    """Return a message as it travels."""
    if isinstance(message, Bulk):
        return pack(exact_json.encode(msgspec.structs.replace(message, body=b"")), message.body)
    return pack(exact_json.encode(message))


def _decode(decoder: exact_json.Decoder[Any], frame: Frame) -> Any:
    message = decoder.decode(frame.head)
    return msgspec.structs.replace(message, body=frame.body) if isinstance(message, Bulk) else message


def expect(message: object, kind: type[K]) -> K:
    """Return a message that must be of a kind.

    Raises:
        msgspec.DecodeError: it is of another one.
    """
    if not isinstance(message, kind):
        raise msgspec.DecodeError(f"{type(message).__name__} came in the place of {kind.__name__}")
    return message


class MessageChannel(Channel, Generic[M]):
    """One end of a connection on which messages of a union come. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket, union: Any) -> None:
        """`union` has the kinds of messages that may come."""
        super().__init__(sock)
        self._decoder = exact_json.decoder_of(union)

    def send(self, message: Message) -> None:
        """Send a message, waiting until the socket has taken it.

        Raises:
            OSError: the other side is gone.
        """
        self.send_packed(pack_message(message))

    def receive(self, timeout_s: float | None = None) -> M:
        """Wait for the next message and return it.

        Raises:
            EOFError: the other side has closed its end.
            TimeoutError: it has sent nothing in time.
            msgspec.DecodeError: what it has sent is no message of the union.
        """
        message: M = _decode(self._decoder, self.receive_frame(timeout_s))
        return message

    def receive_a(self, kind: type[K]) -> K:
        """Wait for the next message, which must be of a kind. Raises as `receive`."""
        return expect(self.receive(), kind)

    def receive_until(self, until: float) -> M | None:
        """Return the next message, None when it does not begin to come in time. Raises as `receive`, also when its end does not come."""
        return self.receive(PART_WAIT_S) if is_readable_within(self.fileno(), until - time.monotonic()) else None

    def receive_ready(self) -> list[M]:
        """Read once from a socket that a selector calls readable, and return the messages that are complete now. Raises as `receive`."""
        return [_decode(self._decoder, frame) for frame in self.receive_ready_frames()]


class Handlers:
    """What is done with each kind of message that comes: one table from kind to method."""

    def __init__(self, table: Mapping[Any, Callable[..., Any]]) -> None:
        self._table: dict[type[Message], Callable[..., Any]] = dict(table)
        self._decoder: exact_json.Decoder[Any] | None = None

    @property
    def kinds(self) -> frozenset[type[Message]]:
        """Return the kinds that are known."""
        return frozenset(self._table)

    def on(self, kind: type[Message], method: Callable[..., Any]) -> None:
        """Know one more kind, or do something else with one."""
        self._table[kind] = method
        self._decoder = None

    def take(self, message: Message, *speaker: Any) -> Any:
        """Do what is to be done with a message, and return what that gives. Who has said it, if that is given, comes first.

        Raises:
            KeyError: it is of no kind that is known.
        """
        return self._table[type(message)](*speaker, message)

    def take_frame(self, frame: Frame, *speaker: Any) -> Any:
        """Do what is to be done with the message of a frame.

        Raises:
            msgspec.DecodeError: it is none of a kind that is known.
        """
        if not self._table:
            raise msgspec.DecodeError("no message is expected")
        if self._decoder is None:
            self._decoder = exact_json.Decoder(functools.reduce(operator.or_, self._table))
        return self.take(_decode(self._decoder, frame), *speaker)

    def take_packed(self, packed: bytes, *speaker: Any) -> Any:
        """Do what is to be done with a message that is packed. Raises as `take_frame`, and ValueError when it is not whole."""
        return self.take_frame(unpack(packed), *speaker)
