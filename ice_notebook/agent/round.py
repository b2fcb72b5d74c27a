"""The ranks of one round on one of several nodes: the coordinator says when it is over, and what follows from a failure. In the agent."""

from __future__ import annotations

from typing import Any

from torch.distributed.elastic.multiprocessing import RunProcsResult

from ice_notebook.agent.attempt import AttemptContext, root_cause
from ice_notebook.agent.meeting import Meeting
from ice_notebook.agent.ranks import RankProcess
from ice_notebook.wire import node_messages as m


class RoundContext(AttemptContext):
    """See the module. Where another round is to begin, torch is told that nothing has happened: it then asks whether nodes wait, and they do."""

    _is_alone = False  # a change of nodes may begin another attempt at any time

    def __init__(self, meeting: Meeting, *attempt: Any) -> None:
        super().__init__(*attempt)
        self._meeting = meeting

    def _is_over(self) -> bool:
        return self._meeting.is_over(self._attempt)

    def _is_finished_everywhere(self) -> bool:
        return self._meeting.is_finished(self._attempt)

    def _settle(self, failed: list[RankProcess]) -> RunProcsResult | None:
        """Say who failed here, and wait for what the coordinator makes of it."""
        io, meeting, root = self._io, self._meeting, root_cause(failed)
        assert root.failure is not None
        meeting.tell_failed(
            m.RoundFailed(
                number=self._attempt,
                rank=root.rank,
                headline=root.failure.headline,
                is_communication=root.failure.is_communication,
            )
        )
        with io.condition:
            io.condition.wait_for(lambda: io.state.stop or self._is_over())
            self._raise_if_stopped()
        self._make_way()
        return None
