"""The default process group that a rank gets without asking, and how it gives way to one of the user's."""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import functools
import inspect
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
_PREFIX = "ice_notebook"
_JOIN_WAIT = dt.timedelta(seconds=60)  # ranks join within milliseconds of each other, on a loaded machine within seconds
_original_init = dist.init_process_group
_signature = inspect.signature(_original_init)


class ProcessGroup:
    """Ours as long as nobody else makes one."""

    def __init__(self) -> None:
        self._is_ours = False
        self._store: Any = None
        self._joined: list[str] = []  # a key for each rank that has made our group
        self._agents_address = _address()
        self._made: collections.Counter[int] = collections.Counter()  # the user's groups in the agent's store, by their world size

    def init(self, backend: str) -> None:
        """Join the default group with the other ranks.

        It lives under a prefix of its own in the agent's store: a second group that the user makes after it would read its keys.
        """
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._store = dist.PrefixStore(_PREFIX, store)
        _original_init(backend, store=self._store, rank=rank, world_size=world_size)
        self._joined = [f"joined/{each}" for each in range(world_size)]
        self._store.set(self._joined[rank], "")
        self._is_ours = True

    def destroy(self) -> None:
        """Leave the group, if it is still ours."""
        if self._is_ours and dist.is_initialized():
            self._wait_joined()
            dist.destroy_process_group()
        self._is_ours = False

    def leave(self) -> None:
        """Leave the group, if it is still ours, at the end of the process.

        The end itself takes a group of gloo down, which waits for 10 ms when it is asked to.
        """
        if self._is_ours and dist.is_initialized() and dist.get_backend() == "gloo":
            self._wait_joined()
        else:
            self.destroy()

    def _wait_joined(self) -> None:
        """Wait until all ranks have joined.

        A rank whose work is done at once could be gone while another still connects to it, and that one's init would fail with
        "Connection closed by peer".
        """
        with contextlib.suppress(dist.DistError):  # one never came, or the store is gone: that is told by whoever failed
            self._store.wait(self._joined, _JOIN_WAIT)

    def give_way(self) -> None:
        """Have `init_process_group`, called by the user's function or a library, take our group down first.

        The function has two names that a caller may have taken it by: that of the package, and that of the module where it is defined,
        by which it is pickled.
        """

        @functools.wraps(_original_init)
        def init_process_group(*args: Any, **kwargs: Any) -> None:
            self.destroy()
            with self._meeting_place(_signature.bind(*args, **kwargs).arguments) as arguments:
                _original_init(**arguments)

        dist.init_process_group = init_process_group
        dist.distributed_c10d.init_process_group = init_process_group

    @contextlib.contextmanager
    def _meeting_place(self, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the arguments of `init_process_group` with a store that no other group uses."""
        init_method = asked.get("init_method") or "env://"
        if asked.get("store") is not None or not isinstance(init_method, str):
            yield asked
        elif init_method == "env://" and _address() == self._agents_address:
            yield self._in_agents_store(asked)
        else:
            with _agents_store_forgotten():
                yield asked

    def _in_agents_store(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with a prefix of the agent's store for this group.

        torch makes every default group under the same keys: one that is made after another was destroyed finds the addresses of its
        connections there, which nobody answers any more (4 of 12 runs failed or stalled).
        """
        timeout = asked.get("timeout") or default_pg_timeout
        place = next(rendezvous("env://", asked.get("rank", -1), asked.get("world_size", -1), timeout=timeout))
        store, rank, world_size = place
        store.set_timeout(timeout)
        self._made[world_size] += 1  # the same on every rank of the group
        prefix = dist.PrefixStore(f"{_PREFIX}/{world_size}/{self._made[world_size]}", store)
        return {**asked, "init_method": None, "store": prefix, "rank": rank, "world_size": world_size}


def _address() -> tuple[str | None, str | None]:
    return os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")


@contextlib.contextmanager
def _agents_store_forgotten() -> Iterator[None]:
    """Let a group with an address of its own make its own store.

    torch 2.6 to 2.13 takes TORCHELASTIC_USE_AGENT_STORE to mean that every store exists already, also one at another address (corrected
    for `tcp://` in 2.14, pull request 191957).
    """
    value = os.environ.pop(_AGENT_STORE, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[_AGENT_STORE] = value


def use_device(device: str) -> None:
    """Make the assigned GPU the current one."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(torch.device(device))
