"""The agent's io thread: it owns every descriptor, and what comes by them goes to the part that knows what it means. No torch here."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import msgspec

from ice_notebook.agent.commands import Commands
from ice_notebook.agent.outbox import Outbox
from ice_notebook.agent.places import Places
from ice_notebook.agent.ranks import RankProcess, Stage
from ice_notebook.agent.recorder import Recorder
from ice_notebook.agent.reports import Reports
from ice_notebook.agent.starter import Starter
from ice_notebook.agent.state import AgentState, StopRequest
from ice_notebook.agent.terminals import Terminals
from ice_notebook.host import processes
from ice_notebook.host.identities import own_identity
from ice_notebook.host.writing import say
from ice_notebook.rank.server import RankServer
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire import protocol as p
from ice_notebook.wire.frames import Channel


class AgentIO(threading.Thread):
    """See the module. It serves standby ranks first, and a run once there is one."""

    def __init__(self, preparation: p.Preparation, kernel: Channel, server: RankServer | None = None, note: str = "") -> None:
        """`server` forks ranks; `note` says why there is none although one was asked for."""
        super().__init__(name="ice-io", daemon=True)
        self.state = AgentState(preparation)
        self.condition = self.state.condition
        self.outbox = Outbox(kernel)
        self.recorder = Recorder(self.outbox)
        self.on_run: Callable[[RunFolder], None] = lambda _: None  # called before anything is recorded
        self.on_stop: Callable[[], None] = lambda: None  # called once, by whoever asked
        self._preparation = preparation
        self._kernel = kernel
        self._note = note
        self._is_over = False
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._terminals = Terminals(self.condition, self.outbox, self._on_loss)
        self._starter = Starter(preparation, self.state, self.outbox, server, self._watch)
        self._places = Places(self.state, self._terminals, lambda: self._starter.preparation.wiring)
        self.reports = Reports(self.state, self.recorder, self.outbox, self._wake)
        self.commands = Commands(self.state, self._starter, self.outbox, self.begin, self.request_stop)

    # ---- for the elastic thread

    def begin(self, plan: p.Plan) -> None:
        """Do a run from now on: what is there becomes its agent and ranks."""
        state = self.state
        with self.condition:
            self.reports.begin()
            state.take_run(plan)
            try:
                self.recorder.open(state.folder)
            except OSError as error:
                state.lose_folder(error)
            self.on_run(state.folder)
            begun = p.RunBegun(at=time.time(), agent=own_identity(), note=self._note)
            self.recorder.record(begun, is_alone=not state.was_ready)
            state.begin_run()
            self.start_ranks(plan.world_size - state.n_unplaced)

    @property
    def is_forking(self) -> bool:
        """Return whether ranks are forked."""
        return self._starter.is_forking

    def start_ranks(self, count: int) -> None:
        """Have `count` more ranks started, if any are wanted."""
        self.state.want_ranks(count)
        self._wake()

    def request_stop(self, request: StopRequest) -> None:
        """Stop the run; the first reason stays."""
        with self.condition:
            if not self.state.ask_to_stop(request):
                return
            self.recorder.record(p.StopAsked(at=time.time(), reason=request.reason))
        self.on_stop()

    def place(self, rank: RankProcess, go: p.Go, tee: p.Std) -> p.Go:
        """Give a ready process its place, and return `go` with the paths of teed streams."""
        return self._places.place(rank, go, tee)

    def close(self) -> None:
        """Send what is left to the kernel, and end the conversation."""
        self._is_over = True
        self.recorder.close()
        self.outbox.drain(timeout_s=2.0)
        self._kernel.close()

    # ---- the thread

    def run(self) -> None:
        """Serve all descriptors for as long as the agent lives."""
        try:
            self._serve()
        except BaseException:
            # Without this thread nobody would hear anything any more. The kernel says how the run ended, but it may be gone itself.
            say(traceback.format_exc())
            self._leave(os.EX_SOFTWARE)

    def _serve(self) -> None:
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._on_wake)
        self._selector.register(self._kernel, selectors.EVENT_READ, self._on_kernel)
        # Its process too: a child that the kernel has forked holds the socket open beyond the kernel's end.
        with contextlib.suppress(OSError):  # gone already: the socket has ended
            self._kernel_pidfd = os.pidfd_open(self._preparation.kernel_pid)
            self._selector.register(self._kernel_pidfd, selectors.EVENT_READ, self._on_kernel_exit)
        self._selector.register(self._terminals, selectors.EVENT_READ, self._terminals.read)
        is_resting = False
        while True:
            rest_s = self._terminals.rest_s
            if rest_s <= 0 and is_resting:
                self._selector.register(self._terminals, selectors.EVENT_READ, self._terminals.read)
                is_resting = False
            elif rest_s > 0 and not is_resting:
                self._selector.unregister(self._terminals)
                is_resting = True
            for key, _ in self._selector.select(rest_s if is_resting else self._terminals.begun_s):
                # A rank that has ended takes its other descriptors with it, whose turn in this round may be yet to come: what its children
                # held open is closed by their death, after its own. By now the number may be another descriptor's.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            self._terminals.let_go()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # enough wake-ups are under way
            os.write(self._wake_writer, b"!")

    def _on_wake(self) -> None:
        os.read(self._wake_reader, 4096)
        self._starter.keep_pace()

    def _watch(self, rank: RankProcess) -> None:
        """Hear a rank that was just started."""
        for stream in rank.streams:
            self._terminals.watch(stream)
        self._selector.register(rank.channel, selectors.EVENT_READ, lambda: self._on_rank(rank))
        self._selector.register(rank.asking, selectors.EVENT_READ, lambda: self._on_answer(rank))
        self._selector.register(rank.pidfd, selectors.EVENT_READ, lambda: self._on_exit(rank))

    # ---- the kernel

    def _on_kernel(self) -> None:
        try:
            frames = self._kernel.receive_ready_frames()
        except (EOFError, OSError):
            self._selector.unregister(self._kernel)
            self._lose_kernel()
            return
        for frame in frames:
            self.commands.handlers.take_frame(frame)

    def _on_kernel_exit(self) -> None:
        self._selector.unregister(self._kernel_pidfd)
        self._lose_kernel()

    def _lose_kernel(self) -> None:
        if self._is_over:
            return
        if not self.state.has_run:
            self._leave()
        # Attached: without its kernel the run ends, and quickly, because whoever killed the kernel waits for the devices.
        self.request_stop(StopRequest(p.StopReason.KERNEL_GONE, by=None, grace_s=1.0))

    def _leave(self, status: int = 0) -> NoReturn:
        """End this process and all that it has started, whatever its main thread does: nobody is left to use it, or it cannot go on."""
        try:
            with self.condition:
                for rank in self.state.ranks:
                    processes.kill_group(rank)
                processes.sweep(self._preparation.marker, with_children=True)
        finally:
            os._exit(status)

    # ---- ranks

    def _on_rank(self, rank: RankProcess) -> None:
        try:
            for frame in rank.channel.receive_ready_frames():
                with self.condition:
                    self.reports.handlers.take_frame(frame, rank)
                    self.condition.notify_all()
        except (EOFError, OSError):
            self._hang_up(rank)
        except (msgspec.DecodeError, ValueError) as error:  # user code has written to a descriptor that is not its own
            say(f"rank {rank.rank} said what cannot be understood: {error}\n{traceback.format_exc()}")
            self._hang_up(rank)

    def _hang_up(self, rank: RankProcess) -> None:
        """Hear nothing more from a rank."""
        self._selector.unregister(rank.channel)
        with self.condition:
            rank.hung_up_at = time.monotonic()
            self.condition.notify_all()

    def _on_answer(self, rank: RankProcess) -> None:
        try:
            answer = rank.asking.recv(64)
        except OSError:
            answer = b""
        if not answer:
            self._selector.unregister(rank.asking)
            return
        with self.condition:
            rank.has_acknowledged = True
            self.condition.notify_all()

    def _on_loss(self, rank: RankProcess) -> None:
        self.recorder.record_loss(rank.attempt, rank.rank, rank.loss)

    def _on_exit(self, rank: RankProcess) -> None:
        self._selector.unregister(rank.pidfd)
        # What it said and printed comes first: a reader of its exit event must find every line in the log.
        if rank.channel.fileno() in self._selector.get_map():
            self._drain_channel(rank)
        self._terminals.end(rank)
        self.recorder.record_loss(rank.attempt, rank.rank, rank.loss, is_end=True)
        with contextlib.suppress(KeyError):
            self._selector.unregister(rank.asking)
        rank.asking.close()
        rank.channel.close()
        # Not reaped yet: as long as the system remembers the process, nobody else can have its number, and its group can be killed.
        info = os.waitid(os.P_PIDFD, rank.pidfd, os.WEXITED | os.WNOWAIT)
        assert info is not None
        code = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        with self.condition:
            rank.exit_code = code
            if rank.rank >= 0 and rank.stage is Stage.ACCEPTED:
                self.reports.take_exit(rank, code)
            elif not self.state.has_run and not self.state.is_closing and self._starter.replace(rank):
                self._wake()
            self.condition.notify_all()

    def _drain_channel(self, rank: RankProcess) -> None:
        while rank.channel.fileno() in self._selector.get_map() and select.select([rank.channel], [], [], 0)[0]:
            self._on_rank(rank)
        with contextlib.suppress(KeyError):
            self._selector.unregister(rank.channel)
