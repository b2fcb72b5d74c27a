"""The state of torch's c10d rendezvous as JSON in a store. Runs in the agent.

torch pickles that state, and unpickles what it finds: whoever reaches the store could have run code in every agent. Here it is written and read as
JSON; torch unpickles only what was pickled from a state that was read so. The key is our own, so that a torchrun, which writes a pickle under its
own, is known by that.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Any

import msgspec
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousStateError
from torch.distributed.elastic.rendezvous import dynamic_rendezvous as theirs
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousBackend

from ice_notebook.errors import LibraryError
from ice_notebook.host import libraries

_NOTHING = "null"  # a key is read only when it is there: this is what it has before the first state
_Time = Annotated[datetime, msgspec.Meta(tz=True)]

libraries.require("torch", theirs, "_RendezvousState", "_NodeDesc", "create_handler")
_WRITTEN = {"round", "complete", "deadline", "closed", "participants", "wait_list", "redundancy_list", "last_heartbeats"}


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One node, as torch names it."""

    address: str
    pid: int
    local_id: int


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the nodes of a rendezvous agree upon."""

    round: int
    complete: bool
    deadline: _Time | None
    closed: bool
    participants: tuple[tuple[Node, int], ...]
    waiting: tuple[Node, ...]
    redundant: tuple[Node, ...]
    heartbeats: tuple[tuple[Node, _Time], ...]


def encode_state(pickled: bytes) -> str:
    """Return the state that torch has pickled in this process as JSON."""
    state: Any = pickle.loads(pickled)
    found = State(
        round=state.round,
        complete=state.complete,
        deadline=state.deadline,
        closed=state.closed,
        participants=tuple((_node(node), rank) for node, rank in state.participants.items()),
        waiting=tuple(map(_node, state.wait_list)),
        redundant=tuple(map(_node, state.redundancy_list)),
        heartbeats=tuple((_node(node), at) for node, at in state.last_heartbeats.items()),
    )
    return msgspec.json.encode(found).decode()


def decode_state(text: bytes) -> State:
    """Return a state.

    Raises:
        RendezvousStateError: the text is not such a state.
    """
    try:
        state = msgspec.json.decode(text, type=State)
    except msgspec.DecodeError as error:
        raise RendezvousStateError("What lies there was not written by ice_notebook.") from error
    alive = {node for node, _ in state.heartbeats}
    if not alive.issuperset([*(node for node, _ in state.participants), *state.waiting, *state.redundant]):
        raise RendezvousStateError("It names nodes without a sign of life.")
    return state


def pickle_state(state: State) -> bytes:
    """Return a state in the form that torch unpickles."""
    made = theirs._RendezvousState()
    made.round, made.complete, made.deadline, made.closed = state.round, state.complete, state.deadline, state.closed
    made.participants = {_theirs(node): rank for node, rank in state.participants}
    made.wait_list = set(map(_theirs, state.waiting))
    made.redundancy_list = set(map(_theirs, state.redundant))
    made.last_heartbeats = {_theirs(node): at for node, at in state.heartbeats}
    return pickle.dumps(made)


def _node(desc: Any) -> Node:
    return Node(desc.addr, desc.pid, desc.local_id)


def _theirs(node: Node) -> Any:
    return theirs._NodeDesc(node.address, node.pid, node.local_id)


class JsonBackend(RendezvousBackend):
    """Where torch's rendezvous keeps its state.

    `on_look` is called before each look at the store, with the last state, by whichever thread looks; it may raise.
    """

    def __init__(self, store: dist.Store, run_id: str, on_look: Callable[[State | None], None]) -> None:
        """Begin with what the store has.

        Raises:
            LibraryError: this torch has more in its state, or less, than is written here.
            RendezvousConnectionError: the store is not reached.
        """
        found = vars(theirs._RendezvousState()).keys()
        if found != _WRITTEN:
            raise LibraryError.changed("torch", libraries.version("torch"), f"_RendezvousState.{min(found ^ _WRITTEN)}")
        self._store = store
        self._key = f"ice_notebook/rendezvous/{run_id}"
        self._on_look = on_look
        self.state: State | None = None
        self._seen: dict[
            Node, tuple[datetime, float]
        ] = {}  # each node's last sign of life, and when it came, by this machine's clock
        self._call("compare_set", self._key, "", _NOTHING)

    @property
    def name(self) -> str:
        """Return the name in torch's events."""
        return "c10d"

    def get_state(self) -> tuple[bytes, Any] | None:
        """Return the state, pickled, and what `set_state` knows it by; None before there is one."""
        self._on_look(self.state)
        return self._take(self._call("get", self._key))

    def set_state(self, state: bytes, token: Any = None) -> tuple[bytes, Any, bool] | None:
        """Write a state in place of the one of the token, and return which is there now, and whether it is this one."""
        self._on_look(self.state)
        wanted = encode_state(state)
        found = self._call("compare_set", self._key, token.decode() if isinstance(token, bytes) else _NOTHING, wanted)
        taken = self._take(found)
        return None if taken is None else (*taken, found == wanted.encode())

    def silent_for(self, nodes: Iterable[Node]) -> dict[Node, float]:
        """Return for how many seconds each of some nodes has given no sign of life, by this machine's clock: others may go wrong."""
        now = time.monotonic()
        return {node: now - self._seen[node][1] if node in self._seen else float("inf") for node in nodes}

    def _take(self, text: bytes) -> tuple[bytes, Any] | None:
        if text == _NOTHING.encode():
            return None
        self.state = decode_state(text)
        now = time.monotonic()
        before = self._seen
        self._seen = {
            node: before[node] if node in before and before[node][0] == at else (at, now) for node, at in self.state.heartbeats
        }
        return pickle_state(self.state), text

    def _call(self, operation: str, *arguments: str) -> bytes:
        try:
            return bytes(getattr(self._store, operation)(*arguments))
        except (dist.DistError, RuntimeError, ValueError, TimeoutError) as error:
            raise RendezvousConnectionError("The connection to the rendezvous was lost.") from error
