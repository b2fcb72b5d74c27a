"""The options of a launch: the one table that magics, Python, help, completion and `docs/options.md` are derived from."""
# ruff: noqa: RUF009 - `option` makes a dataclass field, which is what ruff wants there

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ice_notebook.devices import grammar as d
from ice_notebook.errors import OptionError, written
from ice_notebook.options.grammars import (
    Backend,
    Choice,
    Expression,
    Flag,
    Grammar,
    Integer,
    KeyValues,
    Name,
    Names,
    Nodes,
    Numbers,
    Preload,
    Seconds,
    StdStreams,
    Text,
)
from ice_notebook.options.rendezvous import NodeOptions, check_nodes, check_nodes_by_hand
from ice_notebook.options.table import Surface, Table, option

RANKS, CODE, FAILURES, OUTPUT, MEETING = "Devices and ranks", "What runs", "Failures and time", "Output", "Rendezvous"
SCRIPT = "Scripts"
HOST, HOST_PATTERN = "a host name or an IP address", r"\[[\w.:%-]+\]|[\w.:%-]+"
MAGICS = frozenset({Surface.CELL, Surface.LINE})
SCRIPTS = frozenset({Surface.LINE, Surface.CLI})
FUNCTIONS = NOTEBOOKS = frozenset(Surface) - {Surface.CLI}


class DeviceText(Grammar):
    """The grammar of `devices`, which lives in `devices`."""

    allowed = "auto, cpu, cuda or a list of them such as cuda:0,1, cuda:0-2,7, cuda:*, cuda:free or cpu:0-3"
    placeholder = "DEVICES"
    is_explained = True
    words = d.KINDS

    def parse(self, text: str) -> d.Devices:
        return d.parse_devices(text)

    def convert(self, value: Any) -> d.Devices:
        return d.convert_devices(value)

    def complete(self, text: str) -> list[str]:
        return d.complete(text, d.inventory(look_for_gpus=not text.startswith("cpu")))


