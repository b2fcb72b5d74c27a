"""The run folder: every file name in it, atomic writes, the journal, whose it is, and who looks at it.

    <user's cache>/ice_notebook/<run id>/
        plan.json       what was to be done
        events.jsonl    what happened, one event a line, appended by one writer at a time
        owner.json      whose run it is, held by that process as long as it lives
        lock            held by every `Run` that somebody looks at it by: the folder is not pruned then
        agent.log       what the agent and torch's elastic had to say
        payload         the pickled function, when it is not on shared memory
        attempt_<k>/<rank>/{output.log, stdout.log, stderr.log, error.json, stacks.txt, exception, result}

With `log_dir` the folder is `<log_dir>/<rdzv_id>_<run id>/`, and the cache holds a link to it. All folders have mode 0700.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from ice_notebook.errors import LaunchError
from ice_notebook.host import ownership
from ice_notebook.host.identities import is_alive, is_of_this_machine, own_identity
from ice_notebook.host.locks import Lock, is_held
from ice_notebook.host.private_files import make_private_dir, open_private
from ice_notebook.host.writing import write_all, write_what_fits
from ice_notebook.values import shared_values
from ice_notebook.wire import exact_json
from ice_notebook.wire import protocol as p

JOURNAL_RESERVE_BYTES = 256 << 10  # some thousand events, or the failures of a few ranks with their tracebacks
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h


def new_run_id() -> str:
    """Return an id that sorts by time and that no other launch has."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"


def cache_dir() -> Path:
    """Return where runs are kept for this user; `XDG_CACHE_HOME` moves it.

    A user without a home that can be written to, as in a container or on a node of a cluster, has a folder in the system's temporary one.
    """
    try:
        path = Path(platformdirs.user_cache_dir("ice_notebook"))
    except RuntimeError:  # no home is known
        return _temporary_cache()
    return path if os.environ.get("XDG_CACHE_HOME") or _can_be_made(path) else _temporary_cache()


def _temporary_cache() -> Path:
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError:  # there is none that can be written to
        parent = shared_values.SHARED_MEMORY
    return parent / f"ice_notebook-{os.getuid()}"


