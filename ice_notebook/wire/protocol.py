"""What crosses the borders between kernel, agent and ranks, and what the journal holds: frozen structures that are JSON outside.

`Plan` is what will be done. Events are what happened; the agent writes them to the journal and sends them to the kernel. Messages steer.
Each is one tagged structure, so that `decode_event(encode(event)) == event`. Fields may be added with a default; a field or a tag never
changes its meaning without a new `VERSION`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ice_notebook.host import boot
from ice_notebook.host.identities import Identity
from ice_notebook.host.inherited import Inherited
from ice_notebook.wire import exact_json

VERSION = 1


class Struct(msgspec.Struct, frozen=True, omit_defaults=True):
    """The base of all structures here: immutable; each says `frozen` and `kw_only` again, which do not inherit."""


class Std(enum.IntFlag):
    """Standard streams, numbered as in torch.distributed.elastic.multiprocessing.Std."""

    NONE = 0
    OUT = 1
    ERR = 2
    ALL = 3


# ---- what will be done -------------------------------------------------------------------------------------------------------------


class Wiring(Struct, frozen=True, kw_only=True):
    """What the standard streams of ranks are. In a notebook both are one terminal; of a command, what its own are."""

    stdout_is_pipe: bool = False  # as that of their launcher: programs then behave as they do in front of a pipe or a file
    is_apart: bool = False  # stderr is a stream of its own
    stderr_is_pipe: bool = False
    columns: int = 80  # of their terminals: a progress bar then fits into a pane of the panel
    rows: int = 24


class Preparation(Struct, frozen=True, kw_only=True):
    """What an agent needs to get itself and its ranks ready, before it knows what for.

    All of it is fixed when a process starts: a later launch can use processes only that were started with the same.
    """

    n_ranks: int
    marker: str  # every process carries it in its environment; the sweep finds them by it
    interpreter: str
    boot_path: tuple[str, ...]  # the module path on which torch and this package are found
    pins: dict[str, str] = {}  # modules that are found elsewhere: where the notebook has loaded them from
    environment: dict[str, str]
    start_method: str = "spawn"
    is_at_once: bool = False  # the plan follows at once
    at_a_time: int | None = None  # ranks that get ready at the same time as long as nobody waits for them; None: all
    is_for_script: bool = False  # its ranks import nothing before they run it
    inherited: Inherited | None = None
    wiring: Wiring = Wiring()
    kernel_pid: int

    def command(self, module: str, sock: int, *words: str) -> list[str]:
        """Return the command line that runs a module of ours with a socket and words."""
        return boot.command(self.interpreter, module, self.boot_path, self.pins, [str(sock), *words])


class Readiness(Struct, frozen=True, kw_only=True):
    """What a rank says of how it got ready."""

    import_s: float  # seconds that its imports took
    environment: tuple[str, ...]  # names of variables that they looked for: a later value of these would not be seen
    preloaded: dict[str, float] = {}  # module: seconds
    refused: dict[str, str] = {}  # module: why it must not be preloaded

    @classmethod
    def of(cls, ranks: Sequence[Readiness]) -> Readiness:
        """Return what holds for all of several ranks: the longest times, and every name."""
        return cls(
            import_s=max((rank.import_s for rank in ranks), default=0.0),
            environment=tuple(sorted({name for rank in ranks for name in rank.environment})),
            preloaded={name: max(r.preloaded.get(name, 0.0) for r in ranks) for rank in ranks for name in rank.preloaded},
            refused={name: reason for rank in ranks for name, reason in rank.refused.items()},
        )


class RankPlan(Struct, frozen=True, kw_only=True):
    """What is settled about one local rank before anything starts."""

    local_rank: int
    device: str  # the physical name that people see: cuda:2, cpu:0
    assigned_device: str  # torch's name for it inside the rank: cuda:0, cpu
    visible_devices: str | None = None  # CUDA_VISIBLE_DEVICES of the rank, None leaves it as it is
    redirects: Std = Std.NONE
    tee: Std = Std.NONE


class ScriptKind(enum.Enum):
    """What a rank runs that is not a function."""

    FILE = "file"  # a script, or a folder or archive with a __main__.py
    MODULE = "module"  # as python -m does
    PROGRAM = "program"  # not Python: the rank's process becomes it


LOCAL_RANK = "${local_rank}"  # stands for that in a script's arguments, as it does under torchrun


class Script(Struct, frozen=True, kw_only=True):
    """A script, a module or a program that ranks run."""

    kind: ScriptKind
    target: str  # the path of a script, the name of a module, a program
    args: tuple[str, ...] = ()
    path: tuple[str, ...] = ()  # the module path behind the script's own folder; empty: the interpreter's own
    may_stand_by: bool = False  # it may run in a process that has imported torch before

    def of_rank(self, local_rank: int) -> Script:
        """Return the script as one rank runs it."""
        return replace(self, args=tuple(arg.replace(LOCAL_RANK, str(local_rank)) for arg in self.args))


class NodesPlan(Struct, frozen=True, kw_only=True):
    """What is settled about the machines of a run of several. Times are in seconds."""

    least: int
    most: int
    address: str  # where the run's own machine listens for others
    port: int = 0  # 0 for a free one
    last_call: float  # how long others may still come once there are enough
    join_timeout: float
    token: str = ""  # neither this nor the identity is written to the run folder
    identity: str = ""  # PEM of a private key and its certificate
    environment: dict[str, str]  # the option `env`: the ranks of other machines get it too
    omp_num_threads: int | None = None
    is_first: bool = True  # this is the machine that has started the run


class GroupPlan(Struct, frozen=True, kw_only=True):
    """What is settled about nodes that are each started by hand, as torchrun's are: they meet at an address, and nothing of ours travels."""

    least: int
    most: int
    node_rank: int = 0  # with static
    backend: str = "static"  # static | c10d
    address: str
    port: int
    local_address: str = ""  # c10d: at which the others reach this node, if it becomes the first
    join_timeout: float
    configs: dict[str, str] = {}  # c10d: torch's settings


