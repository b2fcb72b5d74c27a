"""Which of what stands by a launch is given, and what is got ready next. Agents are played: the other ends of their sockets are here."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace

import pytest
from histories import plan

from ice_notebook.host import cores, processes
from ice_notebook.kernel import pool as pool_module
from ice_notebook.kernel.agents import PRELOAD_S, Imports
from ice_notebook.kernel.pool import QUIET_S, Pool
from ice_notebook.kernel.standby import Standby
from ice_notebook.wire import control as c
from ice_notebook.wire import protocol as p
from ice_notebook.wire.messages import Message, MessageChannel

PLAN = plan(2)


class PlayedAgent:
    """An agent as the kernel sees it; `says` is what its process says."""

    def __init__(self, preparation: p.Preparation) -> None:
        ours, theirs = socket.socketpair()
        self.preparation = preparation
        self.channel, self._process = MessageChannel(ours, c.FromAgent), MessageChannel(theirs, c.ToAgent)
        self.deadline = None
        self.is_closed = False

    def tell(self, message: Message) -> None:
        self.channel.send(message)

    def is_ready(self, **readiness) -> None:
        self.says(c.Ready(readiness=p.Readiness(**{"import_s": 1.0, "environment": (), **readiness})))

    def says(self, message: Message) -> None:
        self._process.send(message)

    def heard(self) -> list[Message]:
        """Return what it was told."""
        told = []
        self._process._socket.setblocking(False)
        try:
            while True:
                told.append(self._process.receive())
        except BlockingIOError:
            return told
        finally:
            self._process._socket.setblocking(True)

    def dies(self) -> None:
        self._process.close()

    def kill(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.channel.close()
        self._process.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = SimpleNamespace(at=1000.0)
    fake = SimpleNamespace(monotonic=lambda: now.at, perf_counter=time.perf_counter)
    for module in ("ice_notebook.kernel.pool", "ice_notebook.kernel.agents", "ice_notebook.kernel.standby"):
        monkeypatch.setattr(f"{module}.time", fake)
    return now


@pytest.fixture
def made(monkeypatch, clock):
    """A pool whose cores are idle, and which has room for two sets. `made.add()` gives it one that is ready."""
    monkeypatch.setattr(pool_module, "MOST_SETS", 2)
    monkeypatch.setattr(processes, "sweep", lambda *_, **__: 0)
    monkeypatch.setattr(cores.Leisure, "look", lambda self: 1)
    pool = Pool()
    pool._next = PLAN.preparation()
    pool._server = SimpleNamespace(is_forking=False, readiness=None, look=lambda: False, is_gone=False, preparation=pool._next)

    def add(*, is_ready: bool = True) -> Standby:
        standby = Standby(PlayedAgent(PLAN.preparation()))
        pool._sets.append(standby)
        if is_ready:
            standby.agent.is_ready()
        return standby

    pool.add = add
    return pool


def run_that_imported(*modules: str):
    return SimpleNamespace(imports=dict.fromkeys(modules), done=lambda: True, is_up=True)


def test_a_launch_is_given_a_set_that_waits_and_not_one_that_imports(made):
    busy, waiting = made.add(), made.add()
    made._look()
    busy.imports.begin("sympy", ["sympy"])
    assert made._pick(PLAN) == (waiting, "")
    assert made._pick(PLAN) == (None, "what stands by was importing sympy")
    assert made._sets == [busy]
    busy.agent.is_ready(preloaded={"sympy": 1.0})
    assert made._pick(PLAN) == (busy, "")


def test_of_sets_that_wait_the_one_that_has_imported_most_is_given(made):
    plain, loaded = made.add(), made.add()
    loaded.agent.is_ready(preloaded={"sympy": 1.0})
    assert made._pick(PLAN)[0] is loaded
    assert made._pick(PLAN)[0] is plain


def test_a_set_that_imports_what_every_rank_needs_is_better_than_none(made):
    starting = made.add(is_ready=False)
    assert made._pick(PLAN) == (starting, "")


def test_a_set_imports_what_runs_have_imported_only_while_another_one_waits(made):
    made._running = [run_that_imported("sympy", "sympy.core", "tqdm")]
    first, second = made.add(), made.add()
    made._step()
    assert (first.imports.package, second.imports.package) == ("", "sympy")
    assert second.agent.heard() == [c.Preload(modules=("sympy", "sympy.core"))]
    made._step()
    assert first.imports.package == ""  # one thing at a time
    second.agent.is_ready(preloaded={"sympy": 1.0})
    made._step()
    assert second.imports.package == "tqdm"
    second.agent.is_ready(preloaded={"sympy": 1.0, "tqdm": 0.1})
    made._step()
    assert first.imports.package == "sympy"


def test_the_only_set_imports_when_no_launch_has_come_for_a_while(made, clock, monkeypatch):
    monkeypatch.setattr(pool_module, "MOST_SETS", 1)
    made._running = [run_that_imported("sympy")]
    only = made.add()
    made._step()
    assert only.imports.package == ""
    assert min(made._deadlines()) < clock.at + QUIET_S + 1
    clock.at += QUIET_S + 0.1
    made._step()
    assert only.imports.package == "sympy"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("takes for ever", f"its import takes more than {PRELOAD_S:g} s"),
        ("ends its process", "its import ends the process"),
        ("ends its agent", "its import ends the process"),
        ("sets a variable", "its import sets A"),
    ],
)
def test_a_package_whose_import_does_harm_is_refused_by_name_and_its_set_replaced(made, clock, how, reason):
    made._running = [run_that_imported("sympy", "tqdm")]
    other, harmed = made.add(), made.add()
    made._step()
    if how == "takes for ever":
        clock.at += PRELOAD_S + 0.1
    elif how == "ends its process":
        harmed.agent.says(c.Spoiled())
    elif how == "ends its agent":
        harmed.agent.dies()
    else:
        harmed.agent.is_ready(refused={"sympy": reason})
    made._look()
    assert made._refused == {"sympy": reason}
    assert (made._sets, harmed.agent.is_closed) == ([other], True)
    assert made._to_preload() == ["tqdm"]
    assert made._next is not None


def test_sets_that_die_without_importing_anything_are_not_made_again(made):
    made.add().agent.says(c.Spoiled())
    made._look()
    assert (made._sets, made._next, made._refused) == ([], None, {})


# ---- fork servers --------------------------------------------------------------------------------------------------------------------------


class PlayedServer:
    """A fork server as the pool sees it."""

    def __init__(self) -> None:
        self.preparation = p.replace(PLAN.preparation(), start_method="forkserver")
        self.readiness = p.Readiness(import_s=1.0, environment=())
        self.imports = Imports(SimpleNamespace(send=lambda *_, **__: None))
        self.refusal = ""
        self.is_gone = self.is_closed = self.is_retired = False
        self.successors: list[PlayedServer] = []

    @property
    def is_forking(self) -> bool:
        return not self.refusal and not self.is_gone

    def look(self) -> bool:
        return False

    def has_ended(self) -> bool:
        return False

    def make_successor(self) -> PlayedServer:
        self.successors.append(PlayedServer())
        return self.successors[-1]

    def retire(self) -> None:
        self.is_retired = True

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def forking(made):
    made._server = PlayedServer()
    made._next = made._server.preparation
    made._running = [run_that_imported("sympy", "tqdm")]
    for _ in range(2):
        standby = Standby(PlayedAgent(made._server.preparation))
        standby.agent.is_ready()
        made._sets.append(standby)
    return made


def test_a_fork_server_goes_on_while_one_forked_from_it_imports_more(forking):
    server = forking._server
    forking._step()
    [successor] = server.successors
    forking._step()
    assert (successor.imports.package, server.imports.package) == ("sympy", "")
    assert forking._server is server
    for package in ("sympy", "tqdm"):
        assert successor.imports.package == package
        successor.imports.end()
        forking._step()
    assert (forking._server, forking._successor, server.is_retired) == (successor, None, True)
    assert forking._sets == []  # others are forked in their place


@pytest.mark.parametrize("how", ["takes for ever", "dies", "a thread is left"])
def test_what_keeps_a_fork_server_from_forking_is_refused_and_the_old_one_goes_on(forking, clock, how):
    server = forking._server
    forking._step()
    forking._step()
    [successor] = server.successors
    if how == "takes for ever":
        clock.at += PRELOAD_S + 0.1
    elif how == "dies":
        successor.is_gone = True
    else:
        successor.imports.end()
        successor.refusal = "a thread runs in it (x)"
    forking._look()
    assert list(forking._refused) == ["sympy"]
    assert (forking._server, forking._successor, successor.is_closed) == (server, None, True)
    forking._step()
    forking._step()
    assert server.successors[-1].imports.package == "tqdm"
