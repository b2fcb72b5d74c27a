"""A rank from its first line to its last. Runs in a rank, in the main thread.

The agent starts it by exec with a descriptor of a socketpair, one of a pseudo-terminal and one of a pipe. It gets ready (imports torch),
waits for `go`, runs the task, writes the value, says so, and leaves.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from ice_notebook import protocol as p
from ice_notebook.frames import Channel
from ice_notebook.progress import reporter
from ice_notebook.rank import guards, preloading, surroundings
from ice_notebook.rank.control import Control

_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130  # as a shell says: 128 + SIGINT


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank needs before it knows who it is: given on its command line as JSON."""

    agent_pid: int
    socket: int  # descriptors that it inherits
    terminal: int
    acknowledge: int
    modules: tuple[str, ...]  # imported before it says that it is ready
    preload: tuple[str, ...] = ()  # these too, as far as they do no harm


def main(text: str, own_path: list[str]) -> None:
    """Be a rank. `own_path` is the module path that a fresh interpreter has. Never returns."""
    serve(msgspec.json.decode(text, type=Settings), own_path)


def serve(settings: Settings, own_path: list[str], readiness: p.Readiness | None = None) -> NoReturn:
    """Be a rank with these settings; `readiness` when a process that this one was forked from has done all imports."""
    guards.die_with_agent(settings.agent_pid)
    guards.take_terminal(settings.terminal)
    guards.buffer_by_line()
    for fd in (settings.socket, settings.acknowledge):
        os.set_inheritable(fd, False)
    channel = Channel(socket.socket(fileno=settings.socket))
    sys.argv = [""]
    if readiness is None:
        channel.send("tied")
        readiness = preloading.get_ready(settings.modules, settings.preload)
    p.get_ready_for(p.Go)
    guards.spare_resource_trackers()
    surroundings.quiet_prompts()
    control = Control(channel)
    control.start()
    try:
        channel.send("ready", p.encode(readiness))
        while (frame := channel.receive()).kind == "preload":
            channel.send("ready", p.encode(preloading.load(frame.fields["modules"])))
    except (EOFError, OSError):
        os._exit(0)  # not needed after all
    Rank(channel, control, p.decode(frame.body, p.Go), settings, own_path).run()


