"""Giving a process that is ready its place as a rank: its logs are opened, and what it has printed so far goes there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from ice_notebook.agent.ranks import RankProcess
from ice_notebook.agent.state import AgentState
from ice_notebook.agent.terminals import Terminals
from ice_notebook.host.writing import AppendedFile
from ice_notebook.runs.stream_index import StreamIndexWriter
from ice_notebook.wire import protocol as p


class Places:
    """See the module."""

    def __init__(self, state: AgentState, terminals: Terminals, wiring: Callable[[], p.Wiring]) -> None:
        self._state = state
        self._terminals = terminals
        self._wiring = wiring

    def place(self, rank: RankProcess, go: p.Go, tee: p.Std) -> p.Go:
        """Give a process its place, and return `go` with the paths of teed streams."""
        folder = self._state.folder
        output = folder.output_log(go.attempt, go.rank)
        with self._state.condition:
            rank.attempt, rank.rank, rank.local_rank = go.attempt, go.rank, go.local_rank
            rank.is_script = go.script is not None
            rank.is_program = go.script is not None and go.script.kind is p.ScriptKind.PROGRAM
            for stream in rank.streams:
                stream.files.append(AppendedFile(output))
            if self._wiring().is_apart:
                with contextlib.suppress(OSError):  # no room: all is stdout then
                    rank.index = StreamIndexWriter(output)
            paths = {p.Std.OUT: go.stdout, p.Std.ERR: go.stderr}
            for std in (p.Std.OUT, p.Std.ERR):
                if std & tee and (path := self._tee(rank, std, output, folder.stream_log(go.attempt, go.rank, std))):
                    paths[std] = path
            for stream in rank.streams:
                early, stream.early = bytes(stream.early), bytearray()
                if early:
                    self._terminals.take(stream, early)
        return p.replace(go, stdout=paths[p.Std.OUT], stderr=paths[p.Std.ERR])

    def _tee(self, rank: RankProcess, std: p.Std, output: Path, own: Path) -> str:
        """Have a stream written to a file of its own too. Return the path by which the rank opens that stream, empty when it has it already."""
        streams = [stream for stream in rank.streams if stream.std is std]
        for stream in streams:
            stream.files.append(AppendedFile(own))
        if streams:
            return ""
        stream, path = rank.open_stream(std, self._wiring())
        stream.files += [AppendedFile(output), AppendedFile(own)]
        self._terminals.watch(stream)
        return path
