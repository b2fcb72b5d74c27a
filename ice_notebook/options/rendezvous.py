"""What the options say of nodes: where they meet, how long they wait, and what of it goes together. Nothing is looked up."""

from __future__ import annotations

from collections.abc import Mapping

from ice_notebook.errors import OptionError, written
from ice_notebook.options.grammars import Nodes, Seconds

LOOPBACK = "127.0.0.1"
LAST_CALL_S = 1.0  # torch waits 30 s for nodes beyond the least number; here a late one begins a new round whenever it comes
JOIN_TIMEOUT_S = 600.0  # torch's
_ALONE = "the first says that this node is alone; leave one out."
_MUST_KNOW = "all nodes must know where they meet: give"
_NODE_0 = (
    "the machine of the notebook is node 0. Launch there, and run the command that the run shows, `python -m ice_notebook join …`, on the "
    "others."
)


def host_and_port(endpoint: str) -> tuple[str, int]:
    """Return the host and the port of an endpoint; 0, any free port, when it names none."""
    bracketed, _, rest = endpoint.rpartition("]")
    host, _, port = rest.partition(":")
    return bracketed.strip("[") or host, int(port or 0)


def numeric(host: str) -> str:
    """Return a loopback host as an address: no host name is looked up on the way of a launch."""
    return LOOPBACK if host == "localhost" else host.strip("[]")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine by its loopback address."""
    return host.strip("[]") in {"localhost", "::1", "0:0:0:0:0:0:0:1"} or host.startswith("127.")


def seconds_of(configs: Mapping[str, str], name: str) -> float | None:
    """Return a setting of the rendezvous that is a time, None when it is not given."""
    if name not in configs:
        return None
    try:
        return float(Seconds(or_zero=True).parse(configs[name]))
    except ValueError:
        raise OptionError.invalid("rdzv_configs", f"{name}={configs[name]}", f"{name}=SECONDS") from None


class NodeOptions:
    """The options that say something of nodes, and what follows from them. `LaunchOptions` is one."""

    nnodes: tuple[int, int]
    node_rank: int
    rdzv_backend: str
    rdzv_endpoint: str
    rdzv_configs: dict[str, str]
    standalone: bool
    master_addr: str
    master_port: int | None

    @property
    def has_other_nodes(self) -> bool:
        """Return whether other machines may take part."""
        return self.nnodes[1] > 1

    @property
    def node_meeting_place(self) -> tuple[str, int]:
        """Return the address and the port where other nodes join; port 0 is any free one."""
        if self.rdzv_endpoint:
            host, port = host_and_port(self.rdzv_endpoint)
            return numeric(host), port
        return numeric(self.master_addr), 0

    @property
    def meeting_port(self) -> int:
        """Return the port at which nodes that are started by hand meet, 0 when none is named."""
        port = host_and_port(self.rdzv_endpoint)[1]
        return port or self.master_port or 0 if self.rdzv_backend == "static" else port

    @property
    def last_call_s(self) -> float:
        """Return how long a run that has nodes enough waits for more of them."""
        given = seconds_of(self.rdzv_configs, "last_call_timeout")
        return LAST_CALL_S if given is None else given

    @property
    def join_timeout_s(self) -> float:
        """Return how long a run waits for the nodes that it needs."""
        given = seconds_of(self.rdzv_configs, "join_timeout")
        given = seconds_of(self.rdzv_configs, "timeout") if given is None else given
        return JOIN_TIMEOUT_S if given is None else given

    @property
    def meeting_place(self) -> tuple[str, int]:
        """Return the address and the port of the ranks' store; port 0 is any free one."""
        if self.standalone:
            return LOOPBACK, 0
        if self.has_other_nodes:
            return self.node_meeting_place[0], self.master_port or 0
        host, port = host_and_port(self.rdzv_endpoint) if self.rdzv_endpoint else (self.master_addr, 0)
        # Of one node the loopback will do, by whatever name and address the node is known to others.
        return numeric(host) if is_loopback(host) else LOOPBACK, self.master_port or port


# ---- what goes together --------------------------------------------------------------------------------------------------------------------