class Plan(Struct, frozen=True, kw_only=True, tag="plan"):
    """All that an agent needs to do a run: written to `plan.json` and sent to the agent. Times are in seconds."""

    version: int = VERSION
    run_id: str
    name: str  # what is launched, as a person would say it: train(launcher)
    kind: str = "function"  # function | body | script
    script: Script | None = None  # of kind script, which has no payload
    folder: str
    payload: str  # path of the pickled function with its values; empty for a script
    sources: str  # path of the cells' texts, for tracebacks
    shared_dir: str | None = None  # folder on shared memory where values are written as long as there is room
    ranks: tuple[RankPlan, ...]  # local ranks, in order
    devices: str  # the chosen devices as one text, cuda:0,2
    devices_by: str = ""  # picked: the launch named none, and the notebook had set them with %elastic_devices
    device_type: str  # cpu | cuda
    dist_backend: str
    dist_init: bool = True
    max_restarts: int = 0
    monitor_interval: float = 0.1
    start_method: str = "spawn"
    preloaded: dict[str, float] = {}  # package: seconds that standby ranks have saved by importing it before
    start_note: str = ""  # why no standby ranks were used although there were some: PYTHONHASHSEED changed
    role: str = "default"
    rdzv_id: str = "none"
    rdzv_backend: str = "static"
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    nodes: NodesPlan | None = None  # machines that join; None: this one alone, or
    group: GroupPlan | None = None  # nodes that are each started by hand
    grace: float = 5.0
    timeout: float | None = None
    marker: str  # every process of the run carries it in its environment; the sweep finds them by it
    environment: dict[str, str]  # the ranks' environment, complete
    cwd: str
    sys_path: tuple[str, ...]
    pins: dict[str, str] = {}  # modules that processes which get ready find elsewhere
    umask: int
    inherited: Inherited | None = None
    interpreter: str
    wiring: Wiring = Wiring()
    kernel_pid: int

    @property
    def world_size(self) -> int:
        """Return the number of ranks on this node."""
        return len(self.ranks)

    @property
    def may_stand_by(self) -> bool:
        """Return whether processes that have imported torch before may do it. A script usually starts in one that has imported nothing."""
        return self.script is None or self.script.may_stand_by

    @property
    def boot_path(self) -> tuple[str, ...]:
        """Return the module path for processes that get ready."""
        return boot.boot_path(self.sys_path, self.cwd)

    def preparation(self) -> Preparation:
        """Return what an agent needs to get ready for this plan."""
        return Preparation(
            n_ranks=self.world_size,
            marker=self.marker,
            interpreter=self.interpreter,
            boot_path=self.boot_path,
            pins=self.pins,
            environment=self.environment,
            start_method=self.start_method if self.may_stand_by else "spawn",
            is_for_script=not self.may_stand_by,
            inherited=self.inherited,
            wiring=self.wiring,
            kernel_pid=self.kernel_pid,
        )


def with_places(plan: Plan, *, payload: Path | None, shared: Path | None) -> Plan:
    """Return the plan with where payload, if there is one, and values lie."""
    return replace(plan, payload=str(payload or ""), shared_dir=str(shared) if shared is not None else None)


