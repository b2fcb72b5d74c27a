"""What this machine has: its GPUs, found through NVML without touching CUDA, and its usable cores."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

NVML_LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Gpu:
    """One GPU that a rank can use: a board, or one MIG instance of a board whose MIG mode is on."""

    uuid: str  # GPU-… or MIG-…
    name: str
    memory_bytes: int
    board: int  # NVML's number of the board, in the order of the PCI bus
    instance: int | None = None  # the MIG instance on it

    @property
    def is_mig(self) -> bool:
        """Return whether this is a part of a board."""
        return self.instance is not None

    @property
    def physical_name(self) -> str:
        """Return the name that is the same in every process: cuda:2, or cuda:2:0 for the first MIG instance of that board."""
        return f"cuda:{self.board}" if self.instance is None else f"cuda:{self.board}:{self.instance}"


@dataclass(frozen=True)
class Inventory:
    """The devices of a machine, and which of them this process may use."""

    gpus: tuple[Gpu, ...] = ()  # in NVML's order
    n_cores: int = 1  # cores that this process may run on
    cuda_visible_devices: str | None = None  # the variable as it stands, None when it is not set
    problem: str = ""  # why no GPU could be found, as half a sentence
    held: Mapping[str, str] | None = None  # who uses a GPU, in words by its UUID; the others are free. None when nobody looked

    @cached_property
    def visible(self) -> tuple[Gpu, ...]:
        """Return the GPUs that `cuda:0`, `cuda:1`, … mean in this process."""
        if self.cuda_visible_devices is None:
            return self.gpus
        return visible_gpus(self.cuda_visible_devices, self.gpus)

    @property
    def why_no_cuda(self) -> str:
        """Return why there is no visible GPU, as half a sentence."""
        if self.gpus and self.cuda_visible_devices is not None:
            return f"CUDA_VISIBLE_DEVICES={self.cuda_visible_devices!r} hides the {len(self.gpus)} that this machine has"
        return self.problem or "this machine has none"


def inventory(*, look_for_gpus: bool = True) -> Inventory:
    """Return what this machine has now. CUDA is not touched and torch is not imported.

    `look_for_gpus=False` saves the time of asking the driver, for launches on the CPU.
    """
    gpus, problem = read_gpus() if look_for_gpus else ((), "they were not looked for")
    if gpus and (why_not := torch_without_cuda()):
        gpus, problem = (), why_not
    return Inventory(
        gpus=gpus,
        n_cores=count_cores(),
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        problem=problem,
    )


def count_cores() -> int:
    """Return the number of cores that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus(variable: str, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Return the GPUs that a value of `CUDA_VISIBLE_DEVICES` leaves, in its order, as CUDA reads it.

    The first entry decides whether numbers, board UUIDs or MIG UUIDs follow. An entry that means nothing ends the list; a repeated
    one empties it. Source: `_parse_visible_devices` in torch.cuda.
    """
    prefix = next((p for p in ("GPU-", "MIG-") if variable.startswith(p)), "")
    chosen: list[Gpu] = []
    for entry in variable.split(","):
        gpu = _gpu_of_uuid(entry, prefix, gpus) if prefix else _gpu_of_number(entry, gpus)
        if gpu is None:
            break
        if gpu in chosen:
            return ()
        chosen.append(gpu)
    return tuple(chosen)


def _gpu_of_number(entry: str, gpus: tuple[Gpu, ...]) -> Gpu | None:
    # CUDA reads the digits that an entry begins with, like C's strtoul: `1gpu` is 1. A number means a board; of a board in MIG mode
    # CUDA shows the first instance.
    digits = re.match(r"\s*\+?([0-9]+)", entry)
    return next((gpu for gpu in gpus if digits and gpu.board == int(digits[1])), None)


def _gpu_of_uuid(entry: str, prefix: str, gpus: tuple[Gpu, ...]) -> Gpu | None:
    found = [gpu for gpu in gpus if entry.startswith(prefix) and gpu.uuid.startswith(entry.strip())]
    return found[0] if len(found) == 1 else None


def read_gpus(nvml: Any = None) -> tuple[tuple[Gpu, ...], str]:
    """Return all GPUs in NVML's order, or none and the reason as half a sentence. `nvml` is the module `pynvml`."""
    nvml = nvml or load_nvml()
    if isinstance(nvml, str):
        return (), nvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return (), f"the NVIDIA driver does not answer ({error})"
    try:
        boards = range(nvml.nvmlDeviceGetCount())
        return tuple(gpu for board in boards for gpu in _read_board(nvml, board)), ""
    except nvml.NVMLError as error:
        return (), f"the NVIDIA driver does not list its devices ({error})"
    finally:
        nvml.nvmlShutdown()


def load_nvml() -> Any:
    """Return the module `pynvml`, or why there is none, as half a sentence."""
    import ctypes  # noqa: PLC0415 - only needed when somebody asks for the inventory

    try:
        # Without a driver this costs microseconds; importing pynvml would cost 25 ms to say the same.
        ctypes.CDLL(NVML_LIBRARY)
        return importlib.import_module("pynvml")
    except OSError:
        return "this machine has no NVIDIA driver"
    except ImportError:
        return "the package nvidia-ml-py, which lists GPUs, is not installed"


def _read_board(nvml: Any, board: int) -> list[Gpu]:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(board)
        if not _is_in_mig_mode(nvml, handle):
            return [_read_gpu(nvml, handle, board, None)]
        n_most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:
        return []  # a board that was lost or may not be opened here cannot be used; its neighbours can
    return [gpu for instance in range(n_most) if (gpu := _read_instance(nvml, handle, board, instance))]


def _is_in_mig_mode(nvml: Any, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False  # boards that cannot be divided answer with an error
    return bool(current)


def _read_instance(nvml: Any, handle: Any, board: int, instance: int) -> Gpu | None:
    try:
        return _read_gpu(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, instance), board, instance)
    except nvml.NVMLError:
        return None  # the numbers of instances have gaps


def _read_gpu(nvml: Any, handle: Any, board: int, instance: int | None) -> Gpu:
    return Gpu(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=_read_memory(nvml, handle),
        board=board,
        instance=instance,
    )


def _read_memory(nvml: Any, handle: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:
        return 0  # boards that share the machine's memory have none of their own to report


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # versions of pynvml before 11.5 return bytes


def torch_without_cuda() -> str:
    """Return, as half a sentence, that the installed torch cannot use GPUs; nothing when it can. torch is not imported."""
    try:
        spec = importlib.util.find_spec("torch")
        if spec is None or not spec.origin:
            return "torch is not installed"
        with open(os.path.join(os.path.dirname(spec.origin), "version.py"), encoding="utf-8") as file:
            version = file.read()
    except (OSError, ValueError):
        return ""  # a build of its own kind: its ranks will say what it can do
    return "the installed torch was built without CUDA" if re.search(r"^cuda\b[^=]*=\s*None\s*$", version, re.MULTILINE) else ""
