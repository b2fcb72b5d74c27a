"""From what was asked to what will be done: `LaunchOptions` and this machine to a `Plan`."""

from __future__ import annotations

import os
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from ice_notebook.devices.grammar import ResolvedDevices
from ice_notebook.errors import LaunchError, format_size
from ice_notebook.host import boot, inherited, ports, processes, starting
from ice_notebook.host.ownership import other_writers
from ice_notebook.kernel import environment
from ice_notebook.options.launch_options import LaunchOptions
from ice_notebook.options.table import streams_of_rank
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire import protocol as p

AGENT_DESCRIPTORS = 40  # that an agent has open whatever its ranks, and some for the moments in which it starts one
OWN_DESCRIPTORS = 16  # that a run takes here: sockets, pipes, its lock
OWN_MEMORY_BYTES = 64 << 20  # less than this is the CUDA context of a notebook that once said hello to the GPU


def make_preparation(n_ranks: int) -> p.Preparation:
    """Return what so many ranks need to stand by for a launch with default options, from here and now."""
    path = boot.boot_path((entry for entry in sys.path if isinstance(entry, str)), os.getcwd())
    return p.Preparation(
        n_ranks=n_ranks,
        marker=processes.new_marker(),
        interpreter=starting.interpreter(),
        boot_path=path,
        pins=boot.pinned(path),
        environment=environment.rank_environment(os.environ, n_ranks=n_ranks, omp_num_threads=None, extra={}),
        inherited=inherited.read(),
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


def warn_of_other_writers(folder: Path, *, is_users: bool) -> None:
    """Warn when other users could put files of their own in the place of a run's. Values of theirs are refused, but logs and journal are believed."""
    if where := other_writers(folder.parent):
        warnings.warn(
            f"Others can exchange the files of runs in {where}. "
            f"Choose another folder with {'log_dir' if is_users else 'XDG_CACHE_HOME'}, or protect that one: chmod go-w, or chmod +t.",
            UserWarning,
            stacklevel=2,
        )


def check_port(options: LaunchOptions, *, is_for_script: bool) -> None:
    """Refuse a port that was named and is not free. The agent takes it a second later, and says so if somebody was quicker.

    Nodes that are started by hand are not asked: at all but one of them the port is somebody else's, as it should be.

    Raises:
        LaunchError: it is in use.
    """
    if is_for_script and options.has_other_nodes:
        return
    address, port = options.meeting_place
    if port and not ports.is_free(address, port):
        raise LaunchError.port(port, address, ports.describe_holder(port))


def check_descriptors(options: LaunchOptions, n_ranks: int) -> None:
    """Refuse to launch where the run's agent, or this process, would have too few descriptors.

    The agent raises its soft limit to the hard one. Counted with 1, 4 and 8 ranks: 22 and 6 a rank, and 3 for each stream that is teed; a
    rank that gets ready for a restart has 4.

    Raises:
        LaunchError: the limit is too low.
    """
    teed = sum(streams_of_rank(options.tee, rank).bit_count() for rank in range(n_ranks))
    needed = AGENT_DESCRIPTORS + 6 * n_ranks + 3 * teed + 4 * n_ranks * bool(options.max_restarts)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise LaunchError.descriptors(n_ranks, needed, hard)
    n_open = len(os.listdir("/proc/self/fd"))
    if soft != resource.RLIM_INFINITY and n_open + OWN_DESCRIPTORS > soft:
        raise LaunchError.own_descriptors(n_open, soft)


def make_nodes_plan(options: LaunchOptions) -> p.NodesPlan:
    """Return what is settled about the machines of a run of several, with a fresh identity and token."""
    from ice_notebook.wire import tls  # noqa: PLC0415 - cryptography is imported for such runs only
    from ice_notebook.wire.token import Token  # noqa: PLC0415

    identity, fingerprint = tls.make_identity()
    address, port = options.node_meeting_place
    return p.NodesPlan(
        least=options.nnodes[0],
        most=options.nnodes[1],
        address=address,
        port=port,
        last_call=options.last_call_s,
        join_timeout=options.join_timeout_s,
        token=Token.new(fingerprint).format(),
        identity=identity,
        environment=dict(options.env),
        omp_num_threads=options.omp_num_threads,
    )


def make_group_plan(options: LaunchOptions) -> p.GroupPlan:
    """Return what is settled about one of several nodes that are each started by hand. The options are those of `validate_by_hand`."""
    own = {"last_call_timeout", "join_timeout", "timeout", "rank"}
    return p.GroupPlan(
        least=options.nnodes[0],
        most=options.nnodes[1],
        node_rank=options.node_rank,
        backend=options.rdzv_backend,
        address=options.node_meeting_place[0],
        port=options.meeting_port,
        local_address=options.local_addr or "",
        join_timeout=options.join_timeout_s,
        configs={
            "last_call_timeout": f"{max(1, round(options.last_call_s))}",
            **{name: value for name, value in options.rdzv_configs.items() if name not in own},
        },
    )


def rank_plans(devices: ResolvedDevices, streams: Callable[[int], tuple[int, int]]) -> tuple[p.RankPlan, ...]:
    """Return what is settled about each local rank. `streams` gives what is redirected and teed of one."""
    return tuple(
        p.RankPlan(
            local_rank=local_rank,
            device=device.name,
            assigned_device=device.assigned_device,
            visible_devices=device.visible_devices,
            redirects=p.Std(streams(local_rank)[0]),
            tee=p.Std(streams(local_rank)[1]),
        )
        for local_rank, device in enumerate(devices.ranks)
    )


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
    wiring: p.Wiring | None = None,
) -> p.Plan:
    """Return the plan of a run that starts now: with the kernel's present folder, module path and environment.

    Raises:
        LaunchError: the working directory or the interpreter is gone.
    """
    try:
        cwd = os.getcwd()
    except OSError as error:
        raise LaunchError.working_directory(error) from error
    interpreter = starting.interpreter()
    if not os.access(interpreter, os.X_OK):
        raise LaunchError.interpreter(interpreter)
    sys_path = tuple(entry for entry in sys.path if isinstance(entry, str))
    address, port = options.meeting_place
    is_by_hand = options.has_other_nodes and script is not None
    nodes = make_nodes_plan(options) if options.has_other_nodes and not is_by_hand else None
    return p.Plan(
        run_id=run_id,
        name=name,
        kind=kind,
        folder=str(folder.path),
        script=script,
        payload=str(folder.payload_file) if script is None else "",
        sources=str(folder.sources_file),
        ranks=rank_plans(devices, lambda rank: (streams_of_rank(options.redirects, rank), streams_of_rank(options.tee, rank))),
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
        nodes=nodes,
        group=make_group_plan(options) if is_by_hand else None,
        grace=options.grace,
        timeout=options.timeout,
        marker=processes.new_marker(),
        environment=environment.rank_environment(
            os.environ,
            n_ranks=len(devices.ranks),
            omp_num_threads=options.omp_num_threads,
            extra=options.env,
            interface=environment.interface_of(options.local_addr or address) if options.has_other_nodes else environment.LOOPBACK,
        ),
        cwd=cwd,
        sys_path=sys_path,
        pins=boot.pinned(boot.boot_path(sys_path, cwd)),
        umask=starting.current_umask(),
        inherited=inherited.read(),
        interpreter=interpreter,
        wiring=wiring or p.Wiring(),
        kernel_pid=os.getpid(),
    )