def _can_be_made(path: Path) -> bool:
    there = next((each for each in (path, *path.parents) if os.path.lexists(each)), None)
    return path.is_absolute() and there is not None and os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _make_cache() -> None:
    """Make the cache if need be.

    Raises:
        OSError: it cannot be made.
        LaunchError: it is somebody else's, or, where anybody may make a folder of that name, others may write to it.
    """
    cache = cache_dir()
    if not os.path.lexists(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another launch was quicker
            make_private_dir(cache)
    try:
        ownership.check_folder(cache)
    except ownership.ForeignFileError as error:
        raise LaunchError.foreign_cache(cache, error.strerror or "") from None
    if cache == _temporary_cache() and (cache.is_symlink() or cache.stat().st_mode & 0o077):
        raise LaunchError.foreign_cache(cache, "it is a link, or open to others")


def _users_folder(log_dir: str) -> Path:
    """Return the folder that a user has named, as a whole path.

    Raises:
        LaunchError: it is in the home of nobody, or relative to a folder that is gone.
    """
    try:
        return Path(log_dir).expanduser().absolute()
    except RuntimeError as error:
        raise LaunchError.no_home(log_dir) from error
    except OSError as error:
        raise LaunchError.relative_folder(log_dir, error) from error


class RunFolder:
    """The files of one run. Constructing it touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, run_id: str, *, log_dir: str | None = None, rdzv_id: str = "none") -> RunFolder:
        """Make the folder of a new run.

        Raises:
            LaunchError: it cannot be made or written: no permission, disk full, a file in the way.
        """
        path = cache_dir() / run_id if log_dir is None else _users_folder(log_dir) / f"{rdzv_id}_{run_id}"
        try:
            if log_dir is None:
                _make_cache()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
            make_private_dir(path)
        except (OSError, ValueError) as error:  # the latter of a null character
            raise LaunchError.folder(path, error, is_users=log_dir is not None) from error
        if log_dir is not None:
            with contextlib.suppress(OSError, LaunchError):  # no cache to be had: nobody finds the run there, and that is all
                _make_cache()
                (cache_dir() / run_id).symlink_to(path, target_is_directory=True)
        return cls(path)

    def discard(self) -> None:
        """Remove the folder of a launch that was refused before anything started."""
        link = cache_dir() / self.path.name.rpartition("_")[2]
        if os.path.islink(link):
            link.unlink()
        shutil.rmtree(self.path, ignore_errors=True)

    # ---- names

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def owner_file(self) -> Path:
        """Return the file that says who controls the run: held by that process as long as it lives."""
        return self.path / "owner.json"

    @property
    def journal_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def agent_log(self) -> Path:
        return self.path / "agent.log"

    def rank_dir(self, attempt: int, rank: int) -> Path:
        return self.path / f"attempt_{attempt}" / str(rank)

    def output_log(self, attempt: int, rank: int) -> Path:
        """Return the file that holds exactly what was shown of a rank."""
        return self.rank_dir(attempt, rank) / "output.log"

    def stream_log(self, attempt: int, rank: int, stream: p.Std) -> Path:
        """Return the file of a redirected or teed stream."""
        return self.rank_dir(attempt, rank) / ("stdout.log" if stream is p.Std.OUT else "stderr.log")

    def error_file(self, attempt: int, rank: int) -> Path:
        """Return what torch calls TORCHELASTIC_ERROR_FILE."""
        return self.rank_dir(attempt, rank) / "error.json"

    def stacks_file(self, attempt: int, rank: int) -> Path:
        return self.rank_dir(attempt, rank) / "stacks.txt"

    def exception_file(self, attempt: int, rank: int) -> Path:
        """Return the file of the pickled exception that a rank raised, where it could be pickled."""
        return self.rank_dir(attempt, rank) / "exception"

    def result_file(self, attempt: int, rank: int) -> Path:
        """Return where a value lies that is not on shared memory."""
        return self.rank_dir(attempt, rank) / "result"

    def places_for_value(self, attempt: int, rank: int, shared_dir: str | None) -> list[Path]:
        """Return where a rank's value may be written, the first that has room: on shared memory, and in the folder."""
        shared = [Path(shared_dir) / f"{attempt}.{rank}"] if shared_dir is not None else []
        return [*shared, self.result_file(attempt, rank)]

    @property
    def payload_file(self) -> Path:
        return self.path / "payload"

    @property
    def sources_file(self) -> Path:
        """Return the file of the cells' texts: {file name: [label, text]}."""
        return self.path / "sources.json"

    def make_rank_dir(self, attempt: int, rank: int) -> Path:
        directory = self.rank_dir(attempt, rank)
        for path in (self.path, directory.parent, directory):
            if not path.exists():
                with contextlib.suppress(FileExistsError):  # another thread was quicker
                    make_private_dir(path)
        return directory

    # ---- plan and journal

    def write_plan(self, plan: p.Plan) -> None:
        """Write the plan without what opens doors: the ranks' environment, which may hold passwords, and the token of the run."""
        nodes = plan.nodes and p.replace(plan.nodes, token="", identity="", environment={})
        write_atomically(self.plan_file, exact_json.encode(p.replace(plan, environment={}, nodes=nodes), indent=1))

    def read_plan(self) -> p.Plan:
        return p.decode(self.plan_file.read_bytes(), p.Plan)

    def read_events(self) -> list[Any]:
        """Return the journal's events; a last line that was torn by a crash is left out."""
        try:
            lines = self.journal_file.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [p.decode_event(line) for line in lines if line.endswith(b"\n")]

    def has_ended(self) -> bool:
        """Return whether the journal says that no process of the run is left."""
        return any(isinstance(event, p.RunEnded) for event in self.read_events())

    def open_journal(self) -> Journal:
        return Journal(self.journal_file)

    # ---- whose it is

    def own(self) -> Lock | None:
        """Say that this process controls the run from now on, and hold that file until the lock is released; None where nothing can be held.

        A new owner's file takes the place of the old one's in one step: whoever reads it finds it whole and held.

        Raises:
            OSError: the file cannot be written.
        """
        written = self.owner_file.with_name(f".{self.owner_file.name}.{secrets.token_hex(4)}")
        lock = Lock.take(written)
        try:
            with open(open_private(written, os.O_WRONLY), "wb") as file:
                file.write(p.encode(p.Owner(process=own_identity(), is_locked=lock is not None)))
            written.replace(self.owner_file)
        except OSError:
            written.unlink(missing_ok=True)
            raise
        return lock

    def read_owner(self) -> p.Owner | None:
        """Return who controls the run; None where nobody has said so."""
        try:
            return p.decode(self.owner_file.read_bytes(), p.Owner)
        except (OSError, msgspec.DecodeError):
            return None

    def is_owned(self) -> bool | None:
        """Return whether the process that controls the run is alive; None when that cannot be known from here."""
        owner = self.read_owner()
        if owner is None:
            return None
        if (alive := is_alive(owner.process)) is not None:
            return alive
        held = is_held(self.owner_file)
        # The owner is of another container or machine. A lock that is free says something within this machine only.
        return held if held or (owner.is_locked and is_of_this_machine(owner.process)) else None

    def lock(self) -> Lock | None:
        """Keep the folder from being pruned until the lock is released. Several may hold it; None where none can."""
        return Lock.take(self.path / "lock", is_shared=True)

    def is_locked(self) -> bool:
        """Return whether somebody looks at the run."""
        return is_held(self.path / "lock") is True


class Journal:
    """The writing end of `events.jsonl`: a reader sees each event whole or not at all, and all of them in order.

    What a full disk does not take is written before the next event. A little room is kept, so that a run whose output has filled the disk
    still has its end in the journal.
    """

    def __init__(self, path: Path, *, reserve_bytes: int = 0) -> None:
        """Open it, and have the file system keep room for so many bytes of events.

        Raises:
            OSError: it cannot be opened, or it or its folder is somebody else's.
        """
        ownership.check_folder(path.parent)
        self._fd = ownership.open_own(path, os.O_CREAT | os.O_APPEND | os.O_RDWR)
        self._unwritten = b""
        self._reserve_bytes = reserve_bytes
        self._end_torn_line()
        if reserve_bytes:
            self._reserve()

    def append(self, event: Any) -> None:
        """Write an event.

        Raises:
            OSError: the disk is full. The event, or the rest of it, is written before the next one.
        """
        self._unwritten += p.encode(event) + b"\n"
        self._write()

    def close(self) -> None:
        """Write what is left, if that is possible now, and close the file."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # whoever appended it has heard of that
                self._write()
            if self._reserve_bytes:
                with contextlib.suppress(OSError):  # room that was kept and not needed stays taken
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self) -> None:
        written, error = write_what_fits(self._fd, self._unwritten)
        self._unwritten = self._unwritten[written:]
        if error is not None:
            raise error

    def _reserve(self) -> None:
        """Have the file system keep room behind the end of the file. Where it cannot, a full disk is met earlier."""
        end = os.fstat(self._fd).st_size
        ctypes.CDLL(None).fallocate(self._fd, _KEEP_SIZE, ctypes.c_int64(end), ctypes.c_int64(self._reserve_bytes))

    def _end_torn_line(self) -> None:
        """Cut what a writer that died in the middle of a line has left."""
        size = os.fstat(self._fd).st_size
        content = os.pread(self._fd, size, 0)
        if content and not content.endswith(b"\n"):
            os.ftruncate(self._fd, content.rfind(b"\n") + 1)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = open_private(temporary, os.O_WRONLY | os.O_EXCL)
        try:
            write_all(fd, content)
        finally:
            os.close(fd)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
