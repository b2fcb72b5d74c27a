"""`python -m ice_notebook join HOST:PORT`: this machine takes part in a run that a notebook elsewhere has started.

Runs in a process of its own, which is to its agent what the kernel is to the first one: it holds the connection, brings the payload, passes
on what agent and coordinator say, and streams logs and values to the first machine.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ice_notebook.devices import grammar as devices
from ice_notebook.devices import machine
from ice_notebook.errors import IceNotebookError, LaunchError, OptionError
from ice_notebook.errors.nodes import NodeError
from ice_notebook.host import boot, inherited, processes, starting
from ice_notebook.kernel import environment, planning
from ice_notebook.kernel.agents import AgentProcess, how_it_ended
from ice_notebook.options.join_options import JOIN_TABLE, JoinOptions
from ice_notebook.options.line import read_command
from ice_notebook.runs import store, upkeep
from ice_notebook.runs.store import RunFolder
from ice_notebook.values.shared_values import SharedValues
from ice_notebook.wire import control as c
from ice_notebook.wire import node_messages as m
from ice_notebook.wire import protocol as p
from ice_notebook.wire import tls
from ice_notebook.wire.messages import Handlers, Message, MessageChannel, expect
from ice_notebook.wire.node_files import PIECE_BYTES, IncomingFile, send_file
from ice_notebook.wire.token import VARIABLE, Token, parse_token

T = TypeVar("T", bound=Message)
END_WAIT_S = 3.0  # beyond the ranks' grace, for the agent to end with the connection
_EXIT_FAILED, _EXIT_USAGE, _EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str]) -> int:
    """Join a run, take part to its end, and return the exit status: 0 when the run succeeded."""
    try:
        address, asked = _read(argv)
        planning.check_platform()
        upkeep.clean_up()
        host, port = _read_address(address)
        token = _read_token()
        stream = tls.connect(host, port, token, timeout_s=asked.connect_timeout)
        channel: MessageChannel[Any] = MessageChannel(stream, m.ToJoin)  # type: ignore[arg-type] # it has what a channel needs of a socket
        with contextlib.closing(channel), _node(channel, asked, stream.local_address) as node:
            return node.run()
    except IceNotebookError as error:
        _say(str(error))
        return _EXIT_USAGE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def _read(argv: Sequence[str]) -> tuple[str, JoinOptions]:
    """Return the address that a command line names, and its options, which may stand on both sides of it.

    Raises:
        OptionError: it cannot be read.
    """
    before, rest = read_command(argv, JOIN_TABLE)
    after, more = read_command(rest[1:], JOIN_TABLE)
    if twice := before.keys() & after.keys():
        raise OptionError.twice(min(twice))
    if not rest:
        raise NodeError.no_address()
    if more:
        raise NodeError.more_words(more[0])
    return rest[0], JoinOptions(**before, **after)


def _read_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise NodeError.unreadable_address(text)
    return host, int(port)


def _read_token() -> Token:
    """Return the token, which is never an argument: everybody on a machine can read those."""
    text = os.environ.pop(VARIABLE, "")
    if not text:
        if sys.stdin.isatty():
            import getpass  # noqa: PLC0415

            text = getpass.getpass("Token of the run: ")
        else:
            text = sys.stdin.readline()
    if not text.strip():
        raise NodeError.no_token()
    return parse_token(text)


def _say(text: str) -> None:
    print(f"ice_notebook: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the terminal of a machine that joins


# ---- getting ready -----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _node(channel: MessageChannel[Any], asked: JoinOptions, address: str) -> Iterator[JoinedNode]:
    """Yield this machine as a node with all that its agent needs; nothing of it is left afterwards but its run folder.

    Raises:
        NodeError: the run does not take it.
        DeviceError: this machine does not have the devices.
    """
    try:
        channel.send(m.hello())
        theirs = _receive(channel, m.Welcome).plan
        resolved = _resolve(theirs, asked)
        run_id = store.new_run_id()
        folder = RunFolder.create(run_id)
        shared = SharedValues.make(run_id)
        try:
            places = [shared.path / "payload"] if shared is not None else []
            sources = _receive_file(channel, [folder.sources_file])
            payload = _receive_file(channel, [*places, folder.payload_file])
            plan = _make_plan(theirs, resolved, run_id, folder, address)
            plan = p.replace(
                p.with_places(plan, payload=payload, shared=None if shared is None else shared.path), sources=str(sources)
            )
            folder.write_plan(plan)
            with folder.own() or contextlib.nullcontext(), folder.lock() or contextlib.nullcontext():
                yield JoinedNode(channel, plan, folder)
        finally:
            if shared is not None:
                shared.discard()
    except (OSError, EOFError, msgspec.MsgspecError) as error:
        if isinstance(error, IceNotebookError):
            raise
        raise NodeError.broken_off(error) from error


def _receive(channel: MessageChannel[Any], kind: type[T]) -> T:
    """Return the next message, unless it is a refusal.

    Raises:
        NodeError: it is one.
    """
    message = channel.receive()
    if isinstance(message, m.Refused):
        raise NodeError.refused(message.why)
    return expect(message, kind)


def _resolve(theirs: p.Plan, asked: JoinOptions) -> devices.ResolvedDevices:
    """Return the devices of this node: those asked for, else as many of the same kind as the first machine uses."""
    chosen, n_ranks = asked.devices, asked.nproc_per_node
    if chosen is None and not isinstance(n_ranks, str):
        chosen, n_ranks = devices.parse_devices(theirs.device_type), n_ranks or len(theirs.ranks)
    inventory = machine.inventory(look_for_gpus=chosen is None or chosen.kind != "cpu")
    resolved = devices.resolve(chosen, inventory, nproc_per_node=n_ranks, dist_backend="auto")
    wanted = theirs.dist_backend
    if wanted != resolved.dist_backend and "gloo" not in wanted:
        raise NodeError.backend(wanted, resolved.dist_backend)
    return resolved


def _receive_file(channel: MessageChannel[Any], places: Sequence[Path]) -> Path:
    incoming: IncomingFile | None = None
    while True:
        piece = _receive(channel, m.Piece)
        if incoming is None:
            incoming = IncomingFile(places, piece.size_bytes)
        if incoming.take(piece):
            if incoming.error is not None:
                raise LaunchError.files("The function and its values", incoming.error)
            return incoming.path


def _make_plan(theirs: p.Plan, resolved: devices.ResolvedDevices, run_id: str, folder: RunFolder, address: str) -> p.Plan:
    """Return the plan for here: what is launched is theirs; folders, devices, interpreter and environment are this machine's."""
    nodes = theirs.nodes
    assert nodes is not None
    streams = {rank.local_rank: (int(rank.redirects), int(rank.tee)) for rank in theirs.ranks}
    sys_path = tuple(entry for entry in sys.path if isinstance(entry, str))
    return p.replace(
        theirs,
        run_id=run_id,
        folder=str(folder.path),
        ranks=planning.rank_plans(resolved, lambda rank: streams.get(rank, (0, 0))),
        devices=resolved.text,
        device_type=resolved.device_type,
        timeout=None,  # the first machine has the clock
        marker=processes.new_marker(),
        environment=environment.rank_environment(
            os.environ,
            n_ranks=len(resolved.ranks),
            omp_num_threads=nodes.omp_num_threads,
            extra=nodes.environment,
            interface=environment.interface_of(address),
        ),
        cwd=os.getcwd(),
        sys_path=sys_path,
        pins=boot.pinned(boot.boot_path(sys_path, os.getcwd())),
        umask=starting.current_umask(),
        inherited=inherited.read(),
        interpreter=starting.interpreter(),
        kernel_pid=os.getpid(),
    )


