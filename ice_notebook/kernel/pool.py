"""Standby ranks of this process: agents whose ranks are up, have imported torch and wait for the next launch."""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import psutil

from ice_notebook.errors import join
from ice_notebook.host import cores, processes
from ice_notebook.kernel.agents import PRELOAD_S, AgentProcess, ForkedAgent, ForkServer
from ice_notebook.kernel.standby import Standby, wants_forks, why_not
from ice_notebook.wire import protocol as p

STANDBY_VARIABLE = "ICE_NOTEBOOK_STANDBY"  # off: nothing stands by unless a launch or the magic asks for it
IDLE_S = 600.0  # after so long without a launch they end
MOST_SETS = 4  # a set is an agent and its ranks; so many launches in quick succession find theirs ready
RANK_BYTES = 256 << 20  # that a process which has imported torch may take
MEMORY_SHARE = 0.25  # of the available memory that sets may take in all
QUIET_S = 2.0  # so long after the last launch the only set may import for the next ones


@dataclass(frozen=True)
class Wish:
    """What is to stand by after a launch."""

    n_ranks: int  # 0: nothing
    n_spares: int = 0  # more of them, with which a restart can begin at once
    preload: bool | tuple[str, ...] = True  # True: what ranks have imported lately


class Launched(Protocol):
    """A run as the pool sees it."""

    plan: p.Plan
    imports: dict[str, None]

    @property
    def is_up(self) -> bool:
        """Return whether its ranks are at work, or it is over."""

    def done(self) -> bool:
        """Return whether it is over."""

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have something called as soon as the run is over."""


class Pool:
    """The sets of this process, and the thread that sees to them as long as there are any."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sets: list[Standby] = []
        self._server: ForkServer | None = None
        self._successor: ForkServer | None = None  # it imports more, and then takes the server's place
        self._retired: list[ForkServer] = []
        self._next: p.Preparation | None = None  # what the next set is made from; None: none is wanted
        self._preload: dict[str, None] = {}  # modules, in the order of their imports
        self._refused: dict[str, str] = {}  # package: why it is not preloaded
        self._early: frozenset[str] | None = None
        self._running: list[Launched] = []  # runs that are not over
        self.fault = ""  # that kept ranks from standing by
        self._wanted_modules: bool | tuple[str, ...] = True
        self._n_spares = 0  # that the first set is to have
        # What launches want that do not say: as `standby=`, for which the variable sets the default.
        self.default: int | str = "off" if os.environ.get(STANDBY_VARIABLE) == "off" else "auto"
        self._used_at = time.monotonic()
        self._leisure = cores.Leisure()
        self._thread: threading.Thread | None = None
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    # ---- launches

    def start(
        self, run: Launched, write: Callable[[p.Plan], None], wish: Wish, *, uses: bool, expects: bool
    ) -> tuple[AgentProcess, p.Plan]:
        """Return an agent that does a run, and the plan as it does it. `write` is called with that plan before anything runs.

        The run counts as running until it is over: one that was not started in the end must be ended as well.

        With `uses` it may be one that stands by, or come from the fork server; without, it does only if ranks are to be forked. With
        `expects` `expect` is called for this run next: nothing gets ready for another one until its ranks are at work and leave a core idle.
        """
        with self._lock:
            self._wanted_modules = wish.preload
            if expects:
                self._running.append(run)
                run.when_done(self._wake)
                for standby in self._sets:
                    if standby.is_busy:
                        standby.pace(0)
        return self._start(run.plan, write, uses=uses)

    def _start(self, plan: p.Plan, write: Callable[[p.Plan], None], *, uses: bool) -> tuple[AgentProcess, p.Plan]:
        note = ""
        if uses and plan.may_stand_by:
            while (found := self._pick(plan)) is not None:
                standby, note = found
                if standby is None:
                    break
                preloaded = (standby.readiness or _NOTHING).preloaded
                settled = p.replace(plan, marker=standby.preparation.marker, start_note=note, preloaded=preloaded)
                write(settled)
                if standby.agent.take(settled):
                    return standby.agent, settled
                standby.close()
        settled = p.replace(plan, start_note=note)
        write(settled)
        with self._lock:
            preparation = p.replace(settled.preparation(), is_at_once=True)
            agent = self._new_agent(preparation) if uses or wants_forks(plan) else AgentProcess(preparation)
        agent.run(settled)
        return agent, settled

    def _new_agent(self, preparation: p.Preparation) -> AgentProcess:
        """Return an agent from the fork server, if there is one, or if ranks are to be forked; else a fresh one."""
        self._look()
        if self._server is not None and why_not(self._server.preparation, preparation, self._early):
            self._retire_server()
        if self._server is None and wants_forks(preparation):
            self._server = self._new_server(preparation)
        server = self._server
        if server is None or not (wants_forks(preparation) or server.is_forking):
            return AgentProcess(preparation)
        return ForkedAgent(preparation, server)

    def _retire_server(self) -> None:
        """Use the fork server for nothing more. A launch may still wait for its import: it does first what it was asked for."""
        assert self._server is not None
        self._drop_successor()
        self._server.retire()
        self._retired.append(self._server)
        self._server = None

    def _new_server(self, preparation: p.Preparation) -> ForkServer:
        return ForkServer(p.replace(preparation, n_ranks=0, marker=processes.new_marker()))

    def _pick(self, plan: p.Plan) -> tuple[Standby | None, str] | None:
        """Take the set that a launch can use out of the pool, one that waits first; None when there is no set at all.

        With no set of use: None and the reason. Those that are of no use to this launch are of none to the next. One that imports what runs
        have imported is not waited for: it may take longer than a cold start, or for ever.
        """
        with self._lock:
            self._look()
            if not self._sets:
                return None
            wanted = plan.preparation()
            reasons = {standby: standby.why_not(wanted, self._early) for standby in self._sets}
            useful = [standby for standby in self._sets if not reasons[standby]]
            for standby in self._sets if not useful else []:
                self._sets.remove(standby)
                standby.close()
            if not useful:
                return None, next(iter(reasons.values()))
            free = [standby for standby in useful if not standby.imports.package]
            if not free:
                return None, f"what stands by was importing {useful[0].imports.package}"
            chosen = min(free, key=lambda standby: (standby.is_busy, -len((standby.readiness or _NOTHING).preloaded)))
            self._sets.remove(chosen)
            there = chosen.preparation.n_ranks
            return chosen, f"{there} of {plan.world_size} ranks stood by" if there < plan.world_size else ""

    def expect(self, run: Launched, wish: Wish) -> None:
        """Have ranks stand by for a launch like this one, which was started so, as soon as it leaves a core idle or is over."""
        with self._lock:
            self._used_at = time.monotonic()
            self._n_spares = wish.n_spares
            self._expect_launches_of(p.replace(run.plan.preparation(), n_ranks=wish.n_ranks) if wish.n_ranks else None)
        self._serve()

    def prepare(self, preparation: p.Preparation) -> None:
        """Have ranks stand by from now on."""
        with self._lock:
            self._used_at = time.monotonic()
            self._n_spares = 0
            self._expect_launches_of(preparation)
        self._serve()

    def _expect_launches_of(self, preparation: p.Preparation | None) -> None:
        """Have the next sets made from this, and end those that no launch of its kind could use."""
        self._next = preparation
        self.fault = ""
        for standby in list(self._sets):
            if preparation is not None and standby.why_not(preparation, self._early):
                self._sets.remove(standby)
                standby.close()

    @property
    def is_on(self) -> bool:
        """Return whether anything is to stand by."""
        return self._next is not None

    def stop(self) -> None:
        """End all that stand by, and keep none."""
        with self._lock:
            self._next = None
            self._drop_successor()
            for standby in self._sets:
                standby.close()
            self._sets.clear()
            self._drop_runs_that_are_over()
            if self._server is not None and not self._running:
                self._server.close()
                self._server = None
            self._wake()

    def _drop_runs_that_are_over(self) -> None:
        for run in [run for run in self._running if run.done()]:
            self._running.remove(run)
            self._preload.update(run.imports)
            self._used_at = time.monotonic()

    def describe(self) -> str:
        """Return how it stands, in one line."""
        with self._lock:
            self._look()
            self._wake()  # what has just been heard is the thread's business, which will not hear it any more
            ready = [standby for standby in self._sets if standby.is_idle]
            if not self._sets:
                if self._next is None and self.fault:
                    return f"No ranks stand by: {self.fault}. The next launch tries again."
                return "No ranks stand by." if self._next is None else "No ranks stand by yet."
            n_ranks = sum(standby.preparation.n_ranks + standby.n_spares for standby in self._sets)
            n_ready = sum(standby.preparation.n_ranks + standby.n_spares for standby in ready)
            state = "getting ready" if not ready else "ready" if n_ready == n_ranks else f"{n_ready} of them ready"
            loaded = sorted({package for standby in ready for package in (standby.readiness or _NOTHING).preloaded})
            also = f", with {join(loaded, 'and')} loaded" if loaded else ""
            stand = "1 rank stands" if n_ranks == 1 else f"{n_ranks} ranks stand"
            return f"{stand} by: {state}{also}; {IDLE_S / 60:g} minutes without a launch end that."

    # ---- the thread

    def _serve(self) -> None:
        with self._lock:
            self._wake()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="ice-standby", daemon=True)
                with contextlib.suppress(RuntimeError):  # no more threads are to be had: launches start cold
                    thread.start()
                    self._thread = thread

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # enough wake-ups are under way
            os.write(self._wake_writer, b"!")

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            # No more processes, or no memory, or a fault of ours: launches start cold, and say what is wrong if they cannot either. The next
            # one that wants ranks to stand by starts this thread anew.
            with self._lock:
                self.fault = f"{type(error).__name__}: {error}"
                self._next = None
                while self._sets:
                    with contextlib.suppress(Exception):  # half of it may be gone: the next must be closed all the same
                        self._sets.pop().close()
                self._thread = None

    def _turn(self) -> bool:
        """Do what is to be done now, and wait until there is more; False when nothing is left to see to."""
        with selectors.DefaultSelector() as selector:
            with self._lock:
                wait_s = self._step()
                if wait_s is None:
                    self._thread = None
                    return False
                # Under the lock: a set that is taken now may be closed a moment later, and its descriptor be somebody else's.
                selector.register(self._wake_reader, selectors.EVENT_READ)
                for standby in self._sets:
                    selector.register(standby.agent.channel, selectors.EVENT_READ)
                for server in (self._server, self._successor):
                    if server is not None:
                        selector.register(server, selectors.EVENT_READ)
                wait_s = max(0.0, min([time.monotonic() + wait_s, *self._deadlines()]) - time.monotonic())
            for key, _ in selector.select(wait_s):
                if key.fileobj == self._wake_reader:
                    os.read(self._wake_reader, 4096)
            return True

    def _deadlines(self) -> Iterator[float]:
        """Give the moments at which something is to be looked at though nobody says anything."""
        yield from (standby.agent.deadline for standby in self._sets if standby.agent.deadline is not None)
        yield from (standby.imports.until for standby in self._sets)
        if self._successor is not None:
            yield self._successor.imports.until
        if len(self._sets) == 1 and (quiet_at := self._used_at + QUIET_S) > time.monotonic():
            yield quiet_at + cores.LOOK_S

    def _step(self) -> float | None:
        """Do what is to be done now, and return after how many seconds to look again; None when nothing is left to see to."""
        self._look()
        self._drop_runs_that_are_over()
        if any(not run.is_up for run in self._running):
            # Nothing here may take a core from ranks that come up. They leave one idle now and then, whenever they wait for the disk.
            self._leisure = cores.Leisure()
            return cores.LOOK_S
        left_s = self._used_at + IDLE_S - time.monotonic()
        if self._next is None or (left_s <= 0 and not self._running):
            self.stop()
            return None if self._server is None else IDLE_S  # a run of its may still be on
        if not self._running:
            for standby in self._sets:
                standby.pace(None)
        if (task := self._next_task()) is not None:
            n_cores = self._cores_to_spare()
            if not n_cores:
                return cores.LOOK_S
            task(n_cores)
        return left_s if not self._running else IDLE_S

    def _next_task(self) -> Callable[[int], None] | None:
        """Return what comes next to have ready for later launches, to be called with the number of idle cores; None when all is there.

        One thing at a time: whatever imports is seen through before another begins.
        """
        if any(standby.rests and standby.is_busy for standby in self._sets):
            return self._go_on
        if any(standby.is_busy for standby in self._sets) or (self._successor is not None and self._successor.imports.package):
            return None
        if len(self._sets) < self._most_sets():
            return self._add_set
        if not self._sets:
            return None
        if self._server is None:
            return self._start_server
        if self._may_have_spares(self._sets[0]):
            return self._add_spares
        return self._preload_of_forks() if wants_forks(self._sets[0].preparation) else self._preload_of_sets()

    def _go_on(self, n_cores: int) -> None:
        for standby in self._sets:
            if standby.rests and standby.is_busy:
                standby.pace(n_cores)

    def _add_set(self, n_cores: int) -> None:
        assert self._next is not None
        made = p.replace(self._next, marker=processes.new_marker(), at_a_time=n_cores if self._running else None)
        self._sets.append(Standby(self._new_agent(made)))

    def _start_server(self, _n_cores: int) -> None:
        """Have agents forked from now on: they cost nothing, where each fresh one imports torch once more."""
        assert self._next is not None
        self._server = self._new_server(self._next)

    def _add_spares(self, _n_cores: int) -> None:
        self._sets[0].add_spares(self._n_spares)

    # ---- what runs have imported: a launch never waits for it

    def _preload_of_sets(self) -> Callable[[int], None] | None:
        """Return how the next set imports one package more, as long as another one waits for a launch, or none has come for a while."""
        is_quiet = time.monotonic() - self._used_at > QUIET_S
        if sum(standby.is_idle for standby in self._sets) < 2 and not is_quiet:
            return None
        wanted = self._to_preload()
        for standby in reversed(self._sets):  # the first is the next to be taken
            if (missing := standby.imports.missing(wanted)) is not None:
                return partial(self._import, standby, *missing)
        return None

    def _import(self, standby: Standby, package: str, modules: list[str], n_cores: int) -> None:
        standby.pace(n_cores if self._running else None)
        standby.imports.begin(package, modules)

    def _preload_of_forks(self) -> Callable[[int], None] | None:
        """Return how a fork server comes by what it has not imported: another one, forked from it, imports that and takes its place."""
        assert self._server is not None
        if not self._server.is_forking:
            return None if self._server.readiness is None else self._preload_of_sets()
        wanted = self._to_preload()
        if self._successor is None:
            return None if self._server.imports.missing(wanted) is None else self._fork_successor
        if self._successor.readiness is None:
            return None
        missing = self._successor.imports.missing(wanted)
        return self._succeed if missing is None else lambda _: self._begin(missing)

    def _fork_successor(self, _n_cores: int) -> None:
        assert self._server is not None
        self._successor = self._server.make_successor()

    def _begin(self, missing: tuple[str, list[str]]) -> None:
        assert self._successor is not None
        self._successor.imports.begin(*missing)

    def _succeed(self, _n_cores: int) -> None:
        """Use the successor, and have sets that are forked from it in the place of the others."""
        assert self._successor is not None
        successor, self._successor = self._successor, None
        self._retire_server()
        self._server = successor
        for standby in [standby for standby in self._sets if wants_forks(standby.preparation)]:
            self._sets.remove(standby)
            standby.close()

    def _drop_successor(self) -> None:
        if self._successor is not None:
            self._successor.close()
            self._successor = None

    def _cores_to_spare(self) -> int:
        """Return how many cores are idle for another set; as soon as nothing of ours runs, the first set does not wait for one."""
        return 1 if not self._running and not self._sets else self._leisure.look()

    def _to_preload(self) -> list[str]:
        wanted = self._wanted_modules
        if wanted is False:
            return []
        modules = self._preload if wanted is True else wanted
        return [module for module in modules if module.partition(".")[0] not in self._refused]

    def _most_sets(self) -> int:
        return min(MOST_SETS, int(self._room() / self._set_bytes()))

    def _may_have_spares(self, standby: Standby) -> bool:
        """Return whether a set is to have ranks for a restart. Forked ones need no time to get ready."""
        if not self._n_spares or standby.n_spares or wants_forks(standby.preparation):
            return False
        return len(self._sets) * self._set_bytes() + self._n_spares * RANK_BYTES <= self._room()

    def _set_bytes(self) -> int:
        assert self._next is not None
        return (self._next.n_ranks + 1) * RANK_BYTES

    def _room(self) -> float:
        """Return how many bytes all sets together may take."""
        taken = len(self._sets) * self._set_bytes() + sum(standby.n_spares for standby in self._sets) * RANK_BYTES
        return MEMORY_SHARE * float(psutil.virtual_memory().available + taken)

    def _look(self) -> None:
        """Take what agents and fork servers have said, and put away what is of no use."""
        for server in [server for server in self._retired if server.has_ended()]:
            self._retired.remove(server)
            server.close()
        if self._server is not None:
            self._server.look()
            self._learn(self._server.readiness)
            if self._server.is_gone:
                self._retire_server()
        if self._successor is not None:
            self._successor.look()
            refusal = self._successor.refusal
            if self._has_done_harm(self._successor, is_over=self._successor.is_gone or bool(refusal), refusal=refusal):
                self._drop_successor()
        for standby in list(self._sets):
            standby.look()
            if standby.is_spoiled and not standby.imports.package:
                self._next = None  # they die by themselves: a cold start will say why
            if self._has_done_harm(standby, is_over=standby.is_spoiled or standby.is_gone):
                self._sets.remove(standby)
                standby.close()

    def _has_done_harm(self, who: Standby | ForkServer, *, is_over: bool, refusal: str = "") -> bool:
        """Return whether something that stands by is of no use any more, and take note of the package that is to blame for it, if one is."""
        refused = dict(who.readiness.refused) if who.readiness is not None else {}
        if who.imports.package and (who.imports.is_late or is_over):
            refused[who.imports.package] = (
                f"its import takes more than {PRELOAD_S:g} s" if who.imports.is_late else "its import ends the process"
            )
        elif refusal:
            refused[who.imports.last] = refusal
        self._learn(who.readiness)
        self._refused.update(refused)
        return is_over or bool(refused)

    def _learn(self, told: p.Readiness | None) -> None:
        """Take note of what imports have looked for."""
        if told is not None:
            self._early = (self._early or frozenset()) | frozenset(told.environment)


_NOTHING = p.Readiness(import_s=0.0, environment=())


def pool() -> Pool:
    """Return the pool of this process; a forked child has one of its own."""
    return _pool_of(os.getpid())


@functools.cache
def _pool_of(_pid: int) -> Pool:
    return Pool()