def check_nodes(options: NodeOptions) -> None:
    """Check what is said of the nodes of a launch: of one, or of several of which this one is the first and the others join.

    Raises:
        OptionError: it contradicts itself, or describes other nodes when this one is alone.
    """
    _refuse_two_meeting_places(options)
    _refuse_other_nodes(options)
    _refuse_two_ports(options)


def check_nodes_by_hand(options: NodeOptions) -> None:
    """Check what is said of a node that is one of several, each started by hand, and looks for the others itself.

    Raises:
        OptionError: they could not meet.
    """
    number = Nodes().format(options.nnodes)
    if options.standalone:
        raise OptionError.conflict(written("standalone"), written("nnodes", number), _ALONE)
    if options.rdzv_backend == "static":
        if options.nnodes[0] != options.nnodes[1]:
            range_needs = f"a range needs {written('rdzv_backend', 'c10d')}; with static the number of nodes is fixed."
            raise OptionError.refused("nnodes", number, range_needs)
        if options.node_rank >= options.nnodes[1]:
            numbers = f"nodes are numbered from 0 to {options.nnodes[1] - 1} with {written('nnodes', number)}."
            raise OptionError.refused("node_rank", str(options.node_rank), numbers)
        if not options.meeting_port:
            raise OptionError.refused("nnodes", number, f"{_MUST_KNOW} {written('master_addr')} and {written('master_port')}.")
    elif not options.rdzv_endpoint or not options.meeting_port:
        raise OptionError.refused("nnodes", number, f"{_MUST_KNOW} {written('rdzv_endpoint', 'HOST:PORT')}.")
    else:
        _refuse_one_port(options)


def _refuse_other_nodes(options: NodeOptions) -> None:
    """Refuse, by name, what describes other nodes when this one is alone, and what cannot be said of several.

    An address of the one node is no such thing: schedulers' scripts give it whatever the number of nodes.
    """
    if options.has_other_nodes:
        _refuse_for_several_nodes(options)
        return
    one_node = f"there is one node, which is number 0, unless {written('nnodes')} says otherwise."
    if options.node_rank != 0:
        raise OptionError.refused("node_rank", options.node_rank, one_node)
    if options.rdzv_configs.get("rank", "0") != "0" and not options.standalone:
        raise OptionError.refused("rdzv_configs", f"rank={options.rdzv_configs['rank']}", one_node)


def _refuse_for_several_nodes(options: NodeOptions) -> None:
    if options.standalone:
        raise OptionError.conflict(written("standalone"), written("nnodes", Nodes().format(options.nnodes)), _ALONE)
    for name, number in (("node_rank", str(options.node_rank)), ("rdzv_configs", options.rdzv_configs.get("rank", "0"))):
        if number != "0":
            found = number if name == "node_rank" else f"rank={number}"
            raise OptionError.refused(name, found, _NODE_0)
    for name in ("last_call_timeout", "join_timeout", "timeout"):
        seconds_of(options.rdzv_configs, name)


def _refuse_two_meeting_places(options: NodeOptions) -> None:
    """Refuse an endpoint beside `standalone`: torch would not use it, and say nothing."""
    if options.standalone and options.rdzv_endpoint:
        raise OptionError.conflict(
            written("standalone"),
            written("rdzv_endpoint", options.rdzv_endpoint),
            "a node that is alone meets nobody there; leave one of them out.",
        )


def _refuse_two_ports(options: NodeOptions) -> None:
    port = host_and_port(options.rdzv_endpoint)[1]
    if options.has_other_nodes:
        _refuse_one_port(options)
    elif port and options.master_port and port != options.master_port and not options.standalone:
        raise OptionError.conflict(
            written("rdzv_endpoint", options.rdzv_endpoint),
            written("master_port", options.master_port),
            "they name two ports for one meeting place; give one.",
        )


def _refuse_one_port(options: NodeOptions) -> None:
    """Refuse one port for two things: where nodes meet, and the ranks' store."""
    if options.master_port and host_and_port(options.rdzv_endpoint)[1] == options.master_port:
        raise OptionError.conflict(
            written("rdzv_endpoint", options.rdzv_endpoint),
            written("master_port", options.master_port),
            "nodes meet at the one and ranks at the other; give two ports.",
        )
