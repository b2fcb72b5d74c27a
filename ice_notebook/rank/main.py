"""A rank from its first line to its last. Runs in a rank, in the main thread.

The agent starts it by exec with a descriptor of a socketpair, one of a pseudo-terminal and one of a pipe. It gets ready (imports torch),
waits for `go`, runs the task, writes the value, says so, and leaves.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import msgspec

from ice_notebook.context.progress import reporter
from ice_notebook.host import boot, inherited, signals, title
from ice_notebook.rank import guards, leaving, preloading, surroundings
from ice_notebook.rank.control import Control
from ice_notebook.rank.script import command_of as script_command
from ice_notebook.runs import exits
from ice_notebook.runs.exits import INTERRUPTED
from ice_notebook.wire import exact_json
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import (
    Accepted,
    Failed,
    HasHandler,
    Imported,
    Loaded,
    Lost,
    Place,
    Preload,
    Progress,
    Ready,
    Returned,
    Tied,
    ToRank,
    Unwound,
)
from ice_notebook.wire.messages import Message, MessageChannel

T = TypeVar("T")
_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130  # as a shell says: 128 + SIGINT


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank needs before it knows who it is: given on its command line as JSON."""

    agent_pid: int
    socket: int  # descriptors that it inherits
    terminal: int
    asking: int  # a socket: the agent writes a byte before it interrupts, and is answered by one
    modules: tuple[str, ...]  # imported before it says that it is ready


def main(words: list[str], own_path: list[str]) -> None:
    """Be a rank. `own_path` is the module path that a fresh interpreter has. Never returns."""
    serve(exact_json.decode(words[0].encode(), Settings), own_path)


def serve(settings: Settings, own_path: list[str], readiness: p.Readiness | None = None) -> NoReturn:
    """Be a rank with these settings; `readiness` when a process that this one was forked from has done all imports."""
    guards.die_with_agent(settings.agent_pid)
    signals.reset()
    title.show(title.command_of("rank"), may_change=True)
    inherited.be_expendable()
    guards.take_terminal(settings.terminal)
    guards.buffer_by_line()
    for fd in (settings.socket, settings.asking):
        os.set_inheritable(fd, False)
    os.set_blocking(settings.asking, False)
    channel: MessageChannel[Any] = MessageChannel(socket.socket(fileno=settings.socket), ToRank)
    sys.argv = ["cell"]  # a name that is a path: libraries look for files beside it
    if readiness is None:
        channel.send(Tied())
        readiness = preloading.get_ready(settings.modules)
    guards.spare_resource_trackers()
    surroundings.quiet_prompts()
    control = Control(channel)
    control.start()
    try:
        channel.send(Ready(readiness=readiness))
        while isinstance(message := channel.receive(), Preload):
            channel.send(Ready(readiness=preloading.load(message.modules)))
    except (EOFError, OSError):
        os._exit(0)  # not needed after all
    assert isinstance(message, Place)
    Rank(channel, control, message.go, settings, own_path).run()


