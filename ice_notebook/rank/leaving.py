"""The end of a rank's process: what Python does at the end of a program, but for what took long to import. Runs in a rank.

An interpreter with torch loaded takes half a second to take all modules down, and threads of gloo and NCCL may abort in static destructors.
So the process ends by `_exit`, after what the user would miss: threads are waited for, `atexit` is run, and what the user's own modules hold
is dropped as Python drops it, which closes files, writes what they have buffered, and runs `__del__`. What libraries keep open is flushed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import io
import os
import signal
import site
import stat
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NoReturn

_MAIN = ("__main__", "__mp_main__")
_OURS = ("ice_notebook", "torch")  # in folders of their own when they are installed for editing
# Files that are layers of each other, in the order in which they are flushed; none of them has anything to write when it is closed.
_LAYERS: tuple[Any, ...] = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
_PLAIN = frozenset({*_LAYERS, io.FileIO, io.BufferedReader, io.BufferedRWPair, io.BytesIO, io.StringIO})
_FILE = io.TextIOWrapper.__mro__[-2]  # the class of all files in C: asking io.IOBase costs ten times as much


class Leaving:
    """The last steps of this process, or of a child that the user's code has forked from it."""

    def __init__(self) -> None:
        self.own_file = -1  # a descriptor of a file that is ours
        self.is_waiting = False  # for the user's threads: an interrupt ends that, and may raise nowhere else
        self._terminated: list[int] = []  # SIGTERMs that came while files were being written

    def leave(self, code: int) -> NoReturn:
        """End the process with this exit code."""
        steps: tuple[Callable[[], object], ...] = (
            self._wait_for_threads,
            atexit._run_exitfuncs,
            _flush_streams,
            self._drop_handlers,
            _drop_users_modules,
            lambda: _flush_files(self.own_file),
            _flush_streams,
        )
        try:
            for step in steps:
                _do(step)
            if self._terminated and code == 0:  # all is well, and yet it ends by the signal, as any program
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os._exit(code)

    def _wait_for_threads(self) -> None:
        """Wait for the user's threads, as the end of any program does; an interrupt ends the wait."""
        with contextlib.suppress(KeyboardInterrupt):
            try:
                self.is_waiting = True
                threading._shutdown()  # type: ignore[attr-defined]
            finally:
                self.is_waiting = False

    def _drop_handlers(self) -> None:
        """Forget the user's signal handlers, and only count the SIGTERMs that come while files are being written."""
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_IGN if number is signal.SIGINT else signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda number, _: self._terminated.append(number))


def _do(step: Callable[[], object]) -> None:
    try:
        step()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or taken away, by the user's code
            stream.flush()
    ctypes.CDLL(None).fflush(None)


# ---- what the user's modules hold -------------------------------------------------------------------------------------------------------


def _drop_users_modules() -> None:
    """Drop the user's modules and what only they hold, in the order in which Python does at its end.

    First those that nobody else holds go, and finalizers still find all names of their module. What else is still there, because a library
    was given a function of it, is emptied.
    """
    threading.excepthook = lambda _: None  # threads that go on find names gone; at Python's own end they do not run any more
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, name, getattr(sys, f"__{name}__"))
    # With torch loaded, and not frozen as in ranks that have imported it first, each search takes 50 to 100 ms. The first one is for its
    # effect on the order of the second's finalizers: what holds something else comes before that, and a file is written before it is closed.
    gc.collect()
    taken = _take_users_modules()
    gc.collect()
    left = [module for reference in reversed(taken) if isinstance(module := reference(), ModuleType)]
    for module in left:
        _empty(vars(module))
    if left:
        gc.collect()


def _take_users_modules() -> list[weakref.ref[Any]]:
    """Take the user's modules out of those that are loaded; return references that do not keep them, in the order of their imports."""
    folders = _library_folders()
    taken = []
    for name, module in list(sys.modules.items()):
        if name in _MAIN or _is_users(name, module, folders):
            sys.modules[name] = None  # type: ignore[assignment] # as Python does: no finalizer can import it anew
            with contextlib.suppress(TypeError):  # not a module, but what somebody has put in the place of one
                taken.append(weakref.ref(module))
    return taken


def _is_users(name: str, module: object, folders: tuple[str, ...]) -> bool:
    names = getattr(module, "__dict__", {}) if isinstance(module, ModuleType) else {}
    file = names.get("__file__")
    if not isinstance(file, str) or name.partition(".")[0] in _OURS:
        return False
    return not file.startswith(folders) and not {"site-packages", "dist-packages"}.intersection(file.split(os.sep))


def _library_folders() -> tuple[str, ...]:
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    with contextlib.suppress(AttributeError):  # an environment made by an old virtualenv has no such function
        folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.join(folder, "") for each in folders if each for folder in {each, os.path.realpath(each)})


def _empty(names: dict[str, Any]) -> None:
    """Forget what a module's names stand for, as Python does: those that begin with one underscore first."""
    for is_first in (True, False):
        for name in list(names):
            if name != "__builtins__" and (name[:1] == "_" and name[1:2] != "_") is is_first:
                names[name] = None


# ---- what others hold --------------------------------------------------------------------------------------------------------------------


def _has_files_to_write(own_file: int) -> bool:
    """Return whether this process has a file open for writing, beside its standard streams and one of ours."""
    for text in os.listdir("/proc/self/fd"):  # Linux; a launch refuses other systems
        fd = int(text)
        with contextlib.suppress(OSError):  # the one of the list itself is closed again
            is_file = fd > 2 and fd != own_file and stat.S_ISREG(os.fstat(fd).st_mode)
            if is_file and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                return True
    return False


def _flush_files(own_file: int) -> None:
    """Write what files hold that a library keeps open. Archives and compressed ones are closed: they are written then, to other files."""
    if not _has_files_to_write(own_file):
        return
    gc.unfreeze()  # what a library has opened when it was imported is among what is never searched
    archive = getattr(sys.modules.get("zipfile"), "ZipFile", _FILE)
    found: dict[bool, list[Any]] = {False: [], True: []}
    for each in gc.get_objects():
        kinds = type(each).__mro__  # not `isinstance`, which asks objects that stand in for others what they are
        if _FILE in kinds or archive in kinds:
            found[type(each) in _PLAIN].append(each)
    _flush_layers(found[True])
    for file in sorted(found[False], key=lambda file: _FILE in type(file).__mro__):
        _do(file.close)
    _flush_layers(found[True])


def _flush_layers(files: Iterable[Any]) -> None:
    for layer in _LAYERS:
        for file in files:
            if type(file) is layer and not file.closed:
                _do(file.flush)
