"""The run folder: every file name in it, atomic writes, the journal, the lock, pruning, and where values lie.

    <user's cache>/ice_notebook/<run id>/
        plan.json       what was to be done
        events.jsonl    what happened, one event a line, appended by one writer at a time
        lock            held by the `Run` that watches
        agent.log       what the agent and torch's elastic had to say
        payload         the pickled function, when it is not on shared memory
        attempt_<k>/<rank>/{output.log, stdout.log, stderr.log, error.json, stacks.txt, exception, result}

With `log_dir` the folder is `<log_dir>/<rdzv_id>_<run id>/`, and the cache holds a link to it. All folders have mode 0700.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import IO, Any

import msgspec
import platformdirs

from ice_notebook import processes
from ice_notebook import protocol as p
from ice_notebook.errors import LaunchError

UNPLANNED_S = 3600.0  # a launch has its plan within seconds after the folder for its values
KEPT_RUNS = 20  # of the cache; folders that the user named with log_dir are never pruned
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - folders in it are made fresh with mode 0700 under a random name
_SHARED_PREFIX = f"ice_notebook-{os.getuid() if hasattr(os, 'getuid') else 0}-"


def new_run_id() -> str:
    """Return an id that sorts by time and that no other launch has."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"


def cache_dir() -> Path:
    """Return where runs are kept for this user; `XDG_CACHE_HOME` moves it."""
    return Path(platformdirs.user_cache_dir("ice_notebook"))


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
        cache = cache_dir()
        path = cache / run_id if log_dir is None else Path(log_dir).expanduser().absolute() / f"{rdzv_id}_{run_id}"
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            if path.parent != cache:
                (cache / run_id).symlink_to(path, target_is_directory=True)
        except OSError as error:
            raise LaunchError.folder(path, error, is_users=log_dir is not None) from error
        return cls(path)

    def discard(self) -> None:
        """Remove the folder of a launch that was refused before anything started."""
        link = cache_dir() / self.path.name.rpartition("_")[2]
        if link.is_symlink():
            link.unlink()
        shutil.rmtree(self.path, ignore_errors=True)

    # ---- names

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

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

    @property
    def payload_file(self) -> Path:
        return self.path / "payload"

    @property
    def sources_file(self) -> Path:
        """Return the file of the cells' texts: {file name: [label, text]}."""
        return self.path / "sources.json"

    def make_rank_dir(self, attempt: int, rank: int) -> Path:
        directory = self.rank_dir(attempt, rank)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    # ---- plan and journal

    def write_plan(self, plan: p.Plan) -> None:
        """Write the plan without what opens doors: the ranks' environment, which may hold passwords, and the token of the run."""
        nodes = plan.nodes and p.replace(plan.nodes, token="", identity="", environment={})
        write_atomically(self.plan_file, msgspec.json.format(p.encode(p.replace(plan, environment={}, nodes=nodes)), indent=1))

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

    def lock(self) -> IO[bytes] | None:
        """Hold the folder as long as the returned file is open: a held folder is not pruned. Several may hold it; None where none can."""
        try:
            handle = (self.path / "lock").open("ab")
        except OSError:  # somebody else's folder, or a copy on a disc: nobody prunes that
            return None
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return handle

    def is_locked(self) -> bool:
        try:
            with (self.path / "lock").open("ab") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class Journal:
    """The writing end of `events.jsonl`: each event is one `write`, so a reader sees it whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._end_torn_line()

    def append(self, event: Any) -> None:
        os.write(self._fd, p.encode(event) + b"\n")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


# ---- values on shared memory -----------------------------------------------------------------------------------------------------------


def make_shared_dir(run_id: str) -> Path | None:
    """Make the folder for a run's values on shared memory; None where there is none to be had."""
    path = SHARED_MEMORY / f"{_SHARED_PREFIX}{run_id}"
    try:
        path.mkdir(mode=0o700)
    except OSError:
        return None
    return path


def with_places(plan: p.Plan, *, payload: Path | None, shared: Path | None) -> p.Plan:
    """Return the plan with where payload, if there is one, and values lie."""
    return p.replace(plan, payload=str(payload or ""), shared_dir=str(shared) if shared is not None else None)


def remove_shared_dir(run_id: str) -> None:
    """Remove a run's folder on shared memory. Values that are mapped stay readable until they are dropped."""
    shutil.rmtree(SHARED_MEMORY / f"{_SHARED_PREFIX}{run_id}", ignore_errors=True)


# ---- what runs now -----------------------------------------------------------------------------------------------------------------------


def live_plans() -> list[p.Plan]:
    """Return the plans of this user's runs that have not ended, also those of other notebooks, oldest first."""
    found = []
    for folder in _folders():
        with contextlib.suppress(OSError, msgspec.DecodeError):  # a folder without a plan yet, or of another version
            plan = folder.read_plan()
            if processes.is_alive(plan.kernel_pid, plan.kernel_started) and not folder.has_ended():
                found.append(plan)
    return found


# ---- what earlier kernels left ---------------------------------------------------------------------------------------------------------


def clean_up(keep: int = KEPT_RUNS) -> None:
    """End and close what a kernel and its agent left when both were killed at once, then prune old folders of the cache."""
    folders = _folders()
    for folder in folders:
        with contextlib.suppress(OSError, msgspec.DecodeError):  # a folder without a plan yet, or of another version
            _close_abandoned(folder)
    for folder in folders[:-keep] if keep else folders:
        link = cache_dir() / folder.path.name
        if folder.is_locked():
            continue
        if link.is_symlink():
            link.unlink(missing_ok=True)  # another launch may clean up just now
        else:
            shutil.rmtree(folder.path, ignore_errors=True)
    _remove_abandoned_values()


def _folders() -> list[RunFolder]:
    try:
        return [RunFolder(path) for path in sorted(cache_dir().iterdir()) if path.is_dir()]
    except OSError:  # none yet, or none that can be made: the launch says so
        return []


def _close_abandoned(folder: RunFolder) -> None:
    events = folder.read_events()
    if any(isinstance(event, p.RunEnded) for event in events):
        return
    plan = folder.read_plan()
    if processes.is_alive(plan.kernel_pid, plan.kernel_started):
        return
    begun = next((event for event in events if isinstance(event, p.RunBegun)), None)
    if begun is not None and processes.is_alive(begun.agent_pid, begun.agent_started):
        return  # it is on its way out by itself: its kernel is gone
    swept = processes.sweep(plan.marker)
    with folder.open_journal() as journal:
        journal.append(
            p.RunEnded(at=time.time(), outcome=p.Outcome.STOPPED, reason="the kernel and the agent were killed", swept=swept)
        )
    remove_shared_dir(plan.run_id)


def _remove_abandoned_values() -> None:
    """Remove values of runs whose kernel is gone."""
    try:
        left = [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(_SHARED_PREFIX)]
    except OSError:
        return
    for path in left:
        with contextlib.suppress(FileNotFoundError):  # another launch cleans up just now, and was quicker
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(values: Path) -> bool:
    try:
        plan = RunFolder(cache_dir() / values.name.removeprefix(_SHARED_PREFIX)).read_plan()
    except (OSError, msgspec.DecodeError):
        # Without a plan: a launch of another process that is just being made, or one whose folder is gone for good.
        return time.time() - values.stat().st_mtime > UNPLANNED_S
    return not processes.is_alive(plan.kernel_pid, plan.kernel_started)