def _arguments(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError
    return tuple(value)


def _keywords(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError
    return dict(value)


# Each repr is the text of what was given; two objects are compared by nobody, and comparing tensors in `args` would raise.
@dataclass(frozen=True, eq=False, repr=False)
class LaunchOptions(NodeOptions):
    """What was asked of a launch. Every value is checked and converted when it is given; the machine is not looked at."""

    devices: d.Devices | None = option(
        None,
        "Which devices the ranks use: one rank for each device of a list, one rank for a kind alone.",
        grammar=DeviceText(),
        group=RANKS,
        shown="auto, unless a notebook has set others with %elastic_devices",
        shown_in_a_terminal="auto",
        example="cuda:0,1",
    )
    nproc_per_node: int | str | None = option(
        None,
        "Number of ranks: the first N devices of a kind; with a list, N ranks take its devices in turn. "
        "`gpu` and `cpu` count what this machine has, `auto` the GPUs if there are any.",
        grammar=Integer(1, d.MOST_RANKS, words=("auto", "cpu", "gpu")),
        group=RANKS,
        shown="as many as `devices` says",
        example="2",
    )
    nnodes: tuple[int, int] = option(
        "1:1",
        "Number of nodes, or a range MIN:MAX of it. Other machines join with the command that the run shows; with a range they may come and "
        "go, and each change starts the ranks anew.",
        grammar=Nodes(),
        group=RANKS,
        for_scripts="Number of nodes, each of which is started by hand. With the backend c10d it may be a range MIN:MAX: "
        "nodes then may come and go, and each change starts the ranks anew.",
        shown="1:1",
        example="1",
    )
    dist_backend: str = option(
        "auto",
        "Backend of the process group; `auto` is nccl for GPUs, and gloo for the CPU, for GPUs that ranks share and for MIG instances.",
        grammar=Backend(),
        group=RANKS,
        example="gloo",
    )
    dist_init: str = option(
        "auto",
        "Whether the process group is made before the function starts; with `no` the function does it, or goes without.",
        grammar=Choice("auto", "no", same={"true": "auto", "yes": "auto", "false": "no"}),
        group=RANKS,
        surfaces=FUNCTIONS,
        note="Scripts make their own.",
        example="no",
    )
    omp_num_threads: int | None = option(
        None,
        "Threads of each rank on the CPU, set as `OMP_NUM_THREADS` in the ranks and never in the notebook.",
        grammar=Integer(1),
        group=RANKS,
        in_a_terminal="Threads of each rank on the CPU, set as `OMP_NUM_THREADS` in the ranks.",
        shown="1 when there are several ranks and the variable is not set, as torchrun does",
        example="4",
    )
    function: str | None = option(
        None,
        "Name of the function to launch.",
        grammar=Name(),
        group=CODE,
        surfaces=MAGICS,
        shown="the function that ends the cell, else the whole cell",
        example="train",
    )
    args: tuple[Any, ...] | None = option(
        None,
        "Positional arguments of the function: a Python expression over the notebook.",
        grammar=Expression("a tuple or list of the arguments, such as (model,) or [model, 3]", _arguments),
        group=CODE,
        surfaces=MAGICS,
        shown="the launcher, when the function takes one argument and neither args nor kwargs is given",
        example="(3, 'x')",
    )
    kwargs: dict[str, Any] | None = option(
        None,
        "Keyword arguments of the function: a Python expression over the notebook.",
        grammar=Expression("a dict with names as keys, such as dict(lr=0.1)", _keywords),
        group=CODE,
        surfaces=MAGICS,
        shown="none",
        example="dict(lr=0.1)",
    )
    module: bool = option(
        False,
        "What is launched is the name of a module, as in `python -m`.",
        grammar=Flag(),
        group=SCRIPT,
        surfaces=SCRIPTS,
        short="m",
        example="true",
    )
    no_python: bool = option(
        False,
        "What is launched is a program of its own, not a script for Python. It is stopped by SIGTERM, with its process group, unless it handles the signal that stops the run.",
        grammar=Flag(),
        group=SCRIPT,
        surfaces=SCRIPTS,
        example="true",
    )
    run_path: bool = option(
        False,
        "What is launched is a script, by its absolute path, and it may run in ranks that stand by: torch and what ranks imported lately are there.",
        grammar=Flag(),
        group=SCRIPT,
        surfaces=SCRIPTS,
        note="Without it a script starts in a fresh interpreter.",
        in_a_terminal="What is launched is a script, by its absolute path, and it runs in a process that has imported torch already. Without it a "
        "script starts in a fresh interpreter.",
        example="true",
    )
    use_env: bool = option(
        True,
        "Scripts find their local rank in `LOCAL_RANK` alone; with `use_env=false` they are given `--local-rank=N` as well.",
        grammar=Flag(),
        group=SCRIPT,
        surfaces=SCRIPTS,
        note="torch.distributed.launch has false, torchrun true.",
        example="false",
    )
    env: dict[str, str] = option(
        {},
        "Environment variables of the ranks, over those of the notebook; may be given several times. "
        "A part without `=` belongs to the value before it.",
        grammar=KeyValues(commas_in_values=True),
        group=CODE,
        in_a_terminal="Environment variables of the ranks, over those of this command; may be given several times. A part without `=` belongs to "
        "the value before it.",
        shown="none",
        example="NCCL_DEBUG=INFO",
        is_repeatable=True,
    )
    by_value: tuple[str, ...] = option(
        (),
        "Local packages that are sent to the ranks as they are in the notebook's memory, rather than imported there from disk.",
        grammar=Names(),
        group=CODE,
        surfaces=FUNCTIONS,
        shown="none",
        example="mypackage",
    )
    output: str | None = option(
        None,
        "Notebook variable that the run is bound to, as soon as it has begun.",
        grammar=Name(),
        group=CODE,
        surfaces=MAGICS,
        short="o",
        shown="none; the cell's value is the run in any case",
        example="run",
    )
    background: bool = option(
        False,
        "Let the cell return at once; the panel stays live and the run is the cell's value.",
        grammar=Flag(),
        group=CODE,
        surfaces=MAGICS,
        example="true",
    )
    max_restarts: int = option(
        0,
        "Times the whole worker group is started again after a failure.",
        grammar=Integer(0),
        group=FAILURES,
        example="2",
    )
    monitor_interval: float = option(
        0.1,
        "Seconds between two looks at the group's membership; failures and results are seen at once, whatever it is.",
        grammar=Seconds(or_zero=False),
        group=FAILURES,
        note="ice-learn's default was 5 s.",
        in_a_terminal="Seconds between two looks at the group's membership; failures are seen at once, whatever it is.",
        example="0.5",
    )
    timeout: float | None = option(
        None,
        "Seconds after which the run is stopped and counts as failed.",
        grammar=Seconds(or_zero=False),
        group=FAILURES,
        shown="no limit",
        example="3600",
    )
    grace: float = option(
        5.0,
        "Seconds that a rank has to clean up after it was asked to stop, before it is killed.",
        grammar=Seconds(or_zero=True),
        group=FAILURES,
        aliases=("shutdown_timeout",),
        note="torch gives 30 s; its name for it, `shutdown_timeout`, is as good.",
        example="10",
    )
    start_method: str = option(
        "spawn",
        "How ranks are started: `spawn` starts fresh interpreters, `forkserver` forks them from a process that has imported torch and does "
        "nothing else.",
        grammar=Choice(
            "spawn",
            "forkserver",
            refused={
                "fork": "forking a process with threads copies their locks but not the threads that hold them, and about one launch in 200 "
                "would hang; use spawn, or forkserver.",
            },
        ),
        group=FAILURES,
        note="`fork` is refused, because forking a process with threads hangs about one launch in 200.",
        in_a_terminal="How ranks are started: scripts in fresh interpreters, whatever this says; with `run_path`, `forkserver` forks them from a "
        "process that has imported torch and does nothing else. `fork` is refused, because forking a process with threads hangs about one launch in 200.",
        example="spawn",
    )
    standby: int | str = option(
        "auto",
        "Ranks that are kept ready for the next launch: `auto` as many as this launch has, `off` none, or a number.",
        grammar=Integer(1, d.MOST_RANKS, words=("auto", "off")),
        group=FAILURES,
        surfaces=NOTEBOOKS,
        advice="Nothing is launched after a command that could use them.",
        note="They end 10 minutes after the last launch, and with the notebook.",
        example="off",
    )
    preload: tuple[str, ...] | str = option(
        "auto",
        "Modules that ranks which stand by import besides torch: `auto` the installed ones that ranks have imported lately, `no` none, or "
        "names.",
        grammar=Preload(),
        group=FAILURES,
        surfaces=NOTEBOOKS,
        advice="A script imports what it needs.",
        example="transformers",
    )
    redirects: int | dict[int, int] = option(
        "0",
        "Which streams go to a file of their own (`stdout.log`, `stderr.log`) and are not shown: a number for all ranks, or one for each "
        "local rank.",
        grammar=StdStreams(),
        group=OUTPUT,
        short="r",
        shown="0",
        example="0:1,1:2",
    )
    tee: int | dict[int, int] = option(
        "0",
        "Which streams go to a file of their own and are shown too, written like `redirects`; between two teed streams the order shown is "
        "that of arrival.",
        grammar=StdStreams(),
        group=OUTPUT,
        short="t",
        shown="0",
        example="3",
    )
    log_dir: str | None = option(
        None,
        "Folder in which the run's folder `<rdzv_id>_<run_id>` is made; it is never pruned.",
        grammar=Text("the path of a folder", placeholder="PATH"),
        group=OUTPUT,
        shown="the user's cache, which keeps the newest 20 runs",
        example="logs",
    )
    ui: str = option(
        "auto",
        "How the run is shown: a live panel, plain lines, or not at all.",
        grammar=Choice("auto", "widget", "text", "none"),
        group=OUTPUT,
        in_a_terminal="Whether the run is shown: `text`, as `auto`, is its lines; `none` shows only why it failed.",
        takes_in_a_terminal="auto|text|none",
        shown_in_a_terminal="auto",
        shown="auto, which is the panel where a notebook can draw it and text elsewhere",
        example="text",
    )
    local_ranks_filter: tuple[int, ...] | None = option(
        None,
        "Local ranks whose output is shown; the log files have that of all.",
        grammar=Numbers("numbers of local ranks, joined by commas: 0,1"),
        group=OUTPUT,
        surfaces=frozenset({Surface.CLI}),
        advice="The panel lets you choose; `redirects` keeps one quiet: 1:3.",
        shown="all",
        example="0",
    )
    role: str = option(
        "default",
        "Name of the workers' role, which they see as `ROLE_NAME`.",
        grammar=Text("a name on one line"),
        group=OUTPUT,
        example="trainer",
    )
    rdzv_id: str = option(
        "none",
        "Name of the worker group, which begins the name of the run's folder below `log_dir`.",
        grammar=Text("a word without blanks and slashes", r"[^\s/\0]+"),
        group=MEETING,
        in_a_terminal="Name of the worker group. With c10d only nodes that say the same meet. It begins the name of the run's folder below `log_dir`.",
        shown="the word none",
        example="experiment7",
    )
    rdzv_backend: str = option(
        "static",
        "How agents find each other. Nodes join by the run's token whatever it is: `static` and `c10d` are the same.",
        grammar=Choice(
            "static",
            "c10d",
            refused=dict.fromkeys(("etcd", "etcd-v2"), "nodes meet without another service here; use c10d, or leave it out."),
        ),
        group=MEETING,
        for_scripts="How nodes find each other: static, by the number that each is given, at the address and the port of node 0; or c10d, by torch's "
        "rendezvous at an endpoint that all are given, where they may come and go.",
        example="c10d",
    )
    rdzv_endpoint: str = option(
        "",
        "Where other nodes join, as HOST:PORT: an address of this machine, and a port of it that they can reach.",
        grammar=Text(
            "HOST or HOST:PORT, such as localhost:29401", r"(|(\[[\w.:%-]+\]|[\w.-]+)(:[0-9]{1,5})?)", placeholder="HOST:PORT"
        ),
        group=MEETING,
        for_scripts="Where nodes meet, as HOST:PORT. With c10d it is an address of a node that all others reach, and a port of it; with static it may "
        "stand for `master_addr` and `master_port`. One node alone uses the port at most.",
        shown="none; one node takes a free port",
        note="Ports 29400 and 29500, which torch takes by default, are never taken unless named.",
        example="localhost:29401",
    )
    rdzv_configs: dict[str, str] = option(
        {},
        "Further settings of the rendezvous: `join_timeout` (or `timeout`), how many seconds a run waits for its nodes, and "
        "`last_call_timeout`, how long it waits for more than it needs.",
        grammar=KeyValues(),
        group=MEETING,
        aliases=("rdzv_conf",),
        shown="none",
        note="Also written `rdzv_conf`, as torchrun does. By default 600 s and 1 s; torch's last call is 30 s.",
        in_a_terminal="Further settings of the rendezvous: join_timeout (or timeout), how many seconds a node waits for the others, 600 unless given; "
        "with c10d, last_call_timeout, how long there is waited for more nodes than are needed, 1 unless given (torch: 30), and torch's own settings.",
        example="timeout=60",
    )
    standalone: bool = option(
        False,
        "Say that this node is alone, which sets the other rendezvous options aside.",
        grammar=Flag(),
        group=MEETING,
        example="true",
    )
    node_rank: int = option(
        0,
        "Number of this node.",
        grammar=Integer(0),
        group=MEETING,
        note="The machine of the notebook is node 0; the others get their numbers as they join.",
        for_scripts="Number of this node, from 0 on, when the backend is static; with c10d nodes are given theirs.",
        example="0",
    )
    master_addr: str = option(
        "127.0.0.1",
        "Address of this machine at which the ranks, and other nodes, meet; the loopback, which no other machine reaches, unless given.",
        grammar=Text(HOST, HOST_PATTERN, placeholder="HOST"),
        group=MEETING,
        for_scripts="Address of node 0, at which nodes and ranks meet when the backend is static. One node alone does not use it: its ranks meet on the "
        "loopback address.",
        example="localhost",
    )
    master_port: int | None = option(
        None,
        "Port at which the ranks meet: the only one of their store, which a firewall can let through.",
        grammar=Integer(0, 65535),
        group=MEETING,
        for_scripts="Port of node 0 at which nodes and ranks meet when the backend is static; with c10d the port of the ranks' store.",
        shown="a free one",
        note="torch takes 29500.",
        example="29501",
    )
    local_addr: str | None = option(
        None,
        "Address of this node by which the others reach it, should it have the ranks' store; one of its network interfaces has it.",
        grammar=Text(HOST, HOST_PATTERN, placeholder="HOST"),
        group=MEETING,
        surfaces=SCRIPTS,
        note="It is for nodes that are started by hand; one node alone does not use it.",
        advice="The address of the notebook's machine is `master_addr`.",
        shown="the one by which this node reaches the endpoint",
        example="192.168.1.2",
    )

    def __post_init__(self) -> None:
        """Convert what was given, so that a wrong value is refused where it is given."""
        for each in TABLE:
            object.__setattr__(self, each.name, each.convert(getattr(self, each.name)))

    @classmethod
    def of(cls, asked: Mapping[str, Any], surface: Surface = Surface.PYTHON) -> LaunchOptions:
        """Return the options that names and Python values say. Dashes, aliases and texts are as good as on a magic's line.

        Raises:
            OptionError: a name is not an option of this surface, or a value is not one that it takes.
            DeviceError: the devices cannot be read.
        """
        return cls(**TABLE.convert(asked, surface))

    def changed(self, **asked: Any) -> LaunchOptions:
        """Return the options with some of them changed, as `of` reads them."""
        return dataclasses.replace(self, **TABLE.convert(asked, Surface.PYTHON))

    def asked(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        return {
            each.name: value
            for each in TABLE
            if (value := getattr(self, each.name)) is not (default := _DEFAULTS[each.name]) and value != default
        }

    def __repr__(self) -> str:
        """Return the call that makes these options."""
        return f"LaunchOptions({', '.join(f'{name}={self._written(name, value)}' for name, value in self.asked().items())})"

    @staticmethod
    def _written(name: str, value: Any) -> str:
        if isinstance(value, int | float):
            return repr(value)
        text = TABLE.options[name].grammar.format(value)
        return text if TABLE.options[name].grammar.is_expression else repr(text)

    def validate(self) -> LaunchOptions:
        """Return these options if they go together. The machine is not looked at.

        Raises:
            OptionError: two of them contradict each other, or ask for what this version cannot do.
        """
        _refuse_two_kinds_of_script(self)
        check_nodes(self)
        _refuse_environment(self)
        return self

    def validate_by_hand(self) -> LaunchOptions:
        """Return these options if they go together for one of several nodes that are each started by hand, as torchrun's are.

        Raises:
            OptionError: two of them contradict each other, or the nodes could not meet.
        """
        if not self.has_other_nodes:
            return self.validate()
        check_nodes_by_hand(self)
        _refuse_environment(self)
        return self

    def resolve_devices(self, inventory: d.Inventory, picked: d.Devices | None = None) -> d.ResolvedDevices:
        """Return the device of each rank on a machine. `picked` is used when `devices` was not given.

        Raises:
            DeviceError: the machine does not have them.
        """
        return d.resolve(self.devices or picked, inventory, nproc_per_node=self.nproc_per_node, dist_backend=self.dist_backend)


LATER = {
    "detach": "runs that outlive their notebook come later; `background` lets a cell return at once, and nohup keeps a command running.",
    "debug": "the debugger of a rank comes later; a failed rank's traceback is shown with the run.",
    "notify": "notifications come later.",
    "when_busy": "waiting for free devices comes later; the launch starts at once.",
}
# Options of newer torchruns that have no counterpart of their name here: what to do in their place.
OF_TORCHRUN = {
    "duplicate_stdout_filters": "each rank's whole output is in its `output.log`; filter that, as with grep.",
    "duplicate_stderr_filters": "each rank's whole output is in its `output.log`; filter that, as with grep.",
    "event_log_handler": "the run's own events are in its folder, in `events.jsonl`.",
    "logs_specs": "where logs lie is settled: `log_dir`, `redirects` and `tee` say what goes there.",
    "numa_binding": "ranks are not bound to processors; launch a program that does it with `no_python`, such as numactl.",
    "signals_to_handle": "SIGINT, SIGTERM and SIGHUP stop the run in order, and no others do; leave it out.",
    "virtual_local_rank": "all ranks see the chosen GPUs, and `LOCAL_RANK` is the number of theirs; leave it out.",
}
# What torchrun has not; it has all others.
OURS = frozenset(
    {"devices", "dist_backend", "dist_init", "omp_num_threads", "function", "args", "kwargs", "use_env", "env", "by_value"}
) | {
    *{"output", "background", "timeout", "grace", "standby", "preload", "ui", "rdzv_configs"},
    *LATER,
}
TABLE = Table(LaunchOptions, later=LATER | OF_TORCHRUN, ours=OURS)
_DEFAULTS = {each.name: each.convert(each.default) for each in TABLE}

# The launcher or torch's agent sets these for each rank.
_RANK_VARIABLES = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "GROUP_RANK",
        "ROLE_RANK",
        "ROLE_NAME",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_WORLD_SIZE",
        "ROLE_WORLD_SIZE",
    }
    | {"MASTER_ADDR", "MASTER_PORT"}
)


# ---- what goes together ------------------------------------------------------------------------------------------------------------


def _refuse_two_kinds_of_script(options: LaunchOptions) -> None:
    kinds = [name for name in ("module", "no_python", "run_path") if getattr(options, name)]
    if len(kinds) > 1:
        raise OptionError.conflict(written(kinds[0]), written(kinds[1]), "they say two things of what is launched; give one.")
    if options.no_python and not options.use_env:
        raise OptionError.conflict(
            written("no_python"), written("use_env", "false"), "a program is not given --local-rank=N; it has LOCAL_RANK."
        )


def _refuse_environment(options: LaunchOptions) -> None:
    """Refuse variables that the launcher sets: what the user asked for would silently not be done."""
    for name in options.env:
        if name in _RANK_VARIABLES or name.startswith("TORCHELASTIC_"):
            raise OptionError.refused("env", name, "the launcher sets it for each rank; leave it out.")
    if options.env.get("CUDA_VISIBLE_DEVICES"):
        raise OptionError.refused(
            "env", "CUDA_VISIBLE_DEVICES", f"it is set from the chosen devices; choose them with {written('devices', 'cuda:…')}."
        )
    if options.omp_num_threads is not None and "OMP_NUM_THREADS" in options.env:
        raise OptionError.conflict(
            written("omp_num_threads"), written("env", "OMP_NUM_THREADS"), "they set the same variable; give one."
        )