class Rank:
    """A rank that knows who it is."""

    def __init__(self, channel: Channel, control: Control, go: p.Go, settings: Settings, own_path: list[str]) -> None:
        self._channel = channel
        self._control = control
        self._go = go
        self._settings = settings
        self._own_path = own_path
        self._pid = os.getpid()
        self._is_asked_to_stop = False
        self._value_file: Path | None = None

    def run(self) -> NoReturn:
        """Do the work and leave the process."""
        try:
            self._take_place()
            if self._go.script is not None and self._go.script.kind is p.ScriptKind.PROGRAM:
                self._become(self._go.script)
            signal.signal(signal.SIGINT, self._on_interrupt)
            self._tell("accepted")  # from here on this process's end is the run's affair, and it may be asked to stop
            self._control.listen()
            code = self._work() if self._go.script is None else self._run_script(self._go.script)
        except BaseException as error:
            # Everything ends up here, KeyboardInterrupt and SystemExit too: a rank never ends with 0 without having said what became of it.
            code = self._fail(error)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._go.script is None or self._go.script.may_stand_by:
            self._tell("imported", modules=preloading.imported())
        _leave(code)

    def _take_place(self) -> None:
        """Become this rank: environment, folder, paths, streams."""
        go = self._go
        surroundings.take_environment(go.environment)
        os.umask(go.umask)
        os.chdir(go.cwd)
        sys.path[:] = go.sys_path
        importlib.invalidate_caches()
        for stream, path in ((sys.stdout, go.stdout), (sys.stderr, go.stderr)):
            if path is not None:
                guards.redirect(stream, path)
        self._stacks = open(go.stacks, "a")  # noqa: SIM115 - faulthandler writes to it for as long as this process lives
        faulthandler.enable(self._stacks)
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True, chain=False)

    def _work(self) -> int:
        from ice_notebook import pickles  # noqa: PLC0415 - torch must not wait behind it
        from ice_notebook.rank import shell, spawning  # noqa: PLC0415
        from ice_notebook.rank.process_group import ProcessGroup, use_device  # noqa: PLC0415

        go = self._go
        surroundings.make_main_module()
        surroundings.show_as_text()
        surroundings.lend_launcher()
        shell.install()
        spawning.pickle_by_value()
        self._labels = surroundings.take_sources(go.sources)
        use_device(go.device)
        task = pickles.load(Path(go.payload), device=go.device)
        reporter.open(lambda bars: self._tell("progress", bars=bars))
        group = ProcessGroup()
        group.give_way()
        if go.dist_init:
            group.init(go.dist_backend)
        self._control.begun.wait()
        self._tell("loaded")
        try:
            value = task.run()
        except SystemExit as error:
            if error.code not in {None, 0}:
                raise
            value = None
        self._return(value)
        try:
            group.leave()
        except Exception:  # the value is there: what goes wrong now is worth a line, and not the run
            traceback.print_exc()
        return 0

    def _run_script(self, script: p.Script) -> int:
        from ice_notebook.rank import script as scripts  # noqa: PLC0415
        from ice_notebook.script_results import script_result  # noqa: PLC0415

        reporter.open(lambda bars: self._tell("progress", bars=bars))
        script_result.open(self._return)
        self._control.begun.wait()
        try:
            scripts.run(script, self._own_path)
        except SystemExit as error:
            if error.code not in {None, 0}:
                raise
        return 0

    def _become(self, script: p.Script) -> NoReturn:
        """Make this process the program: its exit code says what came of it."""
        from ice_notebook.errors import ScriptError  # noqa: PLC0415
        from ice_notebook.rank import script as scripts  # noqa: PLC0415

        # A terminal that nobody has open reads as hung up: the program holds it, also when its own output goes to files.
        os.set_inheritable(self._settings.terminal, True)
        faulthandler.disable()
        self._tell("accepted")
        self._channel.receive()  # the word to begin
        try:
            scripts.become(script)
        except OSError as error:
            raise ScriptError.no_program(script.target, error.strerror or str(error)) from None

    def _return(self, value: Any) -> None:
        """Write the value in the place of one before, and tell of it; one that cannot be written is told of as well."""
        from ice_notebook import descriptions, pickles  # noqa: PLC0415
        from ice_notebook.errors import PayloadError, ResultError  # noqa: PLC0415

        go = self._go
        try:
            prepared = pickles.prepare(value, devices=pickles.DeviceTensors.TO_HOST, names={"result": value})
            path = prepared.write_first([Path(result) for result in go.results])
        except PayloadError as error:
            reason = ResultError.cannot_send(go.rank, error.refusal) if error.refusal is not None else error
            self._tell("value_lost", reason=str(reason))
            self._drop_value_before(None)
            return
        except OSError:
            self._tell("value_lost", reason=str(ResultError.no_room(go.rank, prepared.size_bytes)))
            self._drop_value_before(None)
            return
        type_name, text, html = descriptions.describe(value)
        told = p.Value(path=str(path), size_bytes=prepared.size_bytes, type_name=type_name, text=text, html=html)
        self._tell("returned", p.encode(told))
        self._drop_value_before(path)

    def _drop_value_before(self, path: Path | None) -> None:
        """Free a value that a script gave before, once the agent knows of what has come in its place: usually the file is the same."""
        if self._value_file is not None and self._value_file != path:
            self._value_file.unlink(missing_ok=True)
        self._value_file = path

    def _fail(self, error: BaseException) -> int:
        """Tell how the work ended when it did not return, and return the exit code."""
        if self._is_asked_to_stop and isinstance(error, KeyboardInterrupt):
            self._tell("stopped")
            return _EXIT_INTERRUPTED
        # The agent ends a failed attempt at once. What is written here is what a person looks for, so it is finished first; SIGKILL bounds it.
        terminated: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))
        code = self._report(error)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if terminated:
            os._exit(code)
        return code

    def _report(self, error: BaseException) -> int:
        from ice_notebook import tracebacks  # noqa: PLC0415

        code = _exit_code(error)
        failure = tracebacks.failure_from_exception(error, getattr(self, "_labels", {}), at=time.time())
        failure = msgspec.structs.replace(failure, exit_code=code)
        if self._go.script is not None and isinstance(error, SystemExit):
            failure = msgspec.structs.replace(failure, kind="exit", headline=_exit_headline(error, code))
        # Told before anything that takes time: siblings notice the broken connection at once, and the first report counts.
        self._tell("failed", p.encode(failure))
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
            from ice_notebook import tracebacks  # noqa: PLC0415

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
        from ice_notebook import pickles  # noqa: PLC0415

        error.__traceback__ = None
        error.__cause__ = error.__context__ = None
        try:
            pickles.prepare(error, devices=pickles.DeviceTensors.TO_HOST).write(Path(self._go.exception))
        except Exception:  # an exception that cannot travel: the failure says what it was
            return

    def _tell(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        # An interrupt in the middle would leave half a frame behind.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with contextlib.suppress(OSError):  # the agent is gone, and this process is about to be
                self._channel.send(kind, body, **fields)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _on_interrupt(self, _signal: int, _frame: object) -> None:
        if os.getpid() == self._pid:  # a forked child inherits the handler, not the conversation
            self._is_asked_to_stop = True
            # Not by the channel, which the interrupted code may just be holding.
            with contextlib.suppress(OSError):
                os.write(self._settings.acknowledge, b"!")
        raise KeyboardInterrupt


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else _EXIT_FAILED
    return _EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else _EXIT_FAILED


def _has_own_hook() -> bool:
    """Return whether a script has its own way to show exceptions. torch's, since a process group was made, only adds the rank to each line."""
    return sys.excepthook is not sys.__excepthook__ and not getattr(sys.excepthook, "__module__", "").startswith("torch.")


def _exit_headline(error: SystemExit, code: int) -> str:
    from ice_notebook import exits  # noqa: PLC0415

    lines = [] if isinstance(error.code, int) else str(error.code).strip().splitlines()
    return f"{lines[0]} ({exits.explain_exit(code)})" if lines else exits.explain_exit(code)


def _leave(code: int) -> NoReturn:
    """End the process after Python-level clean-up, without tearing modules down.

    An interpreter with torch loaded takes half a second for that, and threads of gloo and NCCL may abort in static destructors.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined] # waits for the user's threads, as the end of any program does
        atexit._run_exitfuncs()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed by the user's code
                stream.flush()
        guards.libc.fflush(None)
        os._exit(code)
