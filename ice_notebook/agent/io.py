"""The agent's io thread: it owns every descriptor, starts ranks, writes logs, and is the first to know what happens. No torch here."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from ice_notebook.agent.outbox import Outbox
from ice_notebook.agent.ranks import RankProcess, Stage, start_rank
from ice_notebook.agent.terminals import Terminals
from ice_notebook.host import processes
from ice_notebook.host.identities import own_identity
from ice_notebook.host.writing import AppendedFile, Loss, say
from ice_notebook.rank.server import RankServer
from ice_notebook.runs import crashes
from ice_notebook.runs.store import JOURNAL_RESERVE_BYTES, Journal, RunFolder
from ice_notebook.runs.stream_index import StreamIndexWriter
from ice_notebook.wire import control as c
from ice_notebook.wire import node_messages as m
from ice_notebook.wire import protocol as p
from ice_notebook.wire.frames import Channel
from ice_notebook.wire.messages import Handlers

MOST_REPLACEMENTS = 3  # of standby ranks that die: then something is wrong with them, and a launch that fails will say what


@dataclass(frozen=True)
class StopRequest:
    """Why the run is being stopped, and by which signal ranks hear of it first; without one they are terminated at once."""

    reason: p.StopReason
    by: signal.Signals | None = signal.SIGINT
    grace_s: float | None = None  # None: the plan's


class AgentIO(threading.Thread):
    """See the module. `condition` guards all that both threads look at. It serves standby ranks first, and a run once there is one."""

    plan: p.Plan  # there from `begin` on
    folder: RunFolder
    _offered: p.Plan  # the kernel may not have said yet that this agent is the one to do it
    _out_of_memory_kills: int

    def __init__(self, preparation: p.Preparation, kernel: Channel, server: RankServer | None = None, note: str = "") -> None:
        super().__init__(name="ice-io", daemon=True)
        self.preparation = preparation
        self._server = server  # which forks ranks; without one they are started afresh
        self._note = note
        self.has_run = False
        self.is_standing_by = False  # the agent itself is ready, and has no run yet
        self.was_ready = False  # all was up when the run came
        self.is_waited_for = preparation.is_at_once  # somebody waits for ranks that get ready
        self.at_a_time = preparation.at_a_time  # so many that nobody waits for get ready, others rest; None: all do
        self.condition = threading.Condition()  # an RLock underneath: those who hold it may record
        self.ranks: list[RankProcess] = []  # living, or dead and not yet reaped
        self.stop: StopRequest | None = None
        self.is_urgent = False  # the person has pressed again: kill
        self.is_ending = False  # ranks are being ended by us: their exits are no failures
        self.is_last_attempt = False
        self.is_closing = False  # the agent is about to leave: no rank is started any more
        self.error: BaseException | None = None  # a rank could not be started
        self.folder_error: OSError | None = None  # nothing of a run can be kept
        self.on_run: Callable[[RunFolder], None] = lambda _: None  # called before anything is recorded
        self.on_stop: Callable[[], None] = lambda: None  # called once, by whoever asked
        self.on_coordinator: Callable[[Any], None] = lambda _: None  # the coordinator of several nodes says something
        self.on_message_for_other_node: Callable[[c.ForRank], None] = self._on_no_rank
        self.outbox = Outbox(kernel)
        self._kernel = kernel
        self._is_over = False
        self._replaced = 0  # standby ranks that died before there was a run
        self._recording = threading.Lock()
        self._journal: Journal | None = None
        self._serial = 0
        self._being_started = 0
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._terminals = Terminals(self.condition, self.outbox, self._on_loss)
        self._from_kernel = Handlers(
            {
                c.TakeRun: self._on_run,
                c.Offer: self._on_offer,
                c.Settled: lambda _: self.begin(),
                c.SetPace: self._on_pace,
                c.AddSpares: lambda asked: self.start_ranks(asked.count),
                c.Resize: self._on_resize,
                c.Preload: self._on_preload,
                c.PassSignal: self._on_signal,
                c.Stop: self._on_stop_message,
                c.ForRank: self._on_message_for_rank,
                m.Round: self._on_word_of_coordinator,
                m.Over: self._on_word_of_coordinator,
                m.Finish: self._on_word_of_coordinator,
            }
        )
        self._from_rank = Handlers(
            {
                c.Tied: self._on_tied,
                c.Ready: self._on_ready,
                c.Accepted: self._on_accepted,
                c.Progress: self._on_progress,
                c.Imported: lambda _, imported: self.outbox.post(imported),
                c.Loaded: self._on_loaded,
                c.Returned: self._on_returned,
                c.Lost: self._on_lost,
                c.Failed: lambda rank, failed: self.fail(rank, failed.failure),
                c.Unwound: self._on_unwound,
                c.HasHandler: self._on_handler,
                c.ForKernel: self._on_message_for_kernel,
                c.NotUnderstood: lambda rank, message: say(
                    f"rank {rank.rank} does not understand what it was told: {message.what}"
                ),
            }
        )

    # ---- for the elastic thread

    def consider(self, plan: p.Plan) -> None:
        """Take note of a run that may be the one to do. Nothing of it is touched yet."""
        self._offered = plan
        self._out_of_memory_kills = processes.out_of_memory_kills()

    def begin(self) -> None:
        """Have the run that was considered from now on: what is there becomes its agent and ranks."""
        with self.condition:
            plan = self._offered
            self.plan, self.folder = plan, RunFolder(Path(plan.folder))
            try:
                self._journal = Journal(self.folder.journal_file, reserve_bytes=JOURNAL_RESERVE_BYTES)
            except OSError as error:  # no room, or the folder is gone: the run ends at once, and says why
                self.folder_error = error
            self.on_run(self.folder)
            self.was_ready = self.is_standing_by and self.are_ready and len(self.ranks) >= plan.world_size
            begun = p.RunBegun(at=time.time(), agent=own_identity(), note=self._note)
            self.record(begun, is_alone=not self.was_ready)
            self.has_run, self.is_standing_by = True, False
            self.is_waited_for = not self.was_ready
            if self.was_ready:
                self.at_a_time = 0  # ranks for a restart that still get ready rest until `Spares` finds a core for them
            self.start_ranks(plan.world_size - self.unplaced)
            self.condition.notify_all()

    def record(self, event: Any, *, is_alone: bool = True) -> None:
        """Write an event to the journal and tell the kernel, with the next one if that is about to come."""
        with self._recording:
            try:
                if self._journal is not None:
                    self._journal.append(event)
            except OSError as error:  # the disk is full: the run goes on, and the kernel hears of it
                say(f"not in the journal yet: {event}: {error}")
            post = self.outbox.post if is_alone else self.outbox.post_later
            post(c.Happened(event=event))

    @property
    def unplaced(self) -> int:
        """Return how many processes are there, or are being started, that are nobody's rank yet."""
        return self._being_started + sum(rank.rank < 0 and not rank.has_exited for rank in self.ranks)

    @property
    def is_forking(self) -> bool:
        """Return whether ranks are forked."""
        return self._server is not None

    @property
    def are_ready(self) -> bool:
        """Return whether as many ranks as were asked for are up; others, for a restart, may still get ready."""
        return sum(rank.stage is Stage.READY and not rank.has_exited for rank in self.ranks) >= self.preparation.n_ranks

    def post_ready(self) -> None:
        """Tell the kernel that ranks stand by, and what of the environment they have taken in."""
        told = [rank.readiness for rank in self.ranks if rank.readiness is not None]
        self.outbox.post(c.Ready(readiness=p.Readiness.of(told)))

    def start_ranks(self, count: int) -> None:
        """Have `count` more ranks started, if any are wanted."""
        with self.condition:
            self._being_started += max(0, count)
        self._wake()

    def request_stop(self, request: StopRequest) -> None:
        """Stop the run; the first reason stays."""
        with self.condition:
            if self.stop is not None:
                return
            self.stop = request
            self.record(p.StopAsked(at=time.time(), reason=request.reason))
            self.condition.notify_all()
        self.on_stop()

    def place(self, rank: RankProcess, go: p.Go, tee: p.Std) -> p.Go:
        """Give a ready process its place: open its logs, and return `go` with the paths of teed streams.

        What the process printed before goes to its log now.
        """
        output = self.folder.output_log(go.attempt, go.rank)
        with self.condition:
            rank.attempt, rank.rank, rank.local_rank = go.attempt, go.rank, go.local_rank
            rank.is_script = go.script is not None
            rank.is_program = go.script is not None and go.script.kind is p.ScriptKind.PROGRAM
            for stream in rank.streams:
                stream.files.append(AppendedFile(output))
            if self.preparation.wiring.is_apart:
                with contextlib.suppress(OSError):  # no room: all is stdout then
                    rank.index = StreamIndexWriter(output)
            paths = {p.Std.OUT: go.stdout, p.Std.ERR: go.stderr}
            for std in (p.Std.OUT, p.Std.ERR):
                if std & tee and (path := self._tee(rank, std, output, self.folder.stream_log(go.attempt, go.rank, std))):
                    paths[std] = path
            for stream in rank.streams:
                early, stream.early = bytes(stream.early), bytearray()
                if early:
                    self._terminals.take(stream, early)
        return p.replace(go, stdout=paths[p.Std.OUT], stderr=paths[p.Std.ERR])

    def _tee(self, rank: RankProcess, std: p.Std, output: Path, own: Path) -> str:
        """Have a stream written to a file of its own too. Return the path by which the rank opens that stream, empty when it has it already."""
        streams = [stream for stream in rank.streams if stream.std is std]
        for stream in streams:
            stream.files.append(AppendedFile(own))
        if streams:
            return ""
        stream, path = rank.open_stream(std, self.preparation.wiring)
        stream.files += [AppendedFile(output), AppendedFile(own)]
        self._terminals.watch(stream)
        return path

    def forget(self, ranks: list[RankProcess]) -> None:
        """Reap ended ranks."""
        with self.condition:
            for rank in ranks:
                rank.reap()
                self.ranks.remove(rank)

    def close(self) -> None:
        """Send what is left to the kernel, and end the conversation."""
        self._is_over = True
        if self._journal is not None:
            self._journal.close()
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
            self._kernel_pidfd = os.pidfd_open(self.preparation.kernel_pid)
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
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Have as many ranks get ready as may at a time: of others those that have begun rest, and the rest is not started yet."""
        with self.condition:
            n_left = None if self.is_waited_for else self.at_a_time
            for rank in self.ranks:
                is_starting = rank.stage is Stage.STARTING and not rank.has_exited
                if is_starting and n_left == 0:
                    rank.rest()
                    continue
                rank.go_on()
                rank.preload()
                if is_starting and n_left is not None:
                    n_left -= 1
        while self._being_started and n_left != 0:
            self._start_rank()
            n_left = None if n_left is None else n_left - 1

    def _start_rank(self) -> None:
        # Held all the time: whoever is about to end all ranks must not miss one that is just being started.
        with self.condition:
            if self.is_closing:
                self._being_started = 0
                return
            rank = self._start_process()
            if rank is None:
                self._being_started = 0
                self.condition.notify_all()
                return
            self._serial += 1
            self._being_started -= 1
            self.ranks.append(rank)
            for stream in rank.streams:
                self._terminals.watch(stream)
            self.condition.notify_all()
        self._selector.register(rank.channel, selectors.EVENT_READ, lambda: self._on_rank(rank))
        self._selector.register(rank.asking, selectors.EVENT_READ, lambda: self._on_answer(rank))
        self._selector.register(rank.pidfd, selectors.EVENT_READ, lambda: self._on_exit(rank))

    def _start_process(self) -> RankProcess | None:
        """Return a new process, started afresh where the rank server cannot fork it; None when there is none to be had."""
        try:
            if self._server is not None:
                try:
                    return start_rank(self.preparation, self._serial, self._server)
                except OSError as error:
                    say(f"ranks are not forked any more: {error}")
                    self._server.close()
                    self._server = None
            return start_rank(self.preparation, self._serial, None)
        except OSError as error:
            self.error = error
            return None

    # ---- the kernel

    def _on_kernel(self) -> None:
        try:
            frames = self._kernel.receive_ready_frames()
        except (EOFError, OSError):
            self._selector.unregister(self._kernel)
            self._lose_kernel()
            return
        for frame in frames:
            self._from_kernel.take_frame(frame)

    def _on_run(self, message: c.TakeRun) -> None:
        self.consider(message.plan)
        self.begin()

    def _on_offer(self, message: c.Offer) -> None:
        self.outbox.post(c.Taken())
        self.consider(message.plan)  # while the kernel answers

    def _on_pace(self, message: c.SetPace) -> None:
        with self.condition:
            self.at_a_time = message.at_a_time
            self.condition.notify_all()
        self._keep_pace()

    def _on_stop_message(self, message: c.Stop) -> None:
        self.outbox.post(c.Stopping())
        self.request_stop(StopRequest(message.reason, signal.Signals(message.signal)))
        if message.is_urgent:
            with self.condition:
                self.is_urgent = True
                self.condition.notify_all()

    def _on_signal(self, message: c.PassSignal) -> None:
        with self.condition:
            for rank in self.ranks:
                if rank.rank >= 0 and not rank.has_exited and rank.handles(message.number):
                    processes.signal_rank(rank, signal.Signals(message.number))

    def _on_resize(self, message: c.Resize) -> None:
        """Give the terminals of all ranks, also of those that are yet to be started, another size."""
        wiring = p.replace(self.preparation.wiring, columns=message.columns, rows=message.rows)
        self.preparation = p.replace(self.preparation, wiring=wiring)
        with self.condition:
            for rank in self.ranks:
                rank.resize(wiring)

    def _on_preload(self, message: c.Preload) -> None:
        """Have the ranks that stand by import more, as many as may at a time."""
        with self.condition:
            for rank in self.ranks:
                if rank.rank < 0 and rank.stage is Stage.READY:
                    rank.stage = Stage.STARTING
                    rank.is_preloading = True
                    rank.to_preload = message.modules
        self._keep_pace()

    def _on_message_for_rank(self, message: c.ForRank) -> None:
        """Pass on a message for a rank, which is here or another node's."""
        with self.condition:
            mine = next((rank for rank in self.ranks if rank.rank == message.rank and rank.has_accepted), None)
        if mine is not None:
            mine.tell(message.body)
        else:
            self.on_message_for_other_node(message)

    def _on_word_of_coordinator(self, message: m.Round | m.Over | m.Finish) -> None:
        self.on_coordinator(message)

    def _on_no_rank(self, message: c.ForRank) -> None:
        say(f"a message is for rank {message.rank}, which is not there")

    def _on_kernel_exit(self) -> None:
        self._selector.unregister(self._kernel_pidfd)
        self._lose_kernel()

    def _lose_kernel(self) -> None:
        if self._is_over:
            return
        if not self.has_run:
            self._leave()
        # Attached: without its kernel the run ends, and quickly, because whoever killed the kernel waits for the devices.
        self.request_stop(StopRequest(p.StopReason.KERNEL_GONE, by=None, grace_s=1.0))

    def _leave(self, status: int = 0) -> NoReturn:
        """End this process and all that it has started, whatever its main thread does: nobody is left to use it, or it cannot go on."""
        try:
            with self.condition:
                for rank in self.ranks:
                    processes.kill_group(rank)
                processes.sweep(self.preparation.marker, with_children=True)
        finally:
            os._exit(status)

    # ---- what ranks say

    def _on_rank(self, rank: RankProcess) -> None:
        try:
            for frame in rank.channel.receive_ready_frames():
                with self.condition:
                    self._from_rank.take_frame(frame, rank)
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

    def _on_ready(self, rank: RankProcess, message: c.Ready) -> None:
        rank.stage = Stage.READY
        rank.is_preloading = False
        told = message.readiness
        rank.readiness = told if rank.readiness is None else p.Readiness.of([rank.readiness, told])
        self._wake()  # the next may start
        if self.is_standing_by and self.are_ready:
            self.post_ready()

    def _on_tied(self, rank: RankProcess, _: c.Tied) -> None:
        rank.is_tied = True
        self._wake()  # it may have to rest

    def _on_accepted(self, rank: RankProcess, _: c.Accepted) -> None:
        rank.stage = Stage.ACCEPTED
        for stream in rank.streams:
            stream.release()
        self.record(p.RankRunning(at=time.time(), attempt=rank.attempt, rank=rank.rank))

    def _on_progress(self, rank: RankProcess, message: c.Progress) -> None:
        self.outbox.post_progress(p.replace(message, attempt=rank.attempt, rank=rank.rank))

    def _on_loaded(self, rank: RankProcess, _: c.Loaded) -> None:
        rank.has_loaded = True
        self._drop_payload()

    def _on_returned(self, rank: RankProcess, message: c.Returned) -> None:
        self._take_value(rank, p.RankReturned(at=time.time(), attempt=rank.attempt, rank=rank.rank, value=message.value))

    def _on_lost(self, rank: RankProcess, message: c.Lost) -> None:
        self._take_value(rank, p.ValueLost(at=time.time(), attempt=rank.attempt, rank=rank.rank, reason=message.reason))

    def _on_unwound(self, rank: RankProcess, _: c.Unwound) -> None:
        rank.is_stopped = rank.was_asked  # only we know that

    def _on_handler(self, rank: RankProcess, _: c.HasHandler) -> None:
        rank.has_acknowledged = True

    def _on_message_for_kernel(self, rank: RankProcess, message: c.ForKernel) -> None:
        self.outbox.post(c.OfRank(attempt=rank.attempt, rank=rank.rank, body=message.body))

    def _take_value(self, rank: RankProcess, event: p.RankReturned | p.ValueLost) -> None:
        """Record that a function has returned; a script gives values before its end, and only a good end makes the last one count."""
        if self.plan.script is not None:
            rank.given = event
        else:
            rank.has_returned = True
            self.record(event)

    def fail(self, rank: RankProcess, failure: p.Failure) -> None:
        """Record that a rank has failed."""
        rank.failure = failure
        self.record(p.RankFailed(at=time.time(), attempt=rank.attempt, rank=rank.rank, failure=failure))

    def _drop_payload(self) -> None:
        """Unlink the payload when every rank of the last possible attempt has it. Ranks are placed one by one: the first may be quick."""
        if self.is_last_attempt and sum(rank.has_loaded for rank in self.ranks) == self.plan.world_size:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.plan.payload)

    def _on_loss(self, rank: RankProcess) -> None:
        self.record_loss(rank.attempt, rank.rank, rank.loss)

    def record_loss(self, attempt: int, rank: int, loss: Loss, *, is_end: bool = False) -> None:
        """Record that output of a rank is missing in its log files, when that is news."""
        if loss.is_news(is_end=is_end):
            say(f"rank {rank}: {loss.size_bytes} bytes of its output are not in its log files so far: {loss.why}")
            self.record(p.OutputLost(at=time.time(), attempt=attempt, rank=rank, size_bytes=loss.size_bytes, reason=loss.why))

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

    # ---- how ranks end

    def _on_exit(self, rank: RankProcess) -> None:
        self._selector.unregister(rank.pidfd)
        # What it said and printed comes first: a reader of its exit event must find every line in the log.
        if rank.channel.fileno() in self._selector.get_map():
            self._drain_channel(rank)
        self._terminals.end(rank)
        self.record_loss(rank.attempt, rank.rank, rank.loss, is_end=True)
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
                self._settle_given(rank, code)
                if not self.is_ending:
                    self._judge_exit(rank, code)
                # Once the others are being ended it is our own signal that the code tells of.
                is_news = rank.has_returned and code != 0 and not self.is_ending
                note = f"left with exit code {code} after its value was written" if is_news else ""
                self.record(p.RankExited(at=time.time(), attempt=rank.attempt, rank=rank.rank, exit_code=code, note=note))
            elif not self.has_run and not self.is_closing:
                self._replace(rank)
            self.condition.notify_all()

    def _replace(self, rank: RankProcess) -> None:
        """Start another process in the place of one that died while it stood by, unless that happens again and again."""
        self._replaced += 1
        if rank.is_preloading or self._replaced > MOST_REPLACEMENTS:
            self.outbox.post(c.Spoiled(body=rank.early))
            return
        self.ranks.remove(rank)
        rank.reap()
        self.start_ranks(1)

    def _settle_given(self, rank: RankProcess, code: int) -> None:
        """Record what a script gave if it has ended well, else free it."""
        given = rank.given
        if code == 0 and rank.failure is None and given is not None:
            rank.has_returned = True
            self.record(p.replace(given, at=time.time()))
        elif isinstance(given, p.RankReturned):
            Path(given.value.path).unlink(missing_ok=True)

    def _judge_exit(self, rank: RankProcess, code: int) -> None:
        """Say what an exit means that nobody has caused: a function's rank says by itself how it ended, of a script the code tells."""
        if self.plan.script is None:
            if not rank.has_returned and rank.failure is None:
                self.fail(rank, self._failure_from_exit(rank, code))
        elif code != 0 and rank.failure is None:
            self.fail(rank, self._failure_from_exit(rank, code))
        elif code == 0 and not rank.has_returned:
            self.record(p.RankSucceeded(at=time.time(), attempt=rank.attempt, rank=rank.rank))

    def _drain_channel(self, rank: RankProcess) -> None:
        while rank.channel.fileno() in self._selector.get_map() and select.select([rank.channel], [], [], 0)[0]:
            self._on_rank(rank)
        with contextlib.suppress(KeyError):
            self._selector.unregister(rank.channel)

    def _failure_from_exit(self, rank: RankProcess, code: int) -> p.Failure:
        """Say how a rank ended that did not say it itself."""
        out_of_memory = code == -signal.SIGKILL and processes.out_of_memory_kills() > self._out_of_memory_kills
        return crashes.failure_from_exit(
            code,
            out_of_memory=out_of_memory,
            stacks=self.folder.stacks_file(rank.attempt, rank.rank),
            sources=self.folder.sources_file,
            error_file=self.folder.error_file(rank.attempt, rank.rank),
            at=time.time(),
        )
