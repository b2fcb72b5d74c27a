"""torch's elastic agent with our processes under it. Runs in the agent's main thread.

torch computes ranks, environment, restarts and membership; where it would start processes, its module's name `start_processes` points at
us for the time of that call, and what we return, `attempt.AttemptContext`, is used by torch through three methods only: `pids()`, `wait(0)` and
`close()`.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic import events
from torch.distributed.elastic.agent.server import api, local_elastic_agent
from torch.distributed.elastic.agent.server.api import WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler

from ice_notebook.agent.attempt import AttemptContext
from ice_notebook.agent.io import AgentIO
from ice_notebook.agent.meeting import Meeting, RunOverError
from ice_notebook.agent.rendezvous import EarlyStore, FreshStoreRendezvous, NodesRendezvous
from ice_notebook.agent.round import RoundContext
from ice_notebook.agent.state import StopRequest
from ice_notebook.errors import LibraryError
from ice_notebook.host import libraries
from ice_notebook.host.identities import own_identity
from ice_notebook.options.rendezvous import LOOPBACK
from ice_notebook.wire import node_messages as m
from ice_notebook.wire import protocol as p

api._get_fq_hostname = lambda: "localhost"  # it asks the resolver five times a launch, for its own event records

libraries.require("torch", api, "_get_fq_hostname")
libraries.require("torch", local_elastic_agent, "start_processes")
libraries.require("torch", LocalElasticAgent, "_start_workers", "_rendezvous", "_exit_barrier")

LOST_WAIT_S = 15.0  # word of a node that has lost its power comes after about ten seconds


class IceAgent(LocalElasticAgent):
    """`LocalElasticAgent` with ranks that the io thread starts."""

    def __init__(self, plan: p.Plan, io: AgentIO, meeting: Meeting | None = None, early: EarlyStore | None = None) -> None:
        place = plan.rdzv_id, plan.master_addr, plan.master_port
        rendezvous = FreshStoreRendezvous(*place, early)
        if meeting is not None:
            rendezvous = NodesRendezvous(*place, meeting, lambda: io.state.stop is not None)
        elif plan.group is not None:
            from ice_notebook.agent import by_hand  # noqa: PLC0415 - for several nodes only

            rendezvous = by_hand.rendezvous_by_hand(
                plan, plan.group, by_hand.Agent(lambda: io.state.stop is not None, io.recorder.record, self._end_round)
            )
        spec = _make_spec(plan.role, plan.world_size, plan.name, plan.max_restarts, rendezvous)
        super().__init__(spec, DefaultLogsSpecs(os.devnull))
        self._plan = plan
        self._io = io
        self._attempt = -1
        self.meeting = meeting
        self.rendezvous_handler = rendezvous
        self._contexts: list[AttemptContext] = []

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        while True:
            try:
                super()._rendezvous(worker_group)
            except dist.DistError:
                # A node was lost while torch's agents told each other of their ranks. The round is over, or is about to be.
                if self.meeting is None or not self.meeting.wait_over(
                    self._round.number, lambda: self._io.state.stop is not None, LOST_WAIT_S
                ):
                    raise
            else:
                return

    def _end_round(self, why: str) -> None:
        """Say that an attempt ends because of other nodes."""
        self._io.recorder.record(p.RoundEnded(at=time.time(), attempt=self._attempt, reason=why, restarting=True))

    def _exit_barrier(self) -> None:
        # Of several nodes torch would wait half a minute for one that is not done, or has left since, and would hear of no stop.
        if self._plan.group is not None:
            self.rendezvous_handler.leave_together()

    @property
    def _round(self) -> m.Round:
        assert isinstance(self.rendezvous_handler, NodesRendezvous)
        return self.rendezvous_handler.round

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self.meeting is not None:
            # Rounds and restarts are those of all nodes, also for one that has just come.
            assert isinstance(self.rendezvous_handler, NodesRendezvous)
            self.rendezvous_handler.is_assigning = False
            self._attempt = self._round.number - 1
            self._remaining_restarts = self._plan.max_restarts - self._round.restarts

        def start_processes(*_: object, envs: dict[int, dict[str, str]], **__: object) -> AttemptContext:
            self._attempt += 1
            started = self._make_context(worker_group, envs)
            self._contexts.append(started)
            started.start()
            return started

        theirs = local_elastic_agent.start_processes
        local_elastic_agent.start_processes = start_processes
        try:
            pids: dict[int, Any] = super()._start_workers(worker_group)
        finally:
            local_elastic_agent.start_processes = theirs
        if not isinstance(self._pcontext, AttemptContext):
            raise LibraryError.changed("torch", libraries.version("torch"), "local_elastic_agent.start_processes")
        return pids

    def _make_context(self, group: WorkerGroup, environments: dict[int, dict[str, str]]) -> AttemptContext:
        attempt = self._io, group, environments, self._attempt, self._remaining_restarts
        return AttemptContext(*attempt) if self.meeting is None else RoundContext(self.meeting, *attempt)

    @property
    def swept(self) -> int:
        """Return how many processes the ranks of all attempts had started and left behind."""
        return sum(each.swept for each in self._contexts)

    def _get_fq_hostname(self) -> str:
        return "localhost"


def get_ready() -> EarlyStore:
    """Do what takes time while nobody waits for it, and return the store that the run may have."""
    events.record(events.Event("ready", events.EventSource.AGENT))  # torch's log of events opens at the first one
    own_identity()  # it is remembered
    _rehearse()
    return EarlyStore()


def _rehearse() -> None:
    """Have torch's agent meet itself: what a process does for the first time takes it twice as long, and a launch would wait for it."""
    rendezvous = FreshStoreRendezvous("rehearsal", LOOPBACK, 0)
    agent = LocalElasticAgent(_make_spec("rehearsal", 1, "nothing", 0, rendezvous), DefaultLogsSpecs(os.devnull))
    agent._rendezvous(agent._worker_group)
    rendezvous.shutdown()


def _make_spec(role: str, n_ranks: int, name: str, max_restarts: int, rendezvous: RendezvousHandler) -> WorkerSpec:
    return WorkerSpec(
        role=role,
        local_world_size=n_ranks,
        rdzv_handler=rendezvous,
        entrypoint=name,
        max_restarts=max_restarts,
        monitor_interval=0.001,  # torch sleeps this long before each look; `wait` is where time is spent
    )


def run_elastic(
    plan: p.Plan, io: AgentIO, meeting: Meeting | None = None, early: EarlyStore | None = None
) -> tuple[p.Outcome, str, int]:
    """Do the run under torch's agent, and return how it ended, why when no rank says so, and how many processes had to be swept."""
    agent = IceAgent(plan, io, meeting, early)
    reason = ""
    try:
        result = agent.run()
        outcome = p.Outcome.FAILED if result is None or result.is_failed() else p.Outcome.SUCCEEDED
    except SignalException:
        assert io.state.stop is not None
        is_late = io.state.stop.reason is p.StopReason.TIMEOUT
        outcome, reason = p.Outcome.FAILED if is_late else p.Outcome.STOPPED, io.state.stop.reason.value
    except RunOverError as error:
        outcome, reason = p.Outcome.FAILED, str(error)
    finally:
        agent.rendezvous_handler.leave()
    return outcome, reason, agent.swept


def start_clock(plan: p.Plan, io: AgentIO) -> None:
    """Stop the run when its time is over."""
    if plan.timeout is None:
        return
    timer = threading.Timer(plan.timeout, io.request_stop, [StopRequest(p.StopReason.TIMEOUT)])
    timer.daemon = True
    timer.start()
