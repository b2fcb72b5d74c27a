"""What a page must know of the devices of a machine: one JSON value, and what is picked of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ice_notebook.devices import grammar as d
from ice_notebook.devices.holders import Holder, Use, Whose
from ice_notebook.devices.machine import Gpu, Inventory
from ice_notebook.devices.readings import Reading
from ice_notebook.errors import DeviceError, format_size, join

UNREAD = Use(Reading())


@dataclass(frozen=True)
class Selection:
    """What is picked: GPUs by their UUIDs, or a number of ranks on the CPU, never both: all ranks of a launch use one kind."""

    gpus: tuple[str, ...] = ()
    n_cpu: int = 0

    def with_gpus(self, uuids: Iterable[str], inventory: Inventory) -> Selection:
        """Return these GPUs picked, in the order in which the notebook numbers them. Others than it sees are left out."""
        wanted = set(uuids)
        return Selection(gpus=tuple(gpu.uuid for gpu in inventory.visible if gpu.uuid in wanted))

    def text(self, inventory: Inventory) -> str:
        """Return it as `parse_devices` reads it, in the notebook's numbers; nothing when nothing is picked."""
        if self.n_cpu:
            return f"cpu:{d.format_entries(range(self.n_cpu))}"
        number = {gpu.uuid: i for i, gpu in enumerate(inventory.visible)}
        return f"cuda:{d.format_entries([number[uuid] for uuid in self.gpus])}" if self.gpus else ""


def select(devices: d.Devices, inventory: Inventory) -> Selection:
    """Return a selection of devices that were asked for.

    Raises:
        DeviceError: the machine does not have them, or one is named twice.
    """
    resolved = d.resolve(devices, inventory)
    if resolved.device_type == "cpu":
        return Selection(n_cpu=len(resolved.ranks))
    numbers = [int(str(number)) for number in d.parse_devices(resolved.text).entries or ()]
    if len(set(numbers)) < len(numbers):
        raise DeviceError.picked_twice(resolved.text)
    return Selection(gpus=tuple(inventory.visible[number].uuid for number in numbers))


def status(gpu: Gpu, use: Use) -> str:
    """Return in one word how a GPU stands: `free`, `yours`, `in use`, or `unknown`."""
    if use.runs or any(holder.whose is Whose.RUN for holder in use.holders):
        return "yours"
    if not use.obstacles(gpu.memory_bytes):
        return "free"
    return "in use" if use.holders or use.reading.memory_used_bytes is not None else "unknown"


def snapshot(inventory: Inventory, uses: Mapping[str, Use], selection: Selection) -> dict[str, Any]:
    """Return the machine as a page draws it."""
    n_hidden = len(set(inventory.gpus) - set(inventory.visible))
    return {
        "text": selection.text(inventory),
        "n_cpu": selection.n_cpu,
        "n_cores": inventory.n_cores,
        "most_ranks": d.MOST_RANKS,
        "gpus": [
            _gpu(f"cuda:{number}", gpu, uses.get(gpu.uuid, UNREAD), is_picked=gpu.uuid in selection.gpus)
            for number, gpu in enumerate(inventory.visible)
        ],
        "no_gpu": "" if inventory.visible else inventory.why_no_cuda,
        "variable": inventory.cuda_visible_devices if inventory.gpus else None,
        "n_hidden": n_hidden,
    }


def listing(inventory: Inventory, uses: Mapping[str, Use]) -> list[str]:
    """Return the machine as lines, for where there is no page."""
    lines = []
    for number, gpu in enumerate(inventory.visible):
        use = uses.get(gpu.uuid, UNREAD)
        used = use.reading.memory_used_bytes
        memory = f"{'?' if used is None else format_size(used)} of {format_size(gpu.memory_bytes)}" if gpu.memory_bytes else ""
        words = [f"cuda:{number}", gpu.name, memory, join(use.obstacles(gpu.memory_bytes)) or "free"]
        lines.append("  ".join(filter(None, words)))
    if not lines:
        lines.append(f"No GPU can be used here: {inventory.why_no_cuda}.")
    return [*lines, f"{inventory.n_cores} CPU core{'' if inventory.n_cores == 1 else 's'}"]


def _gpu(name: str, gpu: Gpu, use: Use, *, is_picked: bool) -> dict[str, Any]:
    reading = use.reading
    return {
        "id": name,
        "uuid": gpu.uuid,
        "physical": gpu.physical_name if gpu.physical_name != name else "",
        "name": gpu.name,
        "part": f"MIG instance {gpu.instance} of board {gpu.board}" if gpu.is_mig else "",
        "picked": is_picked,
        "status": status(gpu, use),
        "memory": gpu.memory_bytes,
        "used": reading.memory_used_bytes,
        "load": reading.load_percent,
        "temperature": reading.temperature_c,
        "power": reading.power_w,
        "limit": reading.power_limit_w,
        "runs": list(use.runs),
        "processes": [_process(holder) for holder in use.holders if not (holder.whose is Whose.RUN and holder.run in use.runs)],
    }


def _process(holder: Holder) -> dict[str, Any]:
    return {
        "whose": holder.whose.value,
        "who": holder.name,
        "command": holder.command,
        "pid": holder.pid if holder.whose is not Whose.UNKNOWN else None,
        "memory": holder.memory_bytes,
    }