class Owner(Struct, frozen=True, kw_only=True):
    """Who controls a run: written to `owner.json`, which the owner holds locked for as long as it lives."""

    process: Identity
    is_locked: bool  # the file system has locks: where it has none, the lock says nothing


class Go(Struct, frozen=True, kw_only=True):
    """What the agent tells a rank that is up and waits: who it is, and what to do. Paths are absolute."""

    name: str = ""  # what is launched
    attempt: int
    rank: int
    local_rank: int
    environment: dict[str, str]  # all of it: what the process was started with may be of an earlier time
    umask: int
    inherited: Inherited | None = None
    stdout: str | None = None  # a file or terminal to write to instead of the rank's own terminal
    stderr: str | None = None
    cwd: str
    sys_path: tuple[str, ...]
    payload: str
    script: Script | None = None
    sources: str  # the cells' texts: {file name: [label, text]} as JSON
    device: str  # torch's name of the assigned device
    dist_init: bool
    dist_backend: str
    results: tuple[str, ...]  # where the value may be written, the first that has room
    exception: str
    error_file: str
    stacks: str


# ---- what happened ------------------------------------------------------------------------------------------------------------------


HEADLINE_CHARACTERS = 500  # the most that a failure's headline has
LINE_CHARACTERS = 300  # the same of a line of source


class TracebackFrame(Struct, frozen=True, kw_only=True):
    """One frame of a rank's traceback."""

    where: str  # Cell In[3] | model.py | torch.nn.functional
    line: int
    function: str
    source: str = ""  # the text of the line, without indentation
    is_users: bool = True  # the user's own code: a cell or a local module


class Excerpt(Struct, frozen=True, kw_only=True):
    """The lines around the failing one."""

    where: str  # Cell In[3]
    first: int  # number of the first line given
    lines: tuple[str, ...]
    failing: int  # number of the failing line


class Failure(Struct, frozen=True, kw_only=True):
    """How a rank failed. Everything but `exit_code`, `signal` and `traceback` is the same in every repetition of the run."""

    kind: str  # raised | signal | exit
    headline: str  # one line: ValueError: bad loss
    type_name: str = ""  # ValueError
    frames: tuple[TracebackFrame, ...] = ()  # outermost first, trimmed to the user's frames and what they called
    excerpt: Excerpt | None = None
    traceback: str = ""  # the whole traceback as the rank would have printed it
    exit_code: int | None = None  # negative: ended by that signal
    is_communication: bool = False  # a broken connection: usually the echo of another rank's failure
    at: float = 0.0  # seconds since the epoch, the rank's clock


class Value(Struct, frozen=True, kw_only=True):
    """A rank's return value, described on the rank. The value itself lies in the file `path`."""

    path: str
    size_bytes: int
    type_name: str
    text: str  # its repr, bounded, addresses replaced
    html: str = ""  # its _repr_html_, when it has one and it is small


class RankStart(Struct, frozen=True, kw_only=True):
    """A rank of an attempt, as it was started."""

    rank: int
    local_rank: int
    device: str
    pid: int
    node: int = 0


class Event(Struct, frozen=True, kw_only=True, tag_field="event"):
    """The base of all events. `at` is in seconds since the epoch."""

    at: float


class RunBegun(Event, frozen=True, kw_only=True, tag="run_begun"):
    """The journal's first event: an agent has taken the plan."""

    agent: Identity
    note: str = ""  # why ranks are not forked although that was asked for
    version: int = VERSION


class AttemptBegun(Event, frozen=True, kw_only=True, tag="attempt_begun"):
    """The worker group is started. Attempts are counted by us from 0; `restart_count` is torch's."""

    attempt: int
    restart_count: int
    world_size: int
    ranks: tuple[RankStart, ...]
    start: str = ""  # standby: the ranks were up and waiting; forked, cold: they were started for this attempt
    has_others: bool = False  # on nodes that were started by hand: nothing is told of them here


class RankRunning(Event, frozen=True, kw_only=True, tag="rank_running"):
    """A rank has accepted its work: from here on its end is the run's affair."""

    attempt: int
    rank: int


class RankReplaced(Event, frozen=True, kw_only=True, tag="rank_replaced"):
    """A standby process did not start its work, and another one has its place."""

    attempt: int
    rank: int
    pid: int


class RankReturned(Event, frozen=True, kw_only=True, tag="rank_returned"):
    """A rank's function returned and its value is written."""

    attempt: int
    rank: int
    value: Value


class RankSucceeded(Event, frozen=True, kw_only=True, tag="rank_succeeded"):
    """A rank's script ended with exit code 0 and gave no value."""

    attempt: int
    rank: int


