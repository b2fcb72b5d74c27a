"""Why a launch cannot begin."""

from __future__ import annotations

import errno

from ice_notebook.errors.base import IceNotebookError
from ice_notebook.errors.words import _IN_THE_WAY, _NO_ROOM, _NOT_ALLOWED, quote, reason_of, written


class LibraryError(IceNotebookError, RuntimeError):
    """A library is not as this version of the project knows it."""

    @classmethod
    def changed(cls, library: str, version: str, what: str) -> LibraryError:
        return cls(
            f"{library} {version} is not as this version of ice_notebook knows it: {what} is new, gone, or not used any more. "
            f"Install an older {library}, or a newer ice_notebook."
        )


class LaunchError(IceNotebookError, RuntimeError):
    """A run cannot be started here."""

    @classmethod
    def port(cls, port: int, address: str, holder: str) -> LaunchError:
        return cls(
            f"The port {port} on {address} is in use{f' by {holder}' if holder else ''}: give another one, or none for a free one."
        )

    @classmethod
    def foreign_cache(cls, path: object, why: str) -> LaunchError:
        return cls(f"Runs cannot be kept in {str(path)!r}: {why}, who could change them. Set XDG_CACHE_HOME to a folder of yours.")

    @classmethod
    def folder(cls, path: object, error: OSError | ValueError, *, is_users: bool) -> LaunchError:
        advice = _way_out(error, f"give {written('log_dir')}" if is_users else "set XDG_CACHE_HOME to")
        if is_users:
            return cls(f"The folder {str(path)!r} cannot be made: {reason_of(error)}. {advice}.")
        return cls(f"The run folder {str(path)!r} cannot be made: {reason_of(error)}. {advice}.")

    @classmethod
    def no_home(cls, path: str) -> LaunchError:
        return cls(f"{written('log_dir')}={path!r} names a home folder that is not known. Write the folder without ~.")

    @classmethod
    def relative_folder(cls, path: str, error: OSError) -> LaunchError:
        return cls(
            f"{written('log_dir')}={path!r} is relative to the working directory, which is gone: {reason_of(error)}. Change to another one "
            "with os.chdir, or give a whole path."
        )

    @classmethod
    def files(cls, what: str, error: OSError) -> LaunchError:
        advice = _way_out(error, f"give {written('log_dir')}")
        return cls(f"{what} cannot be written for the ranks: {reason_of(error)}. {advice}.")

    @classmethod
    def descriptors(cls, n_ranks: int, needed: int, limit: int) -> LaunchError:
        ranks = "1 rank needs" if n_ranks == 1 else f"{n_ranks} ranks need"
        return cls(
            f"{ranks} {needed} open files in the process that watches over them, and the limit is {limit}: raise it (ulimit -Hn), or launch "
            "fewer ranks."
        )

    @classmethod
    def own_descriptors(cls, n_open: int, limit: int) -> LaunchError:
        return cls(
            f"This process has {n_open} files open, and the limit is {limit}: too few are left for a run. Close some, or raise the limit "
            "(ulimit -n)."
        )

    @classmethod
    def resources(cls, error: OSError | RuntimeError) -> LaunchError:
        advice = _way_to_processes(error)
        return cls(f"The processes of the run cannot be started: {reason_of(error)}. {advice}.")

    @classmethod
    def in_rank(cls, rank: int) -> LaunchError:
        return cls(
            f"A launch from inside rank {rank} of a run is not possible: runs are not nested, as torchruns may be. Launch it beside this one, or "
            "use multiprocessing here."
        )

    @classmethod
    def platform(cls, system: str) -> LaunchError:
        return cls(f"Runs need Linux (pidfds, pseudo-terminals, parent-death signals); this is {system}.")

    @classmethod
    def working_directory(cls, error: OSError) -> LaunchError:
        return cls(
            f"The ranks start in the kernel's working directory, which is gone: {reason_of(error)}. Change to another one with os.chdir."
        )

    @classmethod
    def interpreter(cls, path: str) -> LaunchError:
        return cls(f"sys.executable is {path!r}, which is not an interpreter that can start ranks.")


class LauncherValueError(IceNotebookError, TypeError):
    """A launcher was used as if it were a number."""

    @classmethod
    def compared(cls, other: object) -> LauncherValueError:
        return cls(
            f"A launcher was compared with {quote(other)}, and is not a number: use launcher.rank, or another of its properties."
        )


def _way_out(error: OSError | ValueError, other: str) -> str:
    """Return what can be done about a file that cannot be made; `other` begins how another folder is named."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_ROOM:
        return f"Free space there, or {other} a folder with room"
    if number in _NOT_ALLOWED:
        return f"{other[:1].upper()}{other[1:]} a folder that you may write to"
    if number in _IN_THE_WAY:
        return f"Move what is in the way, or {other} another folder"
    return f"{other[:1].upper()}{other[1:]} another folder"


def _way_to_processes(error: OSError | RuntimeError) -> str:
    """Return what can be done where no process, or no thread, can be started."""
    number = error.errno if isinstance(error, OSError) else errno.EAGAIN
    return {
        errno.EMFILE: "This process has as many files open as it may: close some, or raise the limit (ulimit -n)",
        errno.ENFILE: "The whole system has as many files open as it may",
        errno.EAGAIN: "There are as many processes or threads as this user or container may have: end some, or raise the limit (ulimit -u)",
        errno.ENOMEM: "There is no memory left: end what holds it",
        errno.E2BIG: "The environment is larger than the system passes on: unset large variables",
    }.get(number or 0, "The interpreter of this notebook must be one that can be started")


class FrozenError(IceNotebookError, RuntimeError):
    """A frozen launcher was to be changed."""

    @classmethod
    def option(cls, name: str) -> FrozenError:
        return cls(f"{name!r} cannot be set: the launcher is frozen. Set options before freeze(), or on a clone().")
