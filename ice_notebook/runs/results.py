"""The values of a run, by global rank: where they lie, and why one is not there."""

from __future__ import annotations

import contextlib
import json
import linecache
import operator
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ice_notebook.errors import ResultError, RunFailed, RunStopped
from ice_notebook.runs import report
from ice_notebook.runs.state import Phase, RankPhase, RankState, RunState
from ice_notebook.runs.store import RunFolder
from ice_notebook.values.value_files import PART_SUFFIX


class ResultsRun(Protocol):
    """A run as its results see it."""

    @property
    def state(self) -> RunState:
        """Return how the run stands."""

    @property
    def world_size(self) -> int:
        """Return the number of ranks."""

    def exception(self) -> RunFailed | None:
        """Return the error that says how the run failed."""


class Values:
    """Values on disk or shared memory, each loaded once."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._loaded: dict[tuple[int, int], Any] = {}
        self._loading = threading.Lock()
        self._is_let_go = False

    def let_go(self) -> None:
        """Take note that the values are gone; those in the run folder stay."""
        with self._loading:
            self._is_let_go = True
            self._loaded.clear()

    def has(self, attempt: int, rank: RankState) -> bool:
        """Return whether a rank has a value that is still there."""
        if rank.value is None:
            return False
        is_kept = os.path.exists(rank.value.path) or self._folder.result_file(attempt, rank.rank).exists()
        return is_kept or (attempt, rank.rank) in self._loaded

    def load(self, attempt: int, rank: RankState) -> Any:
        """Return the value of a rank that has one.

        Raises:
            ResultError: it was not kept, or cannot be loaded here.
        """
        from ice_notebook.values import pickles  # noqa: PLC0415 - a launch of a script must not wait for it

        assert rank.value is not None
        with self._loading:
            if (attempt, rank.rank) not in self._loaded:
                kept = self._folder.result_file(attempt, rank.rank)
                try:
                    path = rank.value.path if os.path.exists(rank.value.path) else kept
                    self._loaded[attempt, rank.rank] = pickles.load(path, file_names=self._file_names())
                except FileNotFoundError:
                    error = ResultError.let_go if self._is_let_go else ResultError.not_kept
                    raise error(rank.rank) from None
                except (ResultError, KeyboardInterrupt):
                    raise
                except BaseException as problem:  # what unpickling raises is up to the classes of the value
                    raise ResultError.cannot_load(rank.rank, problem) from problem
            return self._loaded[attempt, rank.rank]

    def _file_names(self) -> dict[str, str]:
        """Return the files of those cells that this notebook has, by the names that ranks know their code by."""
        try:
            sources = json.loads(self._folder.sources_file.read_bytes())
        except (OSError, ValueError):  # a folder that was cut short: code keeps the names that it has there
            return {}
        return {shown: file for shown, (_, _, *files) in sources.items() for file in files if file in linecache.cache}

    def save(self, attempt: int, rank: RankState) -> Path | None:
        """Bring a rank's value into the run folder, and return where it is; None when there is none to bring.

        Raises:
            ResultError: there is no room for it.
        """
        target = self._folder.result_file(attempt, rank.rank)
        if rank.value is None or target.exists() or not os.path.exists(rank.value.path):
            return None
        partial = target.with_name(target.name + PART_SUFFIX)
        try:
            shutil.copyfile(rank.value.path, partial)
            partial.rename(target)
        except OSError as error:
            with contextlib.suppress(OSError):  # the folder is gone as well
                partial.unlink()
            raise ResultError.unwritten(rank.rank, rank.value.size_bytes, error) from error
        return target


class Results(Mapping[int, Any]):
    """Global rank to value, of the last attempt's ranks that returned one. See `Run.results`."""

    _ice_refused = "the results of a Run, which are loaded from its files when they are asked for"

    def __init__(self, run: ResultsRun, values: Values) -> None:
        self._run = run
        self._values = values

    def __getitem__(self, key: int) -> Any:
        run, rank = self._run, _rank_from_key(key)
        if rank is None or not 0 <= rank < run.world_size:
            raise KeyError(key)
        state = run.state.ranks.get(rank)
        if state is not None and state.value is not None:
            return self._values.load(run.state.attempts[-1].number, state)
        raise self._why_not(rank, state)

    def __contains__(self, key: object) -> bool:
        run, rank = self._run, _rank_from_key(key)
        state = run.state.ranks.get(rank) if rank is not None else None
        return state is not None and self._values.has(run.state.attempts[-1].number, state)

    def get(self, key: int, default: Any = None) -> Any:
        """Return a rank's value, or the default when there is none to be had."""
        try:
            return self[key] if key in self else default  # noqa: SIM401 - this is what `get` is
        except ResultError:  # it is there, and cannot be loaded here; `[]` says why
            return default

    def __iter__(self) -> Iterator[int]:
        return iter([rank for rank in sorted(self._run.state.ranks) if rank in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        ranks = self._run.state.ranks
        return "{" + ", ".join(f"{rank}: {value.text}" for rank in self if (value := ranks[rank].value) is not None) + "}"

    def _why_not(self, rank: int, state: RankState | None) -> Exception:
        """Return the error for a rank that has no value."""
        run = self._run
        if state is not None and state.phase is RankPhase.RETURNED and state.value is None and not state.lost:
            return ResultError.no_result(rank)
        if state is not None and state.lost:
            return ResultError(state.lost)
        if state is not None and state.failure is not None:
            return run.exception() or RunFailed.of(run, report.failure_sentence(rank, state.failure), ())
        if run.state.phase is Phase.FAILED:
            return run.exception() or ResultError.not_yet(rank)
        if run.state.phase is Phase.STOPPED:
            return RunStopped.before_return(rank)
        return ResultError.not_yet(rank)


def _rank_from_key(key: object) -> int | None:
    """Return a key as a number, also one of numpy or torch; None when it is none."""
    try:
        return operator.index(key)  # type: ignore[arg-type]  # asked of everything
    except TypeError:
        return None
