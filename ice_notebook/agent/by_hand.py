"""How agents meet that were each started by hand, as torchrun's are: with a number each, or by torch's c10d rendezvous. Runs in the agent.

They know an address and a port, and no token: nothing is unpickled of what they tell each other, as with torchrun. Torchrun itself cannot
take part, because every round has a store of its own here: it is known by the keys that it writes, and by those that it does not.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters, registry
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from ice_notebook import protocol as p
from ice_notebook.agent.rendezvous import STORE_WAIT_S, FreshStoreRendezvous
from ice_notebook.nodes.errors import NodeError

LOOK_S = 0.2  # how long one look at a store may take: the run can be stopped between two
LEAVE_WAIT_S = 300.0  # torchrun's: ranks of other nodes may still need the store
FOREIGN_WAIT_S = 1.0  # a store of ours has its first key a moment after it is made
ANSWER_WAIT_S = 30.0  # torch's rendezvous lets its nodes go within two seconds of each other
_ROUND, _HERE, _AGAIN, _DONE, _OURS = (f"ice_notebook/{word}" for word in ("round", "here", "again", "done", "ours"))
_THEIRS = "torchelastic/role_info"  # torch's agents write it, with their number, where they have met; ours do so elsewhere


class _ByHand(FreshStoreRendezvous):
    """What both kinds have in common: nodes leave a round together, by a count in its store."""

    _client: dist.TCPStore | None = None
    _n_nodes = 0
    _has_left = False
    _is_stopped: Callable[[], bool]

    def leave_together(self) -> None:
        """Say that this node is done, and wait until all are."""
        deadline = time.monotonic() + LEAVE_WAIT_S
        self.leave()
        with contextlib.suppress(dist.DistError):  # the store is gone with its node: there is nothing to wait for
            while self._client is not None and self._client.add(_DONE, 0) < self._n_nodes:
                if self._is_stopped() or time.monotonic() >= deadline:
                    return
                time.sleep(LOOK_S / 4)

    def leave(self) -> None:
        """Say that this node will not take part any more, so that none that is done waits for it."""
        if self._client is not None and not self._has_left:
            self._has_left = True
            with contextlib.suppress(dist.DistError):
                self._client.add(_DONE, 1)


class StaticRendezvous(_ByHand):
    """Nodes with a number each. Node 0 has the store, on the one port that all know, and makes it anew for every round.

    A node that comes back with failed ranks says so in the store that it leaves, and the others come as well: with torch's own they would
    notice only by their ranks.
    """

    def __init__(self, plan: p.Plan, group: p.GroupPlan, is_stopped: Callable[[], bool]) -> None:
        super().__init__(plan.rdzv_id, group.address, group.port)
        self._group = group
        self._is_stopped = is_stopped
        self._last = b""  # the round that this node has left
        self._n_nodes = group.most

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other nodes at a new store.

        Raises:
            NodeError: they do not come in time, or one is a torchrun.
            SignalException: the run is being stopped.
        """
        deadline = time.monotonic() + self._group.join_timeout
        self._say_again()
        client = self._client = self._begin() if self._group.node_rank == 0 else self._reach_round(deadline)
        here = client.add(_HERE, 1)
        while here < self._group.most:
            self._check(deadline, here)
            if any(client.check([f"{self._run_id}/{_THEIRS}/{node}"]) for node in range(self._group.most)):
                raise NodeError.torchrun_came(self._where)
            time.sleep(LOOK_S / 10)
            here = client.add(_HERE, 0)
        store = dist.PrefixStore("ice_notebook/agent", client)
        place = RendezvousStoreInfo(self._address, self._group.port)
        return RendezvousInfo(store, self._group.node_rank, self._group.most, place)

    def num_nodes_waiting(self) -> int:
        """Return whether a node has left this round to begin another."""
        assert self._client is not None
        try:
            return int(self._client.add(_AGAIN, 0))
        except dist.DistError:
            return 0  # node 0 is gone, or begins anew: the ranks will notice, or be done

    def _say_again(self) -> None:
        if self._client is None:
            return
        with contextlib.suppress(dist.DistError):  # node 0 has begun anew already
            self._client.add(_AGAIN, 1)
        self._client = None

    def _begin(self) -> dist.TCPStore:
        self._make_store()
        client = dist.TCPStore(self._address, self._group.port, is_master=False, timeout=dt.timedelta(seconds=STORE_WAIT_S))
        client.set(_ROUND, secrets.token_hex(8))
        return client

    def _reach_round(self, deadline: float) -> dist.TCPStore:
        """Return a client of the round that follows the one left."""
        is_first, foreign_since = not self._last, float("inf")
        while True:
            self._check(deadline, 0)
            try:
                client = dist.TCPStore(self._address, self._group.port, is_master=False, timeout=dt.timedelta(seconds=LOOK_S))
                # Later, ranks of the round before may be the first to write into a new store.
                is_foreign = is_first and not client.check([_ROUND]) and client.num_keys() > 0
                foreign_since = min(foreign_since, time.monotonic()) if is_foreign else float("inf")
                if time.monotonic() > foreign_since + FOREIGN_WAIT_S:
                    raise NodeError.torchrun_listens(self._where)
                number = client.get(_ROUND)
                if number != self._last:
                    self._last = number
                    client.set_timeout(dt.timedelta(seconds=STORE_WAIT_S))
                    return client
            except dist.DistError:
                pass  # node 0 is not there yet, or closes its old store just now
            time.sleep(LOOK_S / 10)

    def _check(self, deadline: float, here: int) -> None:
        if self._is_stopped():
            raise SignalException("the run is being stopped", signal.SIGTERM)
        if time.monotonic() >= deadline:
            raise NodeError.not_met(self._where, here, self._group.most, self._group.join_timeout)

    @property
    def _where(self) -> str:
        return f"{self._address}:{self._group.port}"


