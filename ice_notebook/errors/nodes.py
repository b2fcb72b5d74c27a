"""What goes wrong between machines, and its sentence. Raised in agents and in the process that joins: a notebook has it as a run's reason."""

from __future__ import annotations

from collections.abc import Sequence

from ice_notebook.errors import IceNotebookError, join


class NodeError(IceNotebookError, ConnectionError):
    """Another machine cannot join a run, or this one cannot."""

    @classmethod
    def unreadable_token(cls, n_characters: int) -> NodeError:
        return cls(
            f"The token cannot be read: it is one word of 64 letters, digits, - and _, and this one has {n_characters} characters. "
            "Copy the whole command that the run shows, or put its token into ICE_NOTEBOOK_TOKEN."
        )

    @classmethod
    def no_token(cls) -> NodeError:
        return cls("There is no token: put the one that the run shows into ICE_NOTEBOOK_TOKEN, or send it to standard input.")

    @classmethod
    def no_address(cls) -> NodeError:
        return cls("There is no address of a run: write the one that the run shows, `join HOST:PORT`.")

    @classmethod
    def more_words(cls, word: str) -> NodeError:
        return cls(f"{word!r} is a word too many: only options follow HOST:PORT, such as --devices cuda:0.")

    @classmethod
    def unreadable_address(cls, text: str) -> NodeError:
        return cls(f"{text!r} is not the address of a run: expected HOST:PORT, as the run shows it, such as 192.168.1.1:29501.")

    @classmethod
    def unknown_host(cls, host: str, error: OSError) -> NodeError:
        return cls(f"The host {host!r} is not known here: {error.strerror or error}. Give an address of it instead.")

    @classmethod
    def unreachable(cls, where: str, timeout_s: float, error: OSError) -> NodeError:
        return cls(
            f"No run was reached at {where} within {timeout_s:g} s: {error.strerror or error}. "
            "Start the run, and let the port through the firewall between the two machines."
        )

    @classmethod
    def no_run(cls, where: str) -> NodeError:
        return cls(
            f"What listens at {where} is not an ice_notebook run. A torchrun there cannot be joined: nodes join a run that a notebook has "
            "started, with the command that it shows."
        )

    @classmethod
    def other_run(cls, where: str) -> NodeError:
        return cls(
            f"The run at {where} is not the one that this token belongs to. Every run has its own token: copy the join command again."
        )

    @classmethod
    def token_refused(cls, where: str) -> NodeError:
        return cls(f"The run at {where} does not accept the token. Every run has its own token: copy the join command again.")

    @classmethod
    def other_version(cls, where: str) -> NodeError:
        return cls(f"The run at {where} speaks another version of this protocol. Install the same ice_notebook on both machines.")

    @classmethod
    def wrong_token(cls) -> NodeError:
        return cls("It does not have the run's token.")

    @classmethod
    def no_proof(cls, error: BaseException) -> NodeError:
        return cls(f"The connection closed before it had proved the run's token: {error or type(error).__name__}.")

    @classmethod
    def torchrun(cls) -> NodeError:
        return cls("It is a torchrun, or another client of torch's TCPStore. Other nodes run `python -m ice_notebook join`.")

    @classmethod
    def garbage(cls) -> NodeError:
        return cls("What it sent is not the beginning of a TLS connection. Other nodes run `python -m ice_notebook join`.")

    @classmethod
    def versions(cls, what: str, theirs: str, ours: str) -> NodeError:
        return cls(f"It has {what} {theirs}, and the run has {ours}. Install the same version on both machines.")

    @classmethod
    def full(cls, most: int) -> NodeError:
        return cls(f"The run already has {most} nodes, the most it allows.")

    @classmethod
    def over(cls) -> NodeError:
        return cls("The run is ending.")

    @classmethod
    def refused(cls, why: str) -> NodeError:
        return cls(f"The run refuses this node: {why}")

    @classmethod
    def broken_off(cls, error: BaseException) -> NodeError:
        return cls(f"The run broke off while this node got ready ({error or type(error).__name__}); it may have ended.")

    @classmethod
    def backend(cls, theirs: str, ours: str) -> NodeError:
        return cls(
            f"The ranks of this node would meet by {ours} and those of the run do by {theirs}: "
            "choose devices of the same kind, one rank each, or launch with dist_backend=gloo."
        )

    @classmethod
    def port(cls, address: str, port: int, error: OSError) -> NodeError:
        return cls(
            f"Other nodes cannot join at {address}:{port}: {error.strerror or error}. "
            "Give an address of this machine, and a port of it that nobody uses."
        )

    @classmethod
    def not_met(cls, where: str, here: Sequence[str], n_nodes: int, timeout_s: float) -> NodeError:
        who = f"{len(here)} of {n_nodes} did ({join(here, 'and')})" if here else f"none of {n_nodes} did"
        return cls(
            f"The nodes did not all meet at {where} within {timeout_s:g} s: {who}. Start every node with the same "
            "meeting place and nnodes, with static a node_rank of its own, and let the port through the firewall."
        )

    @classmethod
    def not_reached(cls, where: str, why: str, timeout_s: float) -> NodeError:
        return cls(
            f"The nodes' meeting place {where} was not reached within {timeout_s:g} s: {why}. Start the node that has this address, and let "
            "the port through the firewall."
        )

    @classmethod
    def meeting_lost(cls, where: str) -> NodeError:
        return cls(
            f"The connection to the nodes' meeting place {where} was lost: the node that had it has ended, or is not reached any more."
        )

    @classmethod
    def meeting_closed(cls, where: str) -> NodeError:
        return cls(f"The nodes' meeting at {where} was ended by another node. Start every node again.")

    @classmethod
    def unreadable_state(cls, where: str) -> NodeError:
        return cls(
            f"What lies at the nodes' meeting place {where} was not written by this version of ice_notebook. Start every node with the same one, "
            "and let nobody else reach the port."
        )

    @classmethod
    def torchrun_came(cls, where: str) -> NodeError:
        return cls(
            f"A node that came to {where} was started with torchrun, which cannot take part: every round has a store of its own here. "
            "Start every node with ice_notebook launch, or every node with torchrun."
        )

    @classmethod
    def torchrun_listens(cls, where: str) -> NodeError:
        return cls(
            f"What listens at {where} is not an ice_notebook node, but a torchrun or another store of torch's. Start every node with "
            "ice_notebook launch, or every node with torchrun."
        )

    @classmethod
    def silent(cls, where: str, timeout_s: float) -> NodeError:
        return cls(f"The first node that met at {where} did not say within {timeout_s:g} s where the ranks' store is: it was lost.")

    @classmethod
    def store(cls, where: str, timeout_s: float) -> NodeError:
        return cls(
            f"The store of the ranks at {where} was not reached within {timeout_s:g} s. Name its port with master_port, and let that "
            "through the firewall between the machines."
        )
