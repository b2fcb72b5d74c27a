"""From what was asked to what will be done: `LaunchOptions` and this machine to a `Plan`."""

from __future__ import annotations

import os
import sys
import warnings

from ice_notebook import agents, ports, processes
from ice_notebook import protocol as p
from ice_notebook.devices import ResolvedDevices
from ice_notebook.environment import rank_environment
from ice_notebook.errors import LaunchError, format_size
from ice_notebook.launch_options import LaunchOptions
from ice_notebook.options import streams_of_rank
from ice_notebook.store import RunFolder

OWN_MEMORY_BYTES = 64 << 20  # less than this is the CUDA context of a notebook that once said hello to the GPU


def make_preparation(n_ranks: int) -> p.Preparation:
    """Return what so many ranks need to stand by for a launch with default options, from here and now."""
    return p.Preparation(
        n_ranks=n_ranks,
        marker=processes.new_marker(),
        interpreter=agents.interpreter(),
        boot_path=p.boot_path((entry for entry in sys.path if isinstance(entry, str)), os.getcwd()),
        environment=rank_environment(os.environ, n_ranks=n_ranks, omp_num_threads=None, extra={}),
        kernel_pid=os.getpid(),
    )


def check_platform() -> None:
    """Refuse to launch where ranks could not be kept track of.

    Raises:
        LaunchError: this system is not Linux, or too old to know pidfds (5.3).
    """
    if not sys.platform.startswith("linux") or not hasattr(os, "pidfd_open"):
        raise LaunchError.platform(sys.platform)


def warn_of_own_memory(devices: ResolvedDevices) -> None:
    """Warn when this process itself holds memory on a GPU that the ranks are to use: the commonest reason why they run out of it."""
    torch = sys.modules.get("torch")
    if devices.device_type != "cuda" or torch is None or not torch.cuda.is_initialized():
        return
    for name in dict.fromkeys(rank.name for rank in devices.ranks):
        index = name.removeprefix("cuda:")
        held = torch.cuda.memory_reserved(int(index)) if index.isdigit() and int(index) < torch.cuda.device_count() else 0
        if held > OWN_MEMORY_BYTES:
            warnings.warn(
                f"This notebook itself holds {format_size(held)} on {name}, which the ranks cannot use: "
                "delete its tensors there and call torch.cuda.empty_cache().",
                UserWarning,
                stacklevel=2,
            )


def check_port(options: LaunchOptions) -> None:
    """Refuse a port that was named and is not free. The agent takes it a second later, and says so if somebody was quicker.

    Raises:
        LaunchError: it is in use.
    """
    address, port = options.meeting_place
    if port and not ports.is_free(address, port):
        raise LaunchError.port(port, address, ports.describe_holder(port))


def make_plan(
    options: LaunchOptions,
    devices: ResolvedDevices,
    *,
    devices_by: str = "",
    run_id: str,
    name: str,
    kind: str,
    script: p.Script | None = None,
    folder: RunFolder,
) -> p.Plan:
    """Return the plan of a run that starts now: with the kernel's present folder, module path and environment.

    Raises:
        LaunchError: the working directory or the interpreter is gone.
    """
    try:
        cwd = os.getcwd()
    except OSError as error:
        raise LaunchError.working_directory(error) from error
    interpreter = agents.interpreter()
    if not os.access(interpreter, os.X_OK):
        raise LaunchError.interpreter(interpreter)
    address, port = options.meeting_place
    return p.Plan(
        run_id=run_id,
        name=name,
        kind=kind,
        folder=str(folder.path),
        script=script,
        payload=str(folder.payload_file) if script is None else "",
        sources=str(folder.sources_file),
        ranks=tuple(
            p.RankPlan(
                local_rank=local_rank,
                device=device.name,
                assigned_device=device.assigned_device,
                visible_devices=device.visible_devices,
                redirects=p.Std(streams_of_rank(options.redirects, local_rank)),
                tee=p.Std(streams_of_rank(options.tee, local_rank)),
            )
            for local_rank, device in enumerate(devices.ranks)
        ),
        devices=devices.text,
        devices_by=devices_by,
        device_type=devices.device_type,
        dist_backend=devices.dist_backend,
        dist_init=options.dist_init == "auto",
        max_restarts=options.max_restarts,
        monitor_interval=options.monitor_interval,
        start_method=options.start_method,
        role=options.role,
        rdzv_id=options.rdzv_id,
        rdzv_backend=options.rdzv_backend,
        master_addr=address,
        master_port=port,
        grace=options.grace,
        timeout=options.timeout,
        marker=processes.new_marker(),
        environment=rank_environment(
            os.environ, n_ranks=len(devices.ranks), omp_num_threads=options.omp_num_threads, extra=options.env
        ),
        cwd=cwd,
        sys_path=tuple(entry for entry in sys.path if isinstance(entry, str)),
        umask=agents.current_umask(),
        interpreter=interpreter,
        kernel_pid=os.getpid(),
        kernel_started=processes.start_time(os.getpid()) or 0.0,
    )
