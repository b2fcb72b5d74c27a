"""The store that is made before there is a run."""

from __future__ import annotations

import torch.distributed as dist

from ice_notebook.agent.rendezvous import EarlyStore


def test_a_run_has_the_early_store_if_it_wants_one_there_and_nobody_has_put_anything_into_it():
    early = EarlyStore()
    server, port = early._made
    assert early.give("127.0.0.1", 0) == (server, port)
    assert early.give("127.0.0.1", 0) is None  # it is given once
    assert EarlyStore().give("127.0.0.1", 29999) is None
    early = EarlyStore()
    dist.TCPStore("127.0.0.1", early._made[1], is_master=False).set("torch.rendezvous", "anything")
    assert early.give("127.0.0.1", 0) is None
