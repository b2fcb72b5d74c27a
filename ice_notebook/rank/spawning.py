"""Children of a rank that multiprocessing starts by spawn or forkserver: they can be given what a cell defined.

multiprocessing pickles by reference, and the `__main__` of a spawned child is empty; DataLoader workers with these start methods (forkserver
is Python's default from 3.14) would fail on every dataset or function of a cell. Pickled by cloudpickle, they travel by value. The child
pickles in the same way: what it sends back may be of a cell's class.
"""

from __future__ import annotations

import io
import multiprocessing.connection
import multiprocessing.process
import multiprocessing.queues
import multiprocessing.reduction
from typing import Any

import cloudpickle

_Forking = multiprocessing.reduction.ForkingPickler


class CloudForkingPickler(cloudpickle.Pickler):
    """multiprocessing's pickler, with cloudpickle for what has no name to be found by."""

    loads = _Forking.loads

    def reducer_override(self, value: Any) -> Any:
        # Descriptors, sockets, tensors: what multiprocessing and torch have registered. Not through `dispatch_table`, which the C
        # pickler reads only once.
        reducer = _Forking._extra_reducers.get(type(value))  # type: ignore[attr-defined]
        return reducer(value) if reducer is not None else super().reducer_override(value)

    def dump(self, value: Any) -> None:
        """Pickle a value; a process, which is the first thing that a child loads, brings this pickler along."""
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
        return _arrive, (self._process,)


def _arrive(process: multiprocessing.process.BaseProcess) -> multiprocessing.process.BaseProcess:
    # Without it a queue's feeder thread in the child would drop an object of a cell's class, and whoever waits for it would wait for ever.
    pickle_by_value()
    return process


def pickle_by_value() -> None:
    """Use `CloudForkingPickler` wherever multiprocessing pickles. Its modules took the class over by name, hence the three places."""
    multiprocessing.reduction.ForkingPickler = CloudForkingPickler  # type: ignore[misc]
    multiprocessing.connection._ForkingPickler = CloudForkingPickler  # type: ignore[attr-defined]
    multiprocessing.queues._ForkingPickler = CloudForkingPickler  # type: ignore[attr-defined]
