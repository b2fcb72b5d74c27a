"""numpy's arrays on a file: they travel as the name of the file and the place in it, and the reader maps it as well."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from ice_notebook.values.objects import Reduced

_MODES = {"r": "r", "r+": "r+", "w+": "r+"}  # of a copy-on-write map only the process that has it knows what was written


def reduce_array(value: Any) -> Reduced | None:
    """Return what an array that lies in a mapped file is pickled as; None for any other, whose items are to be pickled.

    The file must still be there, under its name, and be the one that is mapped.
    """
    mapped = _map_below(value)
    if mapped is None or value.dtype.hasobject or value.size == 0:
        return None
    mode = _MODES.get(mapped.mode)
    address = value.__array_interface__["data"][0]
    spans = [(length - 1) * stride for length, stride in zip(value.shape, value.strides, strict=True)]
    low, high = (
        address + sum(span for span in spans if span < 0),
        address + sum(span for span in spans if span > 0) + value.itemsize,
    )
    start = _offset_in_file(low, os.fspath(mapped.filename))
    if mode is None or start is None:
        return None
    place = (start, high - low, address - low)
    return open_array, (type(value), os.fspath(mapped.filename), mode, place, value.dtype, value.shape, value.strides)


def open_array(
    kind: type, file: str, mode: str, place: tuple[int, int, int], dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Any:
    """Return an array on a part of a file: where that begins, how long it is, and where in it the first item lies."""
    numpy = importlib.import_module("numpy")
    start, size_bytes, first = place
    whole = numpy.memmap(file, dtype=numpy.uint8, mode=mode, offset=start, shape=(size_bytes,))
    made = numpy.ndarray(shape, dtype, buffer=whole, offset=first, strides=strides)
    if not issubclass(kind, numpy.memmap):
        return made
    made = made.view(kind)
    made._mmap, made.filename, made.offset, made.mode = whole._mmap, whole.filename, whole.offset, whole.mode
    return made


def reduce_copied(value: Any) -> Reduced:
    """Return what a memmap is pickled as that has no file of its own: as its items, which numpy itself would copy twice."""
    return make_view, (importlib.import_module("numpy").asarray(value), type(value))


def make_view(array: Any, kind: type) -> Any:
    """Return an array as one of another class."""
    return array.view(kind)


def _map_below(value: Any) -> Any:
    """Return the memmap in whose memory an array lies, None where there is none."""
    memmap = getattr(sys.modules.get("numpy"), "memmap", None)
    while memmap is not None and value is not None:
        if isinstance(value, memmap):
            return value if value.filename is not None else None
        value = getattr(value, "base", None)
    return None


def _offset_in_file(address: int, file: str) -> int | None:
    """Return which byte of a file lies at an address, None when it is not this file that lies there."""
    name = os.path.realpath(file)
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                span, _, offset, _, _, *path = line.split(maxsplit=5)
                start, end = (int(part, 16) for part in span.split("-"))
                if start <= address < end:
                    # Of a file that was removed or replaced, the system adds a word to the name.
                    return int(offset, 16) + address - start if path and path[0].rstrip("\n") == name else None
    except OSError:  # not Linux: the items are pickled
        pass
    return None