# ---- taking part -------------------------------------------------------------------------------------------------------------------------


class JoinedNode:
    """This machine as a node of a run: passes on what the agent and the first machine say to each other."""

    def __init__(self, channel: MessageChannel[Any], plan: p.Plan, folder: RunFolder) -> None:
        self._channel = channel
        self._plan = plan
        self._folder = folder
        self._files: queue.SimpleQueue[Any] = queue.SimpleQueue()  # values and what must come after them, in order
        self._offsets: dict[tuple[int, int], int] = {}  # how much of each log is sent
        self._ended: p.RunEnded | None = None
        self._is_lost = False  # the first machine is gone
        self._agent_has_ended = threading.Event()
        self._is_leaving = False
        self._presses = 0  # of Ctrl-C: a scheduler's second signal is none
        self._from_agent = Handlers(
            {
                c.Output: self._on_output,
                c.Happened: self._on_event,
                m.Done: self._files.put,  # the run may end as soon as all are done
                **dict.fromkeys([c.Progress, c.OfRank, m.NodeReady, m.StoreMade, m.RoundFailed], self._tell),
                # Of no use to the first machine: what is said before there is a run, what was imported here, that a stop was heard.
                **dict.fromkeys([c.Ready, c.Taken, c.Spoiled, c.Imported, c.Stopping], lambda _: None),
            }
        )
        self._from_first = Handlers(
            {
                c.Stop: lambda stop: self._stop(stop.reason, is_urgent=stop.is_urgent, by=stop.signal),
                **dict.fromkeys([c.ForRank, m.Round, m.Over, m.Finish], self._tell_agent),
            }
        )

    def run(self) -> int:
        """Take part to the end. Returns the exit status."""
        plan = self._plan
        self._channel.send(m.Equipped(n_ranks=plan.world_size, devices=plan.devices))
        self._agent = AgentProcess(p.replace(plan.preparation(), is_at_once=True))
        self._agent.run(plan)
        _say(f"joined {plan.name} with {plan.world_size} rank{'s' * (plan.world_size != 1)} on {plan.devices}; Ctrl-C leaves it")
        if any(rank.redirects or rank.tee for rank in plan.ranks):
            _say(f"streams that go to files of their own (redirects, tee) do so here, in {self._folder.path}")
        sender = threading.Thread(target=self._send_files, name="ice-files", daemon=True)
        sender.start()
        threading.Thread(target=self._hear_first, name="ice-first", daemon=True).start()
        # A handler must not raise: half a frame would be on its way. A thread does what is to be done.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda came, _: threading.Thread(target=self._leave, args=[came], daemon=True).start())
        try:
            self._follow_agent()
        finally:
            self._agent_has_ended.set()
            self._agent.kill()
            code = self._agent.close(self._folder.agent_log)
            self._ended = self._ended or self._end_in_journal()  # an agent does not wait for who reads nothing
            processes.sweep(plan.marker, looks=1 if self._ended else 3)
        self._files.put(None)
        sender.join()
        return self._say_how_it_ended(code)

    def _end_in_journal(self) -> p.RunEnded | None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return next((event for event in self._folder.read_events() if isinstance(event, p.RunEnded)), None)
        return None

    def _follow_agent(self) -> None:
        """Pass on what the agent says until it has nothing more to say."""
        with contextlib.suppress(EOFError):
            while True:
                self._from_agent.take_frame(self._agent.channel.receive_frame())

    def _on_event(self, message: c.Happened) -> None:
        if isinstance(message.event, p.RunEnded):
            self._ended = message.event
        if isinstance(message.event, p.RankReturned | p.RankExited):
            self._files.put(message.event)  # after its value, or the exception that the rank has left
        else:
            self._tell(message)

    def _on_output(self, output: c.Output) -> None:
        """Send output, after what the agent left out of it because we were slow: the log file has it all."""
        attempt, rank, missed = output.attempt, output.rank, output.missed
        source = attempt, rank
        if missed:
            with contextlib.suppress(OSError), self._folder.output_log(attempt, rank).open("rb") as log:
                log.seek(self._offsets.get(source, 0))
                left = missed
                while left and (piece := log.read(min(left, PIECE_BYTES))):
                    left -= len(piece)
                    self._tell(c.Output(attempt=attempt, rank=rank, body=piece))
        self._offsets[source] = self._offsets.get(source, 0) + missed + len(output.body)
        if output.body:
            self._tell(c.Output(attempt=attempt, rank=rank, body=output.body))

    def _send_files(self) -> None:
        while (item := self._files.get()) is not None:
            if isinstance(item, Message):
                self._tell(item)
                continue
            with contextlib.suppress(OSError, EOFError):  # the first machine is gone, or the rank has left none
                if isinstance(item, p.RankReturned):
                    self._send_file(Path(item.value.path), item, "value")
                else:
                    self._send_file(self._folder.exception_file(item.attempt, item.rank), item, "exception")
            self._tell(c.Happened(event=item))

    def _send_file(self, path: Path, event: p.RankReturned | p.RankExited, what: str) -> None:
        send_file(self._channel, path, what, attempt=event.attempt, rank=event.rank)
        path.unlink()  # it is there now

    def _tell(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # the first machine is gone, which `_hear_first` sees to
            self._channel.send(message)

    # ---- the first machine

    def _hear_first(self) -> None:
        # What cannot be read is an end as well: a machine that cannot be understood cannot stop this one.
        with contextlib.suppress(OSError, EOFError, ValueError, msgspec.MsgspecError):
            while True:
                self._from_first.take_frame(self._channel.receive_frame())
        if self._ended is None:
            self._is_lost = True
            self._stop(p.StopReason.FIRST_NODE_GONE, is_urgent=False)

    def _tell_agent(self, message: Message) -> None:
        self._agent.tell(message)

    def _stop(self, reason: p.StopReason, *, is_urgent: bool, by: int = signal.SIGINT) -> None:
        self._agent.tell(c.Stop(reason=reason, is_urgent=is_urgent, signal=by))
        threading.Thread(target=self._kill_late, name="ice-late", daemon=True).start()

    def _kill_late(self) -> None:
        if not self._agent_has_ended.wait(self._plan.grace + END_WAIT_S):
            self._agent.kill()

    def _leave(self, by: int) -> None:
        self._presses += by == signal.SIGINT
        if not self._is_leaving:
            self._is_leaving = True
            _say("leaving; press Ctrl-C again to kill its ranks" if by == signal.SIGINT else "leaving")
            self._tell(m.Leaving(why="left"))
        self._stop(p.StopReason.LEFT, is_urgent=self._presses > 1, by=by)

    def _say_how_it_ended(self, code: int | None) -> int:
        ended = self._ended
        if self._is_leaving:
            _say("left the run")
            return _EXIT_INTERRUPTED
        if self._is_lost:
            _say("the first node is gone: the run is over")
            return _EXIT_FAILED
        if ended is None:
            _say(how_it_ended(code, self._folder.agent_log))
            return _EXIT_FAILED
        _say(f"the run {ended.outcome.value}{f': {ended.reason}' if ended.reason else ''}")
        return 0 if ended.outcome is p.Outcome.SUCCEEDED else _EXIT_FAILED
