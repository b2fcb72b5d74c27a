"""The ranks of one attempt on this node, in the place of torch's process context. Runs in the agent's main thread."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import WorkerGroup
from torch.distributed.elastic.multiprocessing import RunProcsResult, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from ice_notebook.agent.io import AgentIO
from ice_notebook.agent.ranks import RankProcess, Stage
from ice_notebook.agent.spares import Spares
from ice_notebook.context import current_launcher as context
from ice_notebook.host import processes
from ice_notebook.values.value_files import PART_SUFFIX
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import Begin, Place

POLL_S = 0.25  # torch is given the word at least this often, to look at the membership; events wake it at once
STANDBY_ACCEPT_WAIT_S = 2.0  # a standby rank that has not answered by then is deaf, stopped say: another one takes its place
ACCEPT_WAIT_S = 30.0  # a rank that is up answers `go` in milliseconds; this long only on a machine that is thrashing
REPORT_WINDOW_S = 0.5  # siblings of a failed rank may say what happened to them before they are ended
HANG_UP_WAIT_S = 0.5  # between the end of a rank's socket and the end of its process


class AttemptContext:
    """The ranks of one attempt on this node, in the place of torch's process context."""

    _is_alone = True  # nothing but a failure begins another attempt

    def __init__(
        self, io: AgentIO, group: WorkerGroup, environments: dict[int, dict[str, str]], number: int, restarts_left: int
    ) -> None:
        self._io = io
        self._plan = io.state.plan
        self._folder = io.state.folder
        self._attempt = number
        self._group = group
        self._environments = environments
        self._restarts_left = restarts_left
        self.swept = 0  # processes that the ranks had started and left behind
        self._ranks: list[RankProcess] = []
        self._spares: Spares | None = None
        self._is_closed = False

    # ---- what torch calls

    def start(self) -> None:
        """Take ready processes, give each its place, and wait until all have accepted."""
        io = self._io
        io.state.begin_attempt(is_last=self._restarts_left == 0 and self._is_alone and self._plan.group is None)
        self._drop_old_values()
        self._ranks, is_standby = self._take(len(self._group.workers))
        is_standby = is_standby and (self._attempt > 0 or io.state.was_ready)
        goes = [self._go(worker) for worker in self._group.workers]
        for go in goes:
            self._folder.make_rank_dir(go.attempt, go.rank)
        node = self._group.group_rank or 0
        starts = tuple(
            p.RankStart(rank=g.rank, local_rank=g.local_rank, device=self._plan.ranks[g.local_rank].device, pid=rank.pid, node=node)
            for rank, g in zip(self._ranks, goes, strict=True)
        )
        io.recorder.record(
            p.AttemptBegun(
                at=time.time(),
                attempt=self._attempt,
                restart_count=self._group.spec.max_restarts - self._restarts_left,
                world_size=self._group.workers[0].world_size,
                has_others=self._plan.group is not None,
                ranks=starts,
                start="standby" if is_standby else "forked" if io.is_forking else "cold",
            ),
            is_alone=not is_standby,  # ranks that stood by answer within milliseconds, and that is the next event
        )
        bad = self._send(goes, STANDBY_ACCEPT_WAIT_S if is_standby else ACCEPT_WAIT_S)
        if bad and is_standby:
            self._replace(bad)
            bad = self._send([goes[i] for i in bad], ACCEPT_WAIT_S)
        if bad:
            rank = self._ranks[bad[0]]
            raise RuntimeError(f"rank {rank.rank} did not start its work: {_how_it_ended(rank)}")
        for rank in self._ranks:
            rank.tell(Begin())
        self._spares = Spares(io, len(self._ranks))
        if self._restarts_left > 0:
            self._spares.start()

    def pids(self) -> dict[int, int]:
        """Return the ranks' processes by local rank."""
        return {rank.local_rank: rank.pid for rank in self._ranks}

    def wait(self, timeout: float = -1, period: float = 1) -> RunProcsResult | None:  # noqa: ARG002 - torch's signature
        """Wait for something that torch must know, at most POLL_S. None: all is as before.

        Raises:
            SignalException: the run is to be stopped; torch then calls `close`.
        """
        io = self._io
        poll_until = time.monotonic() + min(POLL_S, self._plan.monitor_interval)
        with io.condition:
            while not self._failed():
                self._raise_if_stopped()
                if self._is_over():
                    self._make_way()
                    return None
                if all(rank.has_succeeded for rank in self._ranks) and self._is_finished_everywhere():
                    return RunProcsResult(return_values={rank.local_rank: None for rank in self._ranks}, failures={})
                left_s = poll_until - time.monotonic()
                if left_s <= 0:
                    return None
                io.condition.wait(left_s)
            # The others may say what happened to them; the window ends as soon as everybody has.
            io.condition.wait_for(lambda: all(rank.has_reported for rank in self._ranks), REPORT_WINDOW_S)
            failed = self._failed()
        return self._settle(failed)

    def close(self, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:  # noqa: ARG002 - torch's signature
        """End what is left of the attempt, and everything that it has started. Called by torch after every attempt, and once more."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._spares is not None:
            self._spares.cancel()
        io = self._io
        stop = io.state.end_attempt()

        def wait(condition: Any, timeout_s: float) -> None:
            with io.condition:
                io.condition.wait_for(condition, timeout_s)

        grace_s = self._plan.grace if stop is None or stop.grace_s is None else stop.grace_s
        by = None if stop is None else stop.by
        processes.stop_ladder(self._ranks, wait, by=by, grace_s=grace_s, is_urgent=lambda: io.state.is_urgent)
        self.swept += processes.sweep(*[rank.marker for rank in self._ranks])
        for rank in self._ranks:
            processes.kill_group(rank)
        self._drop_partial_values()
        io.state.remove_ranks(self._ranks)

    # ---- what other nodes have a say in

    def _is_over(self) -> bool:
        """Return whether another attempt is to begin although no rank has failed here."""
        return False

    def _is_finished_everywhere(self) -> bool:
        """Return whether the ranks of all nodes are done, when those of this one are."""
        return True

    def _settle(self, failed: list[RankProcess]) -> RunProcsResult | None:
        """Say what follows from a failure: a result that torch acts on, None when torch is to ask whether other nodes wait."""
        io = self._io
        is_restarting = self._restarts_left > 0 and io.state.stop is None
        io.recorder.record(
            p.AttemptFailed(at=time.time(), attempt=self._attempt, root=root_cause(failed).rank, restarting=is_restarting)
        )
        if is_restarting:
            self._make_way()
        return RunProcsResult(return_values={}, failures={rank.local_rank: self._process_failure(rank) for rank in failed})

    def _make_way(self) -> None:
        """Begin with the ranks of the next attempt: they import torch while the old ones are ended."""
        with self._io.condition:
            self._io.state.wait_for_ranks(is_waited_for=True)
            self._io.start_ranks(len(self._ranks) - self._io.state.n_unplaced)

    # ---- steps

    def _take(self, count: int) -> tuple[list[RankProcess], bool]:
        """Return ready processes, starting what is missing, and whether nobody had to wait for them. This is where a rank comes from."""
        io = self._io
        has_waited = False
        with io.condition:
            while True:
                self._drop_dead_standbys()
                io.start_ranks(count - io.state.n_unplaced)
                ready = [rank for rank in io.state.ranks if rank.stage is Stage.READY and rank.rank < 0 and not rank.has_exited]
                if len(ready) >= count:
                    io.state.wait_for_ranks(is_waited_for=False)
                    return ready[:count], not has_waited
                has_waited = True
                io.state.wait_for_ranks(is_waited_for=True)
                self._raise_if_stopped()
                if io.state.start_error is not None:
                    raise RuntimeError(f"a rank cannot be started: {io.state.start_error}")
                io.condition.wait(POLL_S)

    def _drop_dead_standbys(self) -> None:
        """Forget processes that somebody killed before they had a place.

        Raises:
            RuntimeError: one ended by itself while it was getting ready: the next would as well.
        """
        for rank in [rank for rank in self._io.state.ranks if rank.rank < 0 and rank.has_exited]:
            if rank.stage is Stage.STARTING and (rank.exit_code or 0) >= 0:
                printed = rank.early.decode(errors="replace").strip()
                raise RuntimeError(f"a rank ended while it was getting ready: {_how_it_ended(rank)}. It printed: {printed}")
            self._io.state.remove_ranks([rank])

    def _send(self, goes: list[p.Go], timeout_s: float) -> list[int]:
        """Give ranks their work, and return the places of those that have not taken it in time."""
        io = self._io
        ranks = [self._ranks[go.local_rank] for go in goes]
        placed = [io.place(rank, go, self._plan.ranks[go.local_rank].tee) for rank, go in zip(ranks, goes, strict=True)]
        for rank, go in zip(ranks, placed, strict=True):
            rank.stage = Stage.SENT
            rank.tell(Place(go=go))
        with io.condition:
            io.condition.wait_for(lambda: io.state.stop or all(rank.has_accepted or rank.has_exited for rank in ranks), timeout_s)
            self._raise_if_stopped()
            return [go.local_rank for rank, go in zip(ranks, goes, strict=True) if not rank.has_accepted]

    def _replace(self, places: list[int]) -> None:
        """Put fresh processes in the places of standby ranks that are dead or deaf. None of them has begun: that takes a second word."""
        io = self._io
        bad = [self._ranks[i] for i in places]
        for rank in bad:
            processes.kill_group(rank)
        with io.condition:
            io.condition.wait_for(lambda: all(rank.has_exited for rank in bad), processes.KILL_WAIT_S)
        io.state.remove_ranks(bad)
        fresh, _ = self._take(len(places))
        for i, rank in zip(places, fresh, strict=True):
            self._ranks[i] = rank
            io.recorder.record(
                p.RankReplaced(at=time.time(), attempt=self._attempt, rank=self._group.workers[i].global_rank, pid=rank.pid)
            )

    def _go(self, worker: Any) -> p.Go:
        plan, folder = self._plan, self._folder
        place = plan.ranks[worker.local_rank]
        attempt, rank = self._attempt, worker.global_rank
        redirected = place.redirects & ~place.tee
        return p.Go(
            name=plan.name,
            attempt=attempt,
            rank=rank,
            local_rank=worker.local_rank,
            environment={
                **plan.environment,
                **self._environments[worker.local_rank],
                **self._our_environment(place, attempt, rank),
            },
            umask=plan.umask,
            inherited=plan.inherited,
            stdout=str(folder.stream_log(attempt, rank, p.Std.OUT)) if redirected & p.Std.OUT else None,
            stderr=str(folder.stream_log(attempt, rank, p.Std.ERR)) if redirected & p.Std.ERR else None,
            cwd=plan.cwd,
            sys_path=plan.sys_path,
            payload=plan.payload,
            script=plan.script.of_rank(worker.local_rank) if plan.script is not None else None,
            sources=plan.sources,
            device=place.assigned_device,
            dist_init=plan.dist_init,
            dist_backend=plan.dist_backend,
            results=tuple(map(str, folder.places_for_value(attempt, rank, plan.shared_dir))),
            exception=str(folder.exception_file(attempt, rank)),
            error_file=str(folder.error_file(attempt, rank)),
            stacks=str(folder.stacks_file(attempt, rank)),
        )

    def _our_environment(self, place: p.RankPlan, attempt: int, rank: int) -> dict[str, str]:
        plan = self._plan
        ours = {
            # Set by torch's own process context, which ours stands in for: without it `@record` has nowhere to write.
            "TORCHELASTIC_ERROR_FILE": str(self._folder.error_file(attempt, rank)),
            context.RUN_ID: plan.run_id,
            context.ASSIGNED_DEVICE: place.assigned_device,
            context.DEVICES: ",".join(r.device for r in plan.ranks),
            context.DIST_BACKEND: plan.dist_backend,
        }
        if place.visible_devices is not None:
            ours["CUDA_VISIBLE_DEVICES"] = place.visible_devices
        return ours

    def _failed(self) -> list[RankProcess]:
        """Return the ranks that failed, in the order of local ranks."""
        now = time.monotonic()
        for rank in self._ranks:
            # A script may close what it has not opened, or become another program: its exit code will tell.
            lost = rank.hung_up_at is not None and now - rank.hung_up_at > HANG_UP_WAIT_S and not rank.is_script
            if lost and not rank.has_reported:
                failure = p.Failure(kind="exit", headline="closed its connection to the agent", at=time.time())
                self._io.reports.fail(rank, failure)
        return [rank for rank in self._ranks if rank.failure is not None]

    def _raise_if_stopped(self) -> None:
        if self._io.state.stop is not None:
            raise SignalException("the run is being stopped", signal.SIGTERM)

    def _process_failure(self, rank: RankProcess) -> ProcessFailure:
        assert rank.failure is not None
        code = rank.exit_code if rank.exit_code is not None else rank.failure.exit_code
        # No error file for torch, which would read it here: its writer may be half-way, or have died there, and the agent with it.
        return ProcessFailure(rank.local_rank, rank.pid, code or 1, error_file=os.devnull)

    def _drop_partial_values(self) -> None:
        """Free what ranks were writing when they were killed."""
        shared = self._plan.shared_dir
        left = [*self._folder.path.glob(f"attempt_{self._attempt}/*/*{PART_SUFFIX}")]
        left += [*Path(shared).glob(f"{self._attempt}.*{PART_SUFFIX}")] if shared is not None else []
        for path in left:
            path.unlink(missing_ok=True)

    def _drop_old_values(self) -> None:
        """Free what ranks of the attempt before have returned: values are those of the last attempt."""
        shared = self._plan.shared_dir
        if shared is not None and self._attempt > 0:
            for path in Path(shared).glob(f"{self._attempt - 1}.*"):
                path.unlink(missing_ok=True)


def root_cause(failed: list[RankProcess]) -> RankProcess:
    """Return the rank that failed first; of several that failed in the same way, the lowest, whichever was quicker by chance.

    A broken connection is usually the echo of a failure elsewhere, and may be reported before it: a rank that is killed breaks its
    siblings' connections first and is found dead after.
    """

    def order(rank: RankProcess) -> tuple[bool, float]:
        assert rank.failure is not None
        return rank.failure.is_communication, rank.failure.at

    first = min(failed, key=order).failure
    assert first is not None
    alike = [rank for rank in failed if rank.failure is not None and rank.failure.headline == first.headline]
    return min(alike, key=lambda rank: rank.rank)


def _how_it_ended(rank: RankProcess) -> str:
    return "it did not answer" if rank.exit_code is None else f"exit code {rank.exit_code}"
