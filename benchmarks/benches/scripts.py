"""A script from a terminal: when is its first line there, and when is the launcher gone?"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import OURS, Bench, Facts, Row
from benchmarks.peers import N_RANKS

_LIMIT_S = 60.0
_WORD = "first line"
# What is launched: without torch the launcher's own time is seen, with it what a training waits for.
_SCRIPTS = {
    "plain": f"print({_WORD!r})\n",
    "torch": f"import torch\nimport torch.distributed as dist\ndist.init_process_group('gloo')\nprint({_WORD!r})\ndist.destroy_process_group()\n",
}


@dataclass(frozen=True)
class Command:
    """A launcher of scripts."""

    name: str
    title: str
    words: tuple[str, ...]


COMMANDS = (
    Command(OURS, "ice_notebook launch", ("-m", "ice_notebook", "launch", "--devices", f"cpu:0-{N_RANKS - 1}")),
    Command("torchrun", "torchrun", ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(N_RANKS))),
)


def _measure(command: Command, scratch: Path) -> Facts:
    facts: dict[str, list[float]] = {}
    for kind, text in _SCRIPTS.items():
        script = scratch / f"with_{kind}.py"  # torch.py would be found in the place of torch
        script.write_text(text)
        line_s, exit_s = _launch(command, script)
        facts[f"{kind}_line"], facts[f"{kind}_exit"] = [line_s], [exit_s]
    return facts


def _launch(command: Command, script: Path) -> tuple[float, float]:
    """Return the seconds from the launcher's start to the script's first line, and to its own end."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command.words, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    line_at = None
    for line in process.stdout:
        if line_at is None and _WORD in line:
            line_at = time.perf_counter()
    if process.wait(_LIMIT_S) or line_at is None:
        raise RuntimeError(f"{command.title}: {script.name} failed")
    return line_at - began, time.perf_counter() - began


BENCH = Bench(
    "scripts",
    "A script from a terminal",
    f"The same script on {N_RANKS} CPU ranks, each launch a program of its own, from its start. One script prints a line and is over; the other "
    "imports torch and makes a gloo group first.",
    (
        Row("plain_line", "a line: first line"),
        Row("plain_exit", "a line: the launcher has ended"),
        Row("torch_line", "torch and a group: first line"),
        Row("torch_exit", "torch and a group: the launcher has ended"),
    ),
    _measure,
    COMMANDS,
)
