"""The device grammar, text ↔ `Devices`, and what a text means on a machine: one device for each rank.

Parsing never looks at the machine; `resolve` is a pure function of what was asked and of an `Inventory`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ice_notebook.devices.machine import Gpu, Inventory, inventory
from ice_notebook.errors import DeviceError

__all__ = [
    "FORMS",
    "Devices",
    "Free",
    "Gpu",
    "Inventory",
    "RankDevice",
    "ResolvedDevices",
    "complete",
    "convert_devices",
    "inventory",
    "parse_devices",
    "resolve",
]

KINDS = ("auto", "cpu", "cuda")
EVERY = "*"
FREE = "free"
MOST_RANKS = 1024  # on one machine; a range such as 0-99999999 must not fill the memory before anybody can refuse it

FORMS = (
    ("auto", "the first GPU when there is one, else one rank on the CPU"),
    ("cuda", "the first GPU; with `nproc_per_node=N` the first N"),
    ("cpu", "one rank on the CPU; with `nproc_per_node=N` there are N"),
    ("cuda:0", "that GPU"),
    ("cuda:1,3", "these GPUs, one rank each, in this order"),
    ("cuda:0-2,7", "a range includes both ends"),
    ("cuda:*", "every GPU that the notebook sees"),
    ("cuda:free", "every GPU that nobody uses: no process on it but the notebook's own, and under 5 % of its memory used"),
    ("cuda:free:2", "two of these; which ones is found when the launch begins"),
    ("auto:*", "every GPU, or every usable core when there is none"),
    ("cpu:0-3", "four ranks on the CPU, whatever the number of its cores"),
    ("cpu:*", "one rank for each core that the notebook may use"),
    ("cuda:0,0", "two ranks that share a GPU, joined by gloo"),
    ("cuda:GPU-8f3a", "a GPU by its UUID, or by as much of it as is unique; `cuda:MIG-…` for a MIG instance"),
)


@dataclass(frozen=True)
class Free:
    """So many GPUs that nobody uses, or all of them. Which ones is found when the launch begins."""

    count: int | None = None

    def __str__(self) -> str:
        return FREE if self.count is None else f"{FREE}:{self.count}"


Entry = int | str | Free


@dataclass(frozen=True)
class Devices:
    """What was asked for: a kind alone (`entries` is None), or a list with one entry a rank."""

    kind: str  # auto | cpu | cuda
    entries: tuple[Entry, ...] | None = None  # numbers, UUIDs, or EVERY or a Free alone

    @property
    def is_list(self) -> bool:
        """Return whether this says how many ranks there are."""
        return self.entries is not None

    @property
    def free(self) -> Free | None:
        """Return what is asked of the GPUs that nobody uses; None when these devices are named."""
        first = self.entries[0] if self.entries else None
        return first if isinstance(first, Free) else None

    def __str__(self) -> str:
        """Return the text that `parse_devices` reads as these devices."""
        return self.kind if self.entries is None else f"{self.kind}:{format_entries(self.entries)}"


def format_entries(entries: Sequence[Entry]) -> str:
    """Return entries as text, with three or more numbers in a row as a range: `0-2,7`."""
    runs: list[list[Entry]] = []
    for entry in entries:
        last = runs[-1][-1] if runs else None
        if isinstance(entry, int) and isinstance(last, int) and entry == last + 1:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


# ---- text and values to Devices ----------------------------------------------------------------------------------------------------


def parse_devices(text: str) -> Devices:
    """Return the devices that a text asks for.

    Raises:
        DeviceError: the text is not in the grammar.
    """
    parts = [part.strip() for part in text.split(",")]
    kind = parts[0].partition(":")[0].strip()
    if text.strip() in KINDS:
        return Devices(kind)
    if not text.strip():
        raise DeviceError.empty(text)
    if not kind:
        raise DeviceError.unreadable_entry(text, "")
    if re.fullmatch(r"[0-9]+", kind):
        raise DeviceError.number_alone(kind)
    if kind not in KINDS:
        raise DeviceError.unknown_kind(text, kind, KINDS)
    entries = [entry for part in parts for entry in _parse_part(text, kind, part)]
    if EVERY in entries and len(entries) > 1:
        raise DeviceError.star_with_others(text)
    if len(entries) > 1 and any(isinstance(entry, Free) for entry in entries):
        raise DeviceError.free_with_others(text)
    if len(entries) > MOST_RANKS:
        raise DeviceError.too_many(f"devices={text!r}", MOST_RANKS)
    return Devices(kind, tuple(entries))


def _parse_part(text: str, kind: str, part: str) -> Iterable[Entry]:
    prefix, colon, entry = part.partition(":")
    if part in KINDS or colon:  # a part may say the kind again, as the texts of torch devices do
        if prefix.strip() != kind:
            _refuse_prefix(text, kind, prefix.strip())
        part = entry.strip() if colon else "0"
    if part == EVERY:
        return [EVERY]
    if free := re.fullmatch(rf"{FREE}(?::([1-9][0-9]{{0,8}}))?", part):
        return [_parse_free(text, kind, free[1])]
    if re.fullmatch(r"(GPU|MIG)-[0-9A-Za-z/-]+", part):
        if kind != "cuda":
            raise DeviceError.uuid_of_kind(text, part)
        return [part]
    numbers = re.fullmatch(r"([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?", part)
    if numbers is None:
        raise DeviceError.unreadable_entry(text, part)
    first, last = int(numbers[1]), int(numbers[2] or numbers[1])
    if last < first:
        raise DeviceError.backward_range(text, first, last)
    if last - first >= MOST_RANKS:
        raise DeviceError.too_many(f"devices={text!r}", MOST_RANKS)
    return range(first, last + 1)


def _parse_free(text: str, kind: str, count: str | None) -> Free:
    if kind != "cuda":
        raise DeviceError.free_of_kind(text)
    if count and int(count) > MOST_RANKS:
        raise DeviceError.too_many(f"devices={text!r}", MOST_RANKS)
    return Free(int(count) if count else None)


def _refuse_prefix(text: str, kind: str, prefix: str) -> None:
    if prefix in KINDS:
        raise DeviceError.mixed(text, (kind, prefix))
    if prefix:
        raise DeviceError.unknown_kind(text, prefix, KINDS)
    raise DeviceError.unreadable_entry(text, "")


def convert_devices(value: Any) -> Devices:
    """Return the devices that a Python value asks for.

    A text in the grammar, a list of GPU numbers or of texts, a `torch.device`, or an object with `devices`: a picker, a launcher.

    Raises:
        DeviceError: the value is none of these, or a picker in which nothing is picked.
    """
    if isinstance(value, Devices):
        return value
    if isinstance(value, str):
        return parse_devices(value)
    if isinstance(value, (list, tuple, range)):
        return parse_devices(_join(value))
    if _is_torch_device(value):
        return parse_devices(str(value))
    if isinstance(value, int) and not isinstance(value, bool):
        raise DeviceError.number_alone(value)
    inner = getattr(value, "devices", None)
    if inner == "":
        raise DeviceError.nothing_picked(value)
    if (
        inner is None or inner is value or hasattr(inner, "devices")
    ):  # one level: a thing whose devices have devices is none of ours
        raise DeviceError.not_devices(value)
    return convert_devices(inner)


def _is_torch_device(value: Any) -> bool:
    # torch is not imported here: a device is known by what it is made of.
    return isinstance(getattr(value, "type", None), str) and hasattr(value, "index")


def _join(values: Sequence[Any]) -> str:
    if not values:
        raise DeviceError.empty(values)
    return ",".join(_text_of_item(value, values) for value in values)


def _text_of_item(value: Any, values: Sequence[Any]) -> str:
    if isinstance(value, str) or _is_torch_device(value):
        return str(value)
    try:
        if isinstance(value, bool) or (number := operator.index(value)) < 0:
            raise DeviceError.not_devices(values)
    except TypeError:
        raise DeviceError.not_devices(values) from None
    return f"cuda:{number}"


# ---- Devices to what each rank gets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankDevice:
    """The device of one local rank."""

    name: str  # for people, the same in every process: cuda:2, cpu:0
    assigned_device: str  # torch's name for it inside the rank: cuda:0, cpu
    visible_devices: str | None = None  # CUDA_VISIBLE_DEVICES of the rank; None leaves it as it is


@dataclass(frozen=True)
class ResolvedDevices:
    """The device of each local rank, in order, and what follows from them."""

    ranks: tuple[RankDevice, ...]
    device_type: str  # cpu | cuda
    dist_backend: str
    text: str  # in the notebook's own numbers, as `parse_devices` reads it: cuda:0,2


def resolve(
    devices: Devices | None, inventory: Inventory, *, nproc_per_node: int | str | None = None, dist_backend: str = "auto"
) -> ResolvedDevices:
    """Return the device of each rank on this machine.

    Args:
        devices: what was asked for; None is `auto`.
        inventory: the machine.
        nproc_per_node: None, a number, or `auto`, `cpu`, `gpu` with torchrun's meanings. With a kind it takes so many of it; with a
            list, more ranks than devices share them in turn.
        dist_backend: `auto` is nccl for GPUs of their own, and gloo for the CPU, shared GPUs and MIG instances.

    Raises:
        DeviceError: the machine does not have them, or the arguments contradict each other.
    """
    devices = devices or Devices("auto")
    kind = _settle_kind(devices, inventory, nproc_per_node)
    numbers = _settle_count(devices, _numbers(devices, kind, inventory, nproc_per_node), nproc_per_node)
    if len(numbers) > MOST_RANKS:
        raise DeviceError.too_many(f"nproc_per_node={nproc_per_node}", MOST_RANKS)
    text = f"{kind}:{format_entries(numbers)}"
    if kind == "cpu":
        if "nccl" in dist_backend.split(","):
            raise DeviceError.nccl(text, "it works on GPUs only")
        ranks = tuple(RankDevice(name=f"cpu:{number}", assigned_device="cpu") for number in numbers)
        return ResolvedDevices(ranks, "cpu", "gloo" if dist_backend == "auto" else dist_backend, text)
    gpus = [inventory.visible[number] for number in numbers]
    return ResolvedDevices(_rank_devices(gpus), "cuda", _settle_backend(gpus, dist_backend, text), text)


def _settle_kind(devices: Devices, inventory: Inventory, nproc_per_node: int | str | None) -> str:
    counted = {"cpu": "cpu", "gpu": "cuda"}.get(str(nproc_per_node))
    if counted and devices.kind not in {"auto", counted}:
        raise DeviceError.other_kind(str(nproc_per_node), str(devices))
    kind = counted or devices.kind
    if kind == "auto":
        kind = "cuda" if inventory.visible else "cpu"
    if kind == "cuda" and not inventory.visible:
        asked = f"nproc_per_node={nproc_per_node}" if counted and devices.kind == "auto" else f"devices={str(devices)!r}"
        raise DeviceError.no_cuda(asked, inventory.why_no_cuda)
    return kind


def _numbers(devices: Devices, kind: str, inventory: Inventory, nproc_per_node: int | str | None) -> tuple[int, ...]:
    """Return the devices named, before `nproc_per_node=N` is applied to a list."""
    n_here = len(inventory.visible) if kind == "cuda" else inventory.n_cores
    if devices.entries == (EVERY,):
        return tuple(range(n_here))
    if devices.free is not None:
        return _free_numbers(devices.free, devices, inventory)
    if devices.entries is not None:
        if kind == "cpu":
            return tuple(int(str(entry)) for entry in devices.entries)
        return tuple(_visible_number(entry, devices, inventory) for entry in devices.entries)
    count = nproc_per_node if isinstance(nproc_per_node, int) else n_here if nproc_per_node else 1
    if kind == "cuda" and count > n_here:
        raise DeviceError.too_few(count, _visible_text(inventory), n_here)
    return tuple(range(count))


def _settle_count(devices: Devices, numbers: tuple[int, ...], nproc_per_node: int | str | None) -> tuple[int, ...]:
    if devices.entries is None or nproc_per_node in {None, "auto"}:
        return numbers
    if not isinstance(nproc_per_node, int):
        if devices.entries == (EVERY,):
            return numbers
        raise DeviceError.count_of_list(str(nproc_per_node), str(devices))
    if nproc_per_node < len(numbers):
        raise DeviceError.below_list(nproc_per_node, str(devices), len(numbers))
    return tuple(numbers[rank % len(numbers)] for rank in range(nproc_per_node))


def _free_numbers(asked: Free, devices: Devices, inventory: Inventory) -> tuple[int, ...]:
    held = inventory.held or {}
    free = tuple(number for number, gpu in enumerate(inventory.visible) if gpu.uuid not in held)
    if len(free) < (asked.count or 1):
        holders = [f"cuda:{n}: {held[gpu.uuid]}" for n, gpu in enumerate(inventory.visible) if gpu.uuid in held]
        raise DeviceError.not_free(str(devices), len(free), len(inventory.visible), holders)
    return free[: asked.count]


def _visible_number(entry: Entry, devices: Devices, inventory: Inventory) -> int:
    if isinstance(entry, int):
        if entry >= len(inventory.visible):
            raise DeviceError.absent(str(devices), f"cuda:{entry}", _visible_text(inventory))
        return entry
    uuid = str(entry)
    found = [number for number, gpu in enumerate(inventory.visible) if gpu.uuid.startswith(uuid)]
    if not found:
        raise DeviceError.absent(str(devices), uuid, _visible_text(inventory))
    if len(found) > 1:
        raise DeviceError.ambiguous(str(devices), uuid, [f"cuda:{number}" for number in found])
    return found[0]


def _visible_text(inventory: Inventory) -> str:
    return f"cuda:{format_entries(range(len(inventory.visible)))}"


def _rank_devices(gpus: Sequence[Gpu]) -> tuple[RankDevice, ...]:
    """Let all ranks see the chosen GPUs, in the chosen order, once each.

    UUIDs mean the same GPU whatever list the parent process has, so they compose with it. A process can use one MIG instance only:
    with MIG each rank sees its own, as index 0.
    """
    if any(gpu.is_mig for gpu in gpus):
        return tuple(RankDevice(gpu.physical_name, "cuda:0", gpu.uuid) for gpu in gpus)
    distinct = list(dict.fromkeys(gpus))
    visible = ",".join(gpu.uuid for gpu in distinct)
    return tuple(RankDevice(gpu.physical_name, f"cuda:{distinct.index(gpu)}", visible) for gpu in gpus)


def _settle_backend(gpus: Sequence[Gpu], dist_backend: str, text: str) -> str:
    is_shared = len(set(gpus)) < len(gpus)
    if dist_backend == "nccl" and is_shared:
        raise DeviceError.nccl(text, "it refuses two ranks on one GPU")
    if dist_backend != "auto":
        return dist_backend
    return "gloo" if is_shared or any(gpu.is_mig for gpu in gpus) else "nccl"


# ---- completion --------------------------------------------------------------------------------------------------------------------


def complete(text: str, inventory: Inventory) -> list[str]:
    """Return what may stand after the last comma of a device text that is being typed; a device already chosen is not offered."""
    *before, last = text.split(",")
    n_gpus = len(inventory.visible)
    if not before:
        return [word for word in _first_words(last, n_gpus, inventory) if word.startswith(last)]
    kind = before[0].partition(":")[0]
    n_here = n_gpus if kind == "cuda" or (kind == "auto" and n_gpus) else inventory.n_cores
    try:
        chosen = set(parse_devices(",".join(before)).entries or ())
    except DeviceError:
        return []
    if EVERY in chosen or any(isinstance(entry, Free) for entry in chosen):
        return []
    return [word for number in range(n_here) if number not in chosen and (word := str(number)).startswith(last)]


def _words_for_all(kind: str) -> list[str]:
    return [EVERY, FREE] if kind == "cuda" else [EVERY]


def _first_words(typed: str, n_gpus: int, inventory: Inventory) -> list[str]:
    counts = {"auto": n_gpus or inventory.n_cores, "cpu": inventory.n_cores, "cuda": n_gpus}
    kind, colon, entry = typed.partition(":")
    if not colon:
        return [
            f"{kind}{ending}" for kind in KINDS if counts[kind] for ending in ("", *(f":{word}" for word in _words_for_all(kind)))
        ]
    words = [*_words_for_all(kind), *map(str, range(counts.get(kind, 0)))]
    if kind == "cuda" and entry[:1] in {"G", "M"}:
        words = [gpu.uuid for gpu in inventory.visible]
    return [f"{kind}:{word}" for word in words]