class DynamicRendezvous(_ByHand):
    """torch's c10d rendezvous says who is in a round; the first of them makes the round's store, and publishes where it is."""

    def __init__(self, plan: p.Plan, group: p.GroupPlan, is_stopped: Callable[[], bool]) -> None:
        super().__init__(plan.rdzv_id, "", plan.master_port)
        self._is_stopped = is_stopped
        self._where = f"{group.address}:{group.port}"
        # Else torch shares the store of its own rendezvous with the ranks, over all rounds.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        parameters = RendezvousParameters(
            backend="c10d",
            endpoint=f"{group.address}:{group.port}",
            run_id=plan.rdzv_id,
            min_nodes=group.least,
            max_nodes=group.most,
            local_addr=group.local_address or _own_address(group.address, group.port),
            **{"join_timeout": str(int(group.join_timeout)), **group.configs},
        )
        self._inner: RendezvousHandler = registry.get_rendezvous_handler(parameters)

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other nodes, as torch does, and have a store that no earlier round has used.

        Raises:
            NodeError: a node is a torchrun.
            SignalException: the run is being stopped.
        """
        self._store = None
        with _interrupted_by(self._is_stopped):
            info = self._inner.next_rendezvous()
        check_others(info, self._where, self._is_stopped)
        if info.rank == 0:
            self._address = info.bootstrap_store_info.master_addr
            info.store.set(_ROUND, str(self._make_store()))
        port = int(info.store.get(_ROUND))
        address = info.bootstrap_store_info.master_addr
        client = dist.TCPStore(address, port, is_master=False, timeout=dt.timedelta(seconds=STORE_WAIT_S))
        self._client, self._n_nodes = client, info.world_size
        store = dist.PrefixStore("ice_notebook/agent", client)
        return RendezvousInfo(store, info.rank, info.world_size, RendezvousStoreInfo(address, port))

    def is_closed(self) -> bool:
        """Return whether a node has ended the rendezvous for all."""
        return bool(self._inner.is_closed())

    def set_closed(self) -> None:
        """End the rendezvous for all nodes."""
        self._inner.set_closed()

    def num_nodes_waiting(self) -> int:
        """Return how many nodes wait for a new round."""
        return int(self._inner.num_nodes_waiting())

    def shutdown(self) -> bool:
        """Close the store, and leave the rendezvous."""
        self._store = None
        return bool(self._inner.shutdown())


def check_others(info: RendezvousInfo, where: str, is_stopped: Callable[[], bool], *, timeout_s: float = ANSWER_WAIT_S) -> None:
    """See that all nodes of a round of torch's rendezvous are ours, by a key that each sets in its store.

    Raises:
        NodeError: one is a torchrun, or does not answer in time.
        SignalException: the run is being stopped.
    """
    deadline = time.monotonic() + timeout_s
    info.store.set(f"{_OURS}/{info.rank}", b"")
    while True:
        try:
            info.store.wait([f"{_OURS}/{node}" for node in range(info.world_size)], dt.timedelta(seconds=LOOK_S))
        except dist.DistStoreError:
            if any(info.store.check([f"{_THEIRS}/{node}"]) for node in range(info.world_size)):
                raise NodeError.torchrun_came(where) from None
            if is_stopped():
                raise SignalException("the run is being stopped", signal.SIGTERM) from None
            if time.monotonic() >= deadline:
                raise NodeError.silent(where, timeout_s) from None
        else:
            return


def rendezvous_by_hand(plan: p.Plan, group: p.GroupPlan, is_stopped: Callable[[], bool]) -> FreshStoreRendezvous:
    """Return how an agent that was started by hand meets the others."""
    return (StaticRendezvous if group.backend == "static" else DynamicRendezvous)(plan, group, is_stopped)


def _own_address(host: str, port: int) -> str | None:
    """Return the address at which the machine of the endpoint would see this one. A host name of one's own often means the loopback."""
    try:
        family, kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as sock:
            sock.connect(place)  # sends nothing
            return str(sock.getsockname()[0])
    except OSError:
        return None  # torch takes the host name, and says what is wrong with the endpoint


@contextlib.contextmanager
def _interrupted_by(is_stopped: Callable[[], bool]) -> Iterator[None]:
    """End a wait of torch's in the main thread, which knows nothing of stops, when the run is to be stopped: by a signal to that thread."""
    is_over = threading.Event()

    def interrupt(*_: object) -> None:
        if not is_over.is_set():
            raise SignalException("the run is being stopped", signal.SIGTERM)

    def watch() -> None:
        while not is_over.wait(LOOK_S / 4):
            if is_stopped():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, interrupt)
    watcher = threading.Thread(target=watch, name="ice-meeting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
        signal.signal(signal.SIGUSR2, before)
