"""The default process group that a rank gets without asking, and how it gives way to one of the user's."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
_PREFIX = "ice_notebook"
_original_init = dist.init_process_group


class ProcessGroup:
    """Ours as long as nobody else makes one."""

    def __init__(self) -> None:
        self._is_ours = False

    def init(self, backend: str) -> None:
        """Join the default group with the other ranks.

        It lives under a prefix of its own in the agent's store: a second group that the user makes after it would read its keys.
        """
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        _original_init(
            backend,
            store=dist.PrefixStore(_PREFIX, store),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )
        self._is_ours = True

    def destroy(self) -> None:
        """Leave the group, if it is still ours."""
        if self._is_ours and dist.is_initialized():
            dist.destroy_process_group()
        self._is_ours = False

    def give_way(self) -> None:
        """Have `init_process_group`, called by the user's function or a library, take our group down first.

        The function has two names that a caller may have taken it by: that of the package, and that of the module where it is defined,
        by which it is pickled.
        """

        @functools.wraps(_original_init)
        def init_process_group(*args: Any, **kwargs: Any) -> None:
            self.destroy()
            with _own_store_for(*args, **kwargs):
                _original_init(*args, **kwargs)

        dist.init_process_group = init_process_group
        dist.distributed_c10d.init_process_group = init_process_group


@contextlib.contextmanager
def _own_store_for(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Let a group with an address of its own make its own store.

    torch 2.6 to 2.13 takes TORCHELASTIC_USE_AGENT_STORE to mean that every store exists already (corrected in 2.14, pull request 191957).
    """
    init_method = kwargs.get("init_method", args[1] if len(args) > 1 else None)
    if not (isinstance(init_method, str) and init_method.startswith("tcp://")):
        yield
        return
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
