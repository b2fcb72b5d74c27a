"""The storages of the tensors in a pickled value: what of them is written, and how tensors find it again; used wherever values travel.

A tensor is pickled as its place in a storage, and the storage beside the stream. So views, strides and aliasing stay what they were, and
of a storage only the parts that tensors cover are written when these are less than half of it. torch is never imported to pickle: a
process without it has no tensors.
"""

from __future__ import annotations

import contextlib
import copyreg
import ctypes
import enum
import importlib
import sys
import warnings
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from ice_notebook.values.refusals import CannotTravel, device_kind
from ice_notebook.values.value_files import ALIGNMENT, SegmentRow

_NOT_FOR_PICKLES = "__torch_unserializable__"  # put on a hook by torch.utils.hooks.unserializable_hook


class DeviceTensors(enum.Enum):
    """What becomes of tensors that are on a device."""

    TO_HOST = "to host"  # they arrive on the CPU
    TO_ASSIGNED = "to assigned"  # they travel through host memory and arrive on the loader's device
    REFUSE = "refuse"


# ---- pickling ----------------------------------------------------------------------------------------------------------------------


class Dumper:
    """Reduces tensors and storages, and knows afterwards what of the storages is to be written."""

    def __init__(self, devices: DeviceTensors, *, carries_hooks: bool = False) -> None:
        self.devices = devices
        self._carries_hooks = carries_hooks  # those of tensors: torch itself never pickles them
        self._storages: dict[int, _Storage] = {}

    def handles(self, kind: type) -> bool:
        """Return whether it is a class of tensors or storages."""
        return _is_torchs(kind) and kind not in copyreg.dispatch_table

    def reduce(self, value: Any) -> Any:
        """Return what a tensor or a storage is pickled as.

        Raises:
            CannotTravel: it is on a device, and those are refused.
        """
        torch = sys.modules["torch"]
        # A typed storage warns that it is deprecated whenever it is asked anything itself.
        is_typed = isinstance(value, torch.storage.TypedStorage)
        stored = value._untyped_storage if is_typed else value
        if self.devices is DeviceTensors.REFUSE and stored.device.type not in {"cpu", "meta"}:
            raise CannotTravel(value, device_kind(stored.device))
        if isinstance(value, torch.Tensor):
            hooks = _hooks_of(value) if self._carries_hooks else {}
            with _without_warning_of_hooks() if hooks else contextlib.nullcontext():
                reduced = value.__reduce_ex__(5)
            if not isinstance(reduced, tuple):
                return reduced
            referred = (*self._refer(*reduced[:2]), *reduced[2:])
            return (*referred, hooks, None, None, fill_hooks) if hooks and len(referred) == 2 else referred
        if stored.device.type == "meta":  # it has no bytes
            return NotImplemented
        return (_load_typed, (self._whole(stored), value.dtype)) if is_typed else (_load_untyped, (self._whole(stored),))

    def segments(self) -> list[Segment]:
        """Return what is to be written of all storages met, in order."""
        return [segment for storage in self._storages.values() for segment in storage.segments()]

    def _refer(self, function: Any, arguments: Any) -> tuple[Any, Any]:
        """Return how a tensor is rebuilt, with our reference in place of its storage.

        What torch reduces a strided tensor to is its file format for checkpoints: `_rebuild_tensor_v2(storage, offset, size, stride, …)`,
        for some dtypes `_rebuild_tensor_v3`, and around them `_rebuild_from_type_v2` for a subclass or a tensor with attributes (2.6 to
        2.13). Anything else is left as it is: its storages then travel whole, by their own reduction.
        """
        torch = sys.modules["torch"]
        if function is getattr(torch._tensor, "_rebuild_from_type_v2", None):
            inner, kind, inner_arguments, state = arguments
            inner, inner_arguments = self._refer(inner, inner_arguments)
            return function, (inner, kind, inner_arguments, state)
        if function is getattr(torch._utils, "_rebuild_tensor_v2", None):
            storage, dtype = arguments[0]._untyped_storage, arguments[0].dtype
        elif function is getattr(torch._utils, "_rebuild_tensor_v3", None):
            storage, dtype = arguments[0], arguments[6]
        else:
            return function, arguments
        _, offset, size, stride, *rest = arguments
        start = offset * dtype.itemsize
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        end = start if 0 in size else start + (last + 1) * dtype.itemsize
        reference = self._part(storage, start, end)
        return _rebuild, (function, (reference, start, dtype), size, stride, *rest)

    def _part(self, storage: Any, start: int, end: int) -> _Reference:
        if storage._cdata not in self._storages:
            is_device = self.devices is DeviceTensors.TO_ASSIGNED and storage.device.type != "cpu"
            self._storages[storage._cdata] = _Storage(storage, len(self._storages), is_device=is_device)
        found = self._storages[storage._cdata]
        found.ranges.append((start, end))
        return found.reference

    def _whole(self, storage: Any) -> _Reference:
        return self._part(storage, 0, storage.nbytes())


def _is_torchs(kind: type) -> bool:
    torch = sys.modules.get("torch")
    try:
        return torch is not None and issubclass(kind, (torch.Tensor, torch.UntypedStorage, torch.storage.TypedStorage))
    except AttributeError:  # torch is only half imported, in another thread: no tensor exists yet
        return False


