"""Children of a rank that multiprocessing starts by spawn or forkserver: they can be given what a cell defined.

multiprocessing pickles by reference, and the `__main__` of a spawned child is empty; DataLoader workers with these start methods (forkserver
is Python's default from 3.14) would fail on every dataset or function of a cell. Pickled as a payload is, they travel by value. The child
pickles in the same way: what it sends back may be of a cell's class.
"""

from __future__ import annotations

import io
import multiprocessing.connection
import multiprocessing.process
import multiprocessing.queues
import multiprocessing.reduction
import sys
from typing import Any

from ice_notebook.rank import shell
from ice_notebook.values import local_modules
from ice_notebook.values.known_sources import know_sources, known_sources
from ice_notebook.values.reducers import ValuePickler, Way

_Forking = multiprocessing.reduction.ForkingPickler


class CloudForkingPickler(ValuePickler):
    """multiprocessing's pickler, with ours for what has no name to be found by."""

    loads = _Forking.loads

    def __init__(self, file: Any, protocol: int | None = None) -> None:
        super().__init__(file, protocol=protocol)

    def way_of(self, kind: type) -> Way | None:
        # Descriptors, sockets, tensors: what multiprocessing and torch have registered. Not through `dispatch_table`, which the C
        # pickler reads only once.
        registered: Way | None = _Forking._extra_reducers.get(kind)  # type: ignore[attr-defined]
        return registered if registered is not None else super().way_of(kind)

    def dump(self, value: Any) -> None:
        """Pickle a value; a process, which is the first thing that a child loads, brings along what a rank has around it."""
        super().dump(_Arriving(value) if isinstance(value, multiprocessing.process.BaseProcess) else value)

    @classmethod
    def register(cls, kind: type, reducer: Any) -> None:
        """Register how a type travels, as `ForkingPickler.register`."""
        _Forking.register(kind, reducer)

    @classmethod
    def dumps(cls, value: Any, protocol: int | None = None) -> memoryview:
        """Return the pickled value."""
        buffer = io.BytesIO()
        cls(buffer, protocol).dump(value)
        return buffer.getbuffer()


class _Arriving:
    """A process on its way to the child that is to run it."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (_Luggage(), self._process)


class _Luggage:
    """What a child finds around it before anything else of it is loaded: the cells' texts and the modules that have only a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (known_sources(), local_modules.brought())


def _unpack(sources: dict[str, str], places: local_modules.Places) -> None:
    local_modules.bring(places)
    know_sources(sources)
    shell.install(vars(sys.modules["__main__"]))
    # Without it a queue's feeder thread in the child would drop an object of a cell's class, and whoever waits for it would wait for ever.
    pickle_by_value()


def _arrive(_: None, process: multiprocessing.process.BaseProcess) -> multiprocessing.process.BaseProcess:
    return process


def pickle_by_value() -> None:
    """Use `CloudForkingPickler` wherever multiprocessing pickles. Its modules took the class over by name, hence the three places."""
    multiprocessing.reduction.ForkingPickler = CloudForkingPickler  # type: ignore[misc, assignment]
    multiprocessing.connection._ForkingPickler = CloudForkingPickler  # type: ignore[attr-defined]
    multiprocessing.queues._ForkingPickler = CloudForkingPickler  # type: ignore[attr-defined]