class ValueLost(Event, frozen=True, kw_only=True, tag="value_lost"):
    """A rank's function returned, and its value could not be written."""

    attempt: int
    rank: int
    reason: str  # one sentence that names rank and object


class RankFailed(Event, frozen=True, kw_only=True, tag="rank_failed"):
    """A rank raised or died."""

    attempt: int
    rank: int
    failure: Failure


class RankExited(Event, frozen=True, kw_only=True, tag="rank_exited"):
    """A rank's process is gone, and all that it printed is in its log. A negative code is the signal that ended it."""

    attempt: int
    rank: int
    exit_code: int
    note: str = ""  # a crash after the value was written, say


class OutputLost(Event, frozen=True, kw_only=True, tag="output_lost"):
    """Output of a rank is missing in its log files, so much in all by now."""

    attempt: int
    rank: int
    size_bytes: int
    reason: str  # the system's word: No space left on device


class AttemptFailed(Event, frozen=True, kw_only=True, tag="attempt_failed"):
    """The worker group failed, and `root` is the rank that did so first."""

    attempt: int
    root: int
    restarting: bool


class NodesAwaited(Event, frozen=True, kw_only=True, tag="nodes_awaited"):
    """Other machines can join from now on."""

    address: str
    port: int


class NodesGathering(Event, frozen=True, kw_only=True, tag="nodes_gathering"):
    """Nodes that were each started by hand look for each other: who is there by now."""

    where: str  # host:port
    here: tuple[str, ...]
    least: int
    most: int
    problem: str = ""  # why the meeting place is not reached yet


class NodeJoined(Event, frozen=True, kw_only=True, tag="node_joined"):
    """A machine takes part from the next round on."""

    node: int
    name: str
    n_ranks: int
    devices: str


class NodeLeft(Event, frozen=True, kw_only=True, tag="node_left"):
    """A machine does not take part any more."""

    node: int
    name: str
    reason: str  # left | was lost: …


class NodeRefused(Event, frozen=True, kw_only=True, tag="node_refused"):
    """Somebody who came to the run's port could not join."""

    address: str
    reason: str


class RoundEnded(Event, frozen=True, kw_only=True, tag="round_ended"):
    """An attempt was ended because the nodes changed, and no rank is to blame."""

    attempt: int
    reason: str  # node 1 (host) was lost
    restarting: bool


class StopReason(str, enum.Enum):
    """Why a run is being stopped. `runs.report` has the words for each."""

    STOP = "stop"  # asked for
    KILL = "kill"  # asked for, at once
    INTERRUPT = "interrupt"  # of the notebook, or Ctrl-C
    TERMINATED = "terminated"  # a signal to the launcher
    NO_READER = "no reader"  # whoever read what it prints is gone
    TIMEOUT = "timeout"  # its time is over
    KERNEL_GONE = "kernel gone"
    SIGNAL = "signal"  # to its agent
    LEFT = "left"  # this node was told to leave
    FIRST_NODE_GONE = "the first node is gone"
    RUN_ENDED = "the run has ended"  # on the other nodes

    def __str__(self) -> str:
        return self.value


class StopAsked(Event, frozen=True, kw_only=True, tag="stop_asked"):
    """The run is being stopped."""

    reason: StopReason


class Outcome(enum.Enum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


class RunEnded(Event, frozen=True, kw_only=True, tag="run_ended"):
    """No process of the run is left."""

    outcome: Outcome
    reason: str = ""  # why it was stopped, or why it failed when no rank did
    swept: int = 0  # processes that had to be found by the marker


AnyEvent = (
    RunBegun
    | AttemptBegun
    | RankRunning
    | RankReplaced
    | RankReturned
    | RankSucceeded
    | ValueLost
    | RankFailed
    | RankExited
    | OutputLost
    | AttemptFailed
    | NodesAwaited
    | NodesGathering
    | NodeJoined
    | NodeLeft
    | NodeRefused
    | RoundEnded
    | StopAsked
    | RunEnded
)

replace = msgspec.structs.replace  # a structure with some fields changed
_event_decoder: exact_json.Decoder[Any] = exact_json.Decoder(AnyEvent)
T = TypeVar("T")


def encode(value: object) -> bytes:
    """Return a structure as one line of JSON, without a newline."""
    return exact_json.encode(value)


def decode_event(line: bytes) -> Any:
    """Return the event of one line of a journal.

    Raises:
        msgspec.DecodeError: the line is not a whole event, as after a crash in the middle of a write.
    """
    return _event_decoder.decode(line)


def decode(line: bytes, kind: type[T]) -> T:
    """Return the structure of one line of JSON, checked against its fields."""
    return exact_json.decode(line, kind)
