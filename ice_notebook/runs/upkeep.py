"""The user's runs in the cache, seen together: which go on, which somebody left behind, and which are old enough to go.

A home may be shared by several machines and containers. Only what certainly was this machine's, and certainly is nobody's any more, is
ended, closed or removed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator

import msgspec

from ice_notebook.host import ownership, processes
from ice_notebook.host.identities import is_alive, is_of_this_machine
from ice_notebook.runs.store import RunFolder, cache_dir
from ice_notebook.values import shared_values
from ice_notebook.wire import protocol as p

KEPT_RUNS = 20  # of the cache; folders that the user named with log_dir are never pruned
_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")  # `store.new_run_id`


def live_plans() -> list[p.Plan]:
    """Return the plans of this user's runs on this machine that have not ended, also those of other notebooks, oldest first."""
    found = []
    for folder in _folders():
        with contextlib.suppress(OSError, msgspec.DecodeError):  # a folder without a plan yet, or of another version
            owner = folder.read_owner()
            if owner is not None and is_of_this_machine(owner.process) and folder.is_owned() and not folder.has_ended():
                found.append(folder.read_plan())
    return found


def clean_up(keep: int = KEPT_RUNS) -> None:
    """End and close what a kernel and its agent left when both were killed at once, then prune old folders of the cache."""
    for folder in _folders():
        with contextlib.suppress(OSError, msgspec.DecodeError):  # a folder without a plan yet, or of another version
            _close_abandoned(folder)
    prune(keep)
    shared_values.remove_abandoned()


def prune(keep: int = KEPT_RUNS) -> None:
    """Remove all but the newest runs from the cache, except those that go on, or that somebody looks at."""
    for name in _names():
        if not (link := cache_dir() / name).exists():  # the folder that the link was for is gone
            link.unlink(missing_ok=True)
    folders = list(_folders())
    for folder in folders[:-keep] if keep else folders:
        with contextlib.suppress(OSError, msgspec.DecodeError):  # another launch prunes just now, or it is of another version
            _prune(folder)


def _prune(folder: RunFolder) -> None:
    if folder.is_locked() or not folder.has_ended():
        return
    link = cache_dir() / folder.path.name
    if link.is_symlink():
        link.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder.path, ignore_errors=True)


def _folders() -> Iterator[RunFolder]:
    """Give the runs of the cache, and of the links in it, oldest first."""
    # Whoever may write to the folder that a link leads to can have put one of his own there.
    return (RunFolder(cache_dir() / name) for name in _names() if ownership.is_own_folder(cache_dir() / name))


def _names() -> list[str]:
    """Return the names of the cache's runs, oldest first. What has not the name of a run is somebody else's."""
    if not ownership.is_own_folder(cache_dir()):
        return []
    try:
        return sorted(path.name for path in cache_dir().iterdir() if _RUN_ID.fullmatch(path.name))
    except OSError:  # it has just been removed
        return []


def _close_abandoned(folder: RunFolder) -> None:
    """End and close a run whose kernel and agent are gone. It is left alone wherever that is not certain."""
    events = folder.read_events()
    if any(isinstance(event, p.RunEnded) for event in events) or folder.is_owned() is not False:
        return
    begun = next((event for event in events if isinstance(event, p.RunBegun)), None)
    if begun is not None and is_alive(begun.agent):
        return  # it is on its way out by itself: its kernel is gone
    plan = folder.read_plan()
    swept = processes.sweep(plan.marker)
    with folder.open_journal() as journal:
        journal.append(
            p.RunEnded(at=time.time(), outcome=p.Outcome.STOPPED, reason="the kernel and the agent were killed", swept=swept)
        )