def _hooks_of(tensor: Any) -> dict[str, Any]:
    """Return the hooks of a tensor, by the attribute that holds them, without those that say that they do not travel."""
    held = {name: getattr(tensor, name, None) or {} for name in ("_backward_hooks", "_post_accumulate_grad_hooks")}
    told = {name: {key: hook for key, hook in hooks.items() if not hasattr(hook, _NOT_FOR_PICKLES)} for name, hooks in held.items()}
    return {name: OrderedDict(hooks) for name, hooks in told.items() if hooks}


def fill_hooks(tensor: Any, hooks: dict[str, Any]) -> None:
    """Give a tensor its hooks."""
    for name, held in hooks.items():
        setattr(tensor, name, held)


@contextlib.contextmanager
def _without_warning_of_hooks() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "backward hook", UserWarning)  # that they are not pickled: here they are
        yield


class _Reference:
    """Stands for a storage in the stream: one object for each, so that the pickler's memo keeps what is shared."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return load_storage, (self.index,)


class _Storage:
    """A storage met by the pickler, with the ranges of bytes that tensors cover; referenced, so that its address stays its own."""

    def __init__(self, storage: Any, index: int, *, is_device: bool) -> None:
        self.storage = storage
        self.reference = _Reference(index)
        self.is_device = is_device
        self.ranges: list[tuple[int, int]] = []

    def segments(self) -> list[Segment]:
        size_bytes = self.storage.nbytes()
        parts = _merged(self.ranges)
        if 2 * sum(end - start for start, end in parts) >= size_bytes:
            parts = [(0, size_bytes)]
        return [Segment(self.storage, SegmentRow(self.reference.index, start, end - start, self.is_device)) for start, end in parts]


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the union of ranges, each beginning on a boundary that every dtype's items share."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted((start // ALIGNMENT * ALIGNMENT, end) for start, end in set(ranges) if start < end):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


class Segment:
    """A part of a storage that is to be written."""

    def __init__(self, storage: Any, row: SegmentRow) -> None:
        self.storage = storage
        self.row = row

    def pieces(self, piece_bytes: int) -> Iterator[memoryview]:
        """Yield its bytes: as they lie in memory, or copied from their device piece by piece."""
        if self.storage.device.type == "cpu":
            if self.row.size:
                # numpy would give the same view, but need not be there. `Segment.storage` keeps the memory.
                memory = (ctypes.c_ubyte * self.row.size).from_address(self.storage.data_ptr() + self.row.base)
                yield memoryview(memory).cast("B")
            return
        torch = sys.modules["torch"]
        stored = torch.empty(0, dtype=torch.uint8, device=self.storage.device).set_(self.storage)
        for start in range(self.row.base, self.row.base + self.row.size, piece_bytes):
            part = stored[start : min(start + piece_bytes, self.row.base + self.row.size)]
            host = bytearray(part.numel())
            torch.frombuffer(host, dtype=torch.uint8).copy_(part)
            yield memoryview(host)


# ---- loading -----------------------------------------------------------------------------------------------------------------------


class Loader:
    """Makes storages of the segments of a mapped file, when they are asked for."""

    def __init__(self, memory: memoryview, rows: Sequence[SegmentRow], starts: Sequence[int], device: str | None) -> None:
        self._memory = memory
        self._device = device
        self._segments: dict[int, list[tuple[SegmentRow, int]]] = {}
        for row, start in zip(rows, starts, strict=True):
            self._segments.setdefault(row.storage, []).append((row, start))

    def storage(self, index: int) -> LoadedStorage:
        """Return the storage of a number, to be called once for each."""
        segments = self._segments.get(index, [])
        return LoadedStorage([row.base for row, _ in segments], [self._untyped(row, start) for row, start in segments])

    def _untyped(self, row: SegmentRow, start: int) -> Any:
        torch = importlib.import_module("torch")
        if row.size == 0:
            return torch.UntypedStorage(0)
        loaded = torch.frombuffer(self._memory[start : start + row.size], dtype=torch.uint8)
        if row.is_device and self._device is not None:
            loaded = loaded.to(self._device)
        return loaded.untyped_storage()


class LoadedStorage:
    """The parts of a storage that were written, each a storage of its own now."""

    def __init__(self, bases: Sequence[int], storages: Sequence[Any]) -> None:
        self.bases = bases
        self.storages = storages

    def at(self, start: int) -> tuple[Any, int]:
        """Return the part that holds a byte, and where in it; a tensor without items may lie in none."""
        index = bisect_right(self.bases, start) - 1
        if index < 0:
            return importlib.import_module("torch").UntypedStorage(0), 0
        return self.storages[index], start - self.bases[index]


def load_storage(index: int) -> LoadedStorage:
    """Name, in a stream, the `Loader.storage` of the one who loads it, who puts that in its place."""
    raise RuntimeError(f"storage {index} is loaded outside of `load`")


def _rebuild(function: Any, place: tuple[LoadedStorage, int, Any], *arguments: Any) -> Any:
    loaded, start, dtype = place
    storage, offset = loaded.at(start)
    # Also what was reduced with an untyped storage is rebuilt from a typed one: that is what `torch.load` gives it.
    return function(_typed(storage, dtype), offset // dtype.itemsize, *arguments)


def _load_untyped(loaded: LoadedStorage) -> Any:
    return loaded.at(0)[0]


def _load_typed(loaded: LoadedStorage, dtype: Any) -> Any:
    return _typed(loaded.at(0)[0], dtype)


def _typed(storage: Any, dtype: Any) -> Any:
    # `_internal` is what torch itself says to make one without its warning that they are deprecated; checkpoints need them still.
    return importlib.import_module("torch").storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