class Rank:
    """A rank that knows who it is."""

    def __init__(self, channel: MessageChannel[Any], control: Control, go: p.Go, settings: Settings, own_path: list[str]) -> None:
        self._channel = channel
        self._control = control
        self._go = go
        self._settings = settings
        self._own_path = own_path
        self._pid = os.getpid()
        self._is_asked_to_stop = False  # by the agent
        self._is_interrupted = False  # by a SIGINT that the agent did not send
        self._value_file: Path | None = None
        self._leaving = leaving.Leaving()

    def run(self) -> NoReturn:
        """Do the work and leave the process."""
        try:
            self._take_place()
            if self._go.script is not None and self._go.script.kind is p.ScriptKind.PROGRAM:
                self._become(self._go.script)
            signal.signal(signal.SIGINT, self._on_interrupt)
            self._tell(Accepted())  # from here on this process's end is the run's affair, and it may be asked to stop
            self._control.listen(self._on_stop)
            code = self._work() if self._go.script is None else self._run_script(self._go.script)
        except BaseException as error:
            # Everything ends up here, KeyboardInterrupt and SystemExit too: a rank never ends with 0 without having said what became of it.
            code = self._fail(error)
        signal.signal(signal.SIGINT, self._on_late_interrupt)
        if self._go.script is None or self._go.script.may_stand_by:
            self._tell(Imported(modules=preloading.imported()))
        self._leaving.leave(code)

    def _take_place(self) -> None:
        """Become this rank: environment, folder, paths, streams, and the command line that others see."""
        go = self._go
        # A script is found by its name, and can start itself anew by `sys.orig_argv`.
        title.show(script_command(go.script) if go.script is not None else title.command_of("rank", str(go.rank), go.name))
        surroundings.take_environment(go.environment)
        os.umask(go.umask)
        inherited.take(go.inherited)
        os.chdir(go.cwd)
        sys.path[:] = go.sys_path
        boot.forget_pins()
        importlib.invalidate_caches()
        for stream, path in ((sys.stdout, go.stdout), (sys.stderr, go.stderr)):
            if path is not None:
                guards.redirect(stream, path)
        try:
            stacks: IO[Any] = open(go.stacks, "a")  # noqa: SIM115 - faulthandler writes to it for as long as this process lives
            self._leaving.own_file = stacks.fileno()
        except OSError:  # the disk is full
            stacks = sys.stderr
        self._stacks = stacks
        faulthandler.enable(stacks)
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True, chain=False)

    def _work(self) -> int:
        from ice_notebook.rank import shell, spawning  # noqa: PLC0415 - torch must not wait behind it
        from ice_notebook.rank.process_group import ProcessGroup, use_device  # noqa: PLC0415

        go = self._go
        main = surroundings.make_main_module()
        surroundings.show_as_text()
        surroundings.lend_launcher()
        shell.install(main)
        spawning.pickle_by_value()
        self._labels = surroundings.take_sources(go.sources)
        use_device(go.device)
        task = self._load_task()
        reporter.open(lambda bars: self._tell(Progress(bars=list(bars))))
        group = ProcessGroup()
        group.give_way()
        if go.dist_init:
            group.init(go.dist_backend)
        self._control.begun.wait()
        self._tell(Loaded())
        try:
            value = self._run_users(task.run)
        except SystemExit as error:
            if _exit_code(error) != 0:
                raise
            value = None
        self._return(value)
        try:
            group.leave()
        except Exception:  # the value is there: what goes wrong now is worth a line, and not the run
            traceback.print_exc()
        return 0

    def _load_task(self) -> Any:
        """Return what is to be run. What goes wrong in it is told by the name of the user's variable."""
        from ice_notebook.errors import IceNotebookError, LoadError  # noqa: PLC0415
        from ice_notebook.runs import tracebacks  # noqa: PLC0415
        from ice_notebook.values import pickles  # noqa: PLC0415

        go = self._go
        try:
            return pickles.load(Path(go.payload), device=go.device)
        except (KeyboardInterrupt, IceNotebookError, OSError, MemoryError):
            raise
        except BaseException as error:
            if type(error).__name__ == "OutOfMemoryError":  # torch's: of the device, and not of what is loaded
                raise
            frames = error.__traceback__ = tracebacks.users_traceback(error)
            failure = LoadError.of(pickles.name_of_unloaded(Path(go.payload), device=go.device), error)
            raise failure from (None if frames is None else error)

    def _run_script(self, script: p.Script) -> int:
        from ice_notebook.context.script_results import script_result  # noqa: PLC0415
        from ice_notebook.rank import script as scripts  # noqa: PLC0415

        reporter.open(lambda bars: self._tell(Progress(bars=list(bars))))
        script_result.open(self._return)
        self._control.begun.wait()
        try:
            self._run_users(lambda: scripts.run(script, self._own_path))
        except SystemExit as error:
            if _exit_code(error) != 0:
                raise
        return 0

    def _run_users(self, call: Callable[[], T]) -> T:
        """Run the user's code and return its value.

        A process that it has forked never comes back from here: it ends as it would in any Python program, and speaks for itself alone.
        """
        child_code = 0
        try:
            value = call()
        except BaseException as error:
            if os.getpid() == self._pid:
                raise
            child_code = _end_child(error)
        if os.getpid() != self._pid:
            self._leaving.leave(child_code)
        return value

    def _become(self, script: p.Script) -> NoReturn:
        """Make this process the program: its exit code says what came of it."""
        from ice_notebook.errors import ScriptError  # noqa: PLC0415
        from ice_notebook.rank import script as scripts  # noqa: PLC0415

        guards.leave_terminal(self._settings.terminal)
        faulthandler.disable()
        self._tell(Accepted())
        self._channel.receive()  # the word to begin
        try:
            scripts.become(script)
        except OSError as error:
            raise ScriptError.no_program(script.target, error.strerror or str(error)) from None

    def _return(self, value: Any) -> None:
        """Write the value in the place of one before, and tell of it; one that cannot be written is told of as well."""
        from ice_notebook.errors import PayloadError, ResultError  # noqa: PLC0415
        from ice_notebook.values import pickles  # noqa: PLC0415

        go = self._go
        try:
            prepared = pickles.prepare(
                value, devices=pickles.DeviceTensors.TO_HOST, names={"result": value}, is_interrupted=self._was_asked
            )
            path = prepared.write_first([Path(result) for result in go.results])
        except PayloadError as error:
            reason = ResultError.cannot_send(go.rank, error.refusal) if error.refusal is not None else error
            self._tell(Lost(reason=str(reason)))
            self._drop_value_before(None)
            return
        except OSError as error:
            self._tell(Lost(reason=str(ResultError.unwritten(go.rank, prepared.size_bytes, error))))
            self._drop_value_before(None)
            return
        type_name, text, html = self._describe(value)
        told = p.Value(path=str(path), size_bytes=prepared.size_bytes, type_name=type_name, text=text, html=html)
        self._tell(Returned(value=told))
        self._drop_value_before(path)

    def _describe(self, value: Any) -> tuple[str, str, str]:
        """Return what the value looks like. It may raise what it likes when it is asked: the function has returned."""
        from ice_notebook.values import descriptions  # noqa: PLC0415

        for describe in (descriptions.describe, lambda value: (type(value).__name__, descriptions.describe_text(value), "")):
            try:
                return describe(value)
            except KeyboardInterrupt:
                if self._was_asked():
                    raise
        return type(value).__name__, "<repr failed: KeyboardInterrupt>", ""

    def _drop_value_before(self, path: Path | None) -> None:
        """Free a value that a script gave before, once the agent knows of what has come in its place: usually the file is the same."""
        if self._value_file is not None and self._value_file != path:
            self._value_file.unlink(missing_ok=True)
        self._value_file = path

    def _fail(self, error: BaseException) -> int:
        """Tell how the work ended when it did not return, and return the exit code."""
        if isinstance(error, KeyboardInterrupt) and self._was_asked():
            self._tell(Unwound())
            return _EXIT_INTERRUPTED
        # The agent ends a failed attempt at once. What is written here, and what a program writes at its end, is what a person looks for, so
        # it is finished first; SIGKILL bounds it.
        signal.signal(signal.SIGTERM, lambda *_: None)
        return self._report(error)

    def _report(self, error: BaseException) -> int:
        from ice_notebook.runs import tracebacks  # noqa: PLC0415

        code = _exit_code(error)
        if isinstance(error, KeyboardInterrupt):
            tracebacks.cut_handler(error)
        failure = tracebacks.failure_from_exception(error, getattr(self, "_labels", {}), at=time.time())
        failure = msgspec.structs.replace(failure, exit_code=code)
        if self._is_interrupted and isinstance(error, KeyboardInterrupt) and self._go.script is None:
            failure = msgspec.structs.replace(failure, headline=INTERRUPTED)
        if self._go.script is not None and isinstance(error, SystemExit):
            failure = msgspec.structs.replace(failure, kind="exit", headline=_exit_headline(error, code))
        # Told before anything that takes time: siblings notice the broken connection at once, and the first report counts.
        self._tell(Failed(failure=failure))
        with contextlib.suppress(OSError):
            self._print(error, failure)
        self._keep(error, failure)
        return code

    def _print(self, error: BaseException, failure: p.Failure) -> None:
        """Print what Python prints at such an end."""
        if self._go.script is not None and isinstance(error, SystemExit):
            if not isinstance(error.code, int):
                print(error.code, file=sys.stderr, flush=True)
        elif self._go.script is not None and _has_own_hook():
            from ice_notebook.runs import tracebacks  # noqa: PLC0415

            sys.excepthook(type(error), error, tracebacks.users_traceback(error))
        else:
            print(failure.traceback.rstrip("\n"), file=sys.stderr, flush=True)

    def _keep(self, error: BaseException, failure: p.Failure) -> None:
        """Leave what others look for: torch's error file, and the exception itself for the kernel's `__cause__`."""
        reply = {
            "message": failure.headline,
            "extraInfo": {"py_callstack": failure.traceback, "timestamp": str(int(failure.at))},
        }
        error_file = Path(self._go.error_file)
        with contextlib.suppress(OSError):
            if not error_file.exists():  # a script under torch's `@record` has written it
                error_file.write_text(json.dumps({"message": reply}))
        from ice_notebook.values import pickles  # noqa: PLC0415

        error.__traceback__ = None
        error.__cause__ = error.__context__ = None
        try:
            pickles.prepare(error, devices=pickles.DeviceTensors.TO_HOST).write(Path(self._go.exception))
        except BaseException:  # an exception that cannot travel: the failure says what it was
            return

    def _tell(self, message: Message) -> None:
        self._control.tell(message)

    def _on_interrupt(self, _signal: int, _frame: object) -> None:
        if os.getpid() == self._pid:  # a forked child inherits the handler, not the conversation
            self._is_interrupted = not self._was_asked()
        raise KeyboardInterrupt

    def _on_late_interrupt(self, _signal: int, _frame: object) -> None:
        """Answer the agent after the work is done; only a wait for the user's threads is ended by it."""
        self._was_asked()
        if self._leaving.is_waiting:
            raise KeyboardInterrupt

    def _was_asked(self) -> bool:
        """Return whether the agent has asked this rank to stop, and answer if it just has.

        Not by the channel, which the interrupted code may just be holding.
        """
        with contextlib.suppress(OSError):  # nothing new was asked, or the agent is gone, and this process is about to be
            if os.read(self._settings.asking, 64):
                self._is_asked_to_stop = True
                os.write(self._settings.asking, b"!")
        return self._is_asked_to_stop

    def _on_stop(self) -> None:
        """Say whether a handler of the user's own answers the interrupt of a stop: it is given its time, though it does not tell the agent.

        Runs in the control thread, which is heard also while the main thread waits in native code.
        """
        handler = signal.getsignal(signal.SIGINT)
        if handler not in {signal.SIG_IGN, signal.SIG_DFL} and handler != self._on_interrupt:
            self._tell(HasHandler())


def _end_child(error: BaseException) -> int:
    """Print what Python does at such an end of a process that the user's code has forked, and return its exit code."""
    from ice_notebook.runs import tracebacks  # noqa: PLC0415

    code = _exit_code(error)
    if not isinstance(error, SystemExit):
        users = tracebacks.users_traceback(error)
        sys.excepthook(type(error), error.with_traceback(users), users)
    elif error.code is not None and not isinstance(error.code, int):
        print(error.code, file=sys.stderr)
    return code


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return exits.status_of_exit(error.code)
    return _EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else _EXIT_FAILED


def _has_own_hook() -> bool:
    """Return whether a script has its own way to show exceptions. torch's, since a process group was made, only adds the rank to each line."""
    return sys.excepthook is not sys.__excepthook__ and not getattr(sys.excepthook, "__module__", "").startswith("torch.")


def _exit_headline(error: SystemExit, code: int) -> str:
    lines = [] if isinstance(error.code, int) else str(error.code).strip().splitlines()
    return f"{lines[0]} ({exits.explain_exit(code)})" if lines else exits.explain_exit(code)
