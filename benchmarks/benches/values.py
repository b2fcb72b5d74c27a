"""From the last rank's `return` to the values in the cell, and what they cost the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import work
from benchmarks.bench import Bench, Facts, Row
from benchmarks.figures import Value
from benchmarks.peers import PEERS, Peer
from benchmarks.session import Session, fresh

_PAIR = (256, 256)
_SINGLE = (1024, 0)

_BEFORE = """
import time
import torch
from benchmarks import meter
meter.reset_peak()
_before = meter.resident_mib()
"""
_AFTER = """
_usable_at = time.time()
_resident, _peak = meter.resident_mib() - _before, meter.peak_mib() - _before
_reading = time.time()
_sums = {rank: value.sum().item() for rank, (_, value) in values.items() if value is not None}
_read_s = time.time() - _reading
_read_resident = meter.resident_mib() - _before
_returned_at = max(at for at, _ in values.values())
"""
_FACTS = "[_usable_at - _returned_at, opening_s, _read_s, _resident, _peak, _read_resident, sorted(_sums.values())]"


def _measure(peer: Peer, scratch: Path) -> Facts:
    facts: dict[str, Sequence[Value]] = {}
    with fresh(scratch, peer.setup) as session:
        for name, sizes in (("pair", _PAIR), ("single", _SINGLE)):
            facts |= {f"{name}_{key}": values for key, values in _launch(session, peer, sizes).items()}
    return facts


def _launch(session: Session, peer: Peer, sizes: tuple[int, int]) -> Facts:
    code = peer.launch_for_values(work.return_tensor, (sizes,))
    session.check(f"{_BEFORE}\n{code}\n{_AFTER}")
    usable, opening, read, resident, peak, read_resident, sums = session.value(_FACTS)
    if sums != [float(size << 18) for size in sizes if size]:
        raise RuntimeError(f"{peer.title}: the values are not what the ranks returned: {sums}")
    session.check("del values")
    return {
        "usable": [usable],
        "opening": [1000 * opening],
        "read": [read],
        "resident": [resident],
        "peak": [peak],
        "after": [read_resident],
    }


def _rows(key: str, text: str) -> tuple[Row, ...]:
    return (
        Row(f"{key}_usable", f"{text}: last return → values in the cell"),
        Row(f"{key}_opening", f"{text}: of that, `run.results`", "ms"),
        Row(f"{key}_read", f"{text}: first full read"),
        Row(f"{key}_peak", f"{text}: kernel's peak before the read, more than at the start", "MiB"),
        Row(f"{key}_after", f"{text}: kernel's memory after the read, more than at the start", "MiB"),
    )


BENCH = Bench(
    name="values",
    title="Large values",
    about=(
        "Each rank returns a float32 tensor of 256 MiB; then rank 0 alone returns one of 1 GiB. The time runs from the last rank's `return` "
        "until the tensors are bound to a name in the same cell: with ice_notebook after `%%elastic_launch` has ended and `run.results` "
        "has given them. Resident memory is the kernel's, shared pages included. The kernel has imported "
        "torch before, which ice_notebook does not need until a tensor is opened. accelerate cannot return values."
    ),
    rows=(*_rows("pair", "2 x 256 MiB"), *_rows("single", "1 GiB")),
    measure=_measure,
    peers=tuple(peer for peer in PEERS if peer.returns_values),
)
