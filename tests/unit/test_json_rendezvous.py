"""The state of torch's c10d rendezvous as JSON: torch is given what it would have unpickled, and nothing of what lies in the store is."""

from __future__ import annotations

import base64
import json
import os
import pickle
from datetime import datetime, timedelta, timezone

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousStateError, dynamic_rendezvous

from ice_notebook.agent.json_rendezvous import JsonBackend, decode_state, encode_state, pickle_state
from ice_notebook.errors import LibraryError

NOW = datetime(2026, 11, 30, 12, 0, 0, 123456, tzinfo=timezone.utc)
KEY = "ice_notebook/rendezvous/job7"


def state_of_torch():
    first, second, third = (dynamic_rendezvous._NodeDesc(f"10.0.0.{n}", 100 + n, n) for n in range(3))
    state = dynamic_rendezvous._RendezvousState()
    state.round, state.complete, state.deadline = 3, True, NOW + timedelta(seconds=5)
    state.participants = {first: 0, second: 1}
    state.wait_list, state.redundancy_list = {third}, set()
    state.last_heartbeats = dict.fromkeys((first, second, third), NOW)
    return state


def backend(store=None, looked=None):
    return JsonBackend(store or dist.HashStore(), "job7", (looked if looked is not None else []).append)


def test_a_state_comes_back_as_torch_has_written_it():
    pickled = pickle.dumps(state_of_torch())
    there_and_back = pickle_state(decode_state(encode_state(pickled).encode()))
    assert vars(pickle.loads(there_and_back)) == vars(state_of_torch())


def test_a_torch_that_has_more_in_its_state_is_named(monkeypatch):
    made = dynamic_rendezvous._RendezvousState.__init__

    def make(self):
        made(self)
        self.quorum = 2

    monkeypatch.setattr(dynamic_rendezvous._RendezvousState, "__init__", make)
    with pytest.raises(
        LibraryError, match=r"^torch 2\.\S+ is not as this version of ice_notebook knows it: _RendezvousState\.quorum is new"
    ):
        backend()


def test_who_has_seen_the_newest_state_writes_the_next_one():
    store, looked = dist.HashStore(), []
    ours, others = backend(store, looked), backend(store)
    assert ours.get_state() is None
    state = state_of_torch()
    taken, token, is_written = ours.set_state(pickle.dumps(state))
    assert (vars(pickle.loads(taken)), is_written) == (vars(state), True)
    state.round = 4
    seen, others_token = others.get_state()
    assert pickle.loads(seen).round == 3
    assert others.set_state(pickle.dumps(state), others_token)[2] is True
    # What others have written meanwhile wins, and is returned.
    state.round = 5
    taken, _, is_written = ours.set_state(pickle.dumps(state), token)
    assert (pickle.loads(taken).round, is_written) == (4, False)
    assert ours.set_state(pickle.dumps(state))[2] is False  # as if there were none
    assert [known and known.round for known in looked] == [None, None, 3, 4]


def run_of(mark):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch '{mark}'",)

    return pickle.dumps(Evil())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"{}",
        b'{"round": 1}',
        b"[" * 100_000,
        json.dumps({"round": "1"}).encode(),
        encode_state(pickle.dumps(state_of_torch())).replace('"round"', '"rund"').encode(),
        encode_state(pickle.dumps(state_of_torch())).replace('"10.0.0.1"', "[1]").encode(),
        encode_state(pickle.dumps(state_of_torch())).replace("123456Z", "123456").encode(),  # a time of no zone cannot be compared
        encode_state(pickle.dumps(state_of_torch())).replace('"heartbeats":[', '"heartbeats":[],"waiting":[').encode(),
    ],
)
def test_what_is_no_state_is_refused(text):
    with pytest.raises(RendezvousStateError):
        decode_state(text)


def test_a_pickle_in_the_store_is_not_run(tmp_path):
    store = dist.HashStore()
    found = backend(store)
    for lies in (run_of(tmp_path / "ran"), base64.b64encode(run_of(tmp_path / "ran"))):
        store.set(KEY, lies)
        with pytest.raises(RendezvousStateError, match=r"not written by ice_notebook\."):
            found.get_state()
        with pytest.raises(RendezvousStateError):
            found.set_state(pickle.dumps(state_of_torch()))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_gone_is_told_as_torch_expects_it():
    class Gone:
        def compare_set(self, *_):
            return b"null"

        def get(self, *_):
            raise dist.DistNetworkError("connection reset")

    with pytest.raises(RendezvousConnectionError):
        backend(Gone()).get_state()


def test_a_node_is_silent_since_its_last_new_sign_of_life_by_the_clock_of_this_machine(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("ice_notebook.agent.json_rendezvous.time", clock)
    store, state = (
        dist.HashStore(),
        state_of_torch(),
    )  # whose times are a year old or ahead: that another clock goes wrong is no loss
    found = backend(store)
    found.set_state(pickle.dumps(state))
    nodes = [node for node, _ in found.state.participants]
    clock.now += 4
    state.last_heartbeats[next(iter(state.participants))] += timedelta(seconds=1)
    store.set(KEY, encode_state(pickle.dumps(state)))
    found.get_state()
    clock.now += 3
    assert list(found.silent_for(nodes).values()) == [3.0, 7.0]
    del state.participants[next(iter(state.participants))]
    state.last_heartbeats.pop(next(node for node in state.last_heartbeats if node.pid == 100))
    store.set(KEY, encode_state(pickle.dumps(state)))
    found.get_state()
    assert found.silent_for(nodes)[nodes[0]] == float("inf")  # another node has given it up
