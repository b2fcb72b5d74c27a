"""What several tests need: waiting for a condition, a kernel to run cells in, and the search for what a run may have left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jupyter_client.manager import start_new_kernel

from ice_notebook.host import processes
from ice_notebook.kernel.pool import STANDBY_VARIABLE

HANG_S = 60.0  # generous: a machine with two cores imports torch in up to ten seconds when it is busy


def wait_until(condition: Callable[[], Any], timeout_s: float = HANG_S) -> Any:
    """Return the condition's value as soon as it is true; fail when it is not in time."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout_s} s"
        time.sleep(0.01)
    return value


def left_of(marker: str) -> list[int]:
    """Return the processes of a run that are still there. They are found by the marker in their environment, never by a name."""
    return processes.find_marked(marker)


def end_all(runs: Iterable[Any]) -> None:
    """Kill runs, and see that nothing of them is left."""
    for run in runs:
        run.kill()
        assert run.wait(30)
        wait_until(lambda run=run: not left_of(run.plan.marker), 5)


def wait_printed(run: Any, text: str, ranks: Iterable[int] | None = None, attempt: int | None = None) -> None:
    """Wait until every rank, or each of those given, has printed a text."""

    def is_printed() -> bool:
        assert not run.done(), f"the run is over, and not all ranks have printed {text!r}: {run}"
        attempts = [each.number for each in run.state.attempts]
        if not attempts or (attempt is not None and attempt not in attempts):
            return False
        return all(text in run.output(rank, attempt) for rank in (range(run.world_size) if ranks is None else ranks))

    wait_until(is_printed)


def python(code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """Start a Python program of its own, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


@dataclass
class Outcome:
    """What a cell has shown."""

    outputs: list[dict[str, Any]] = field(default_factory=list)  # messages' contents, with their type under "type"
    number: int = 0  # the cell's, as in In[number]

    @property
    def text(self) -> str:
        """Return all text: streams, displayed values, results."""
        return "\n".join(
            out.get("text", "") if out["type"] == "stream" else out.get("data", {}).get("text/plain", "") for out in self.outputs
        )

    @property
    def value(self) -> str:
        """Return the text of the cell's value."""
        return next((out["data"]["text/plain"] for out in self.outputs if out["type"] == "execute_result"), "")

    @property
    def error(self) -> str:
        """Return the error as it is drawn, without colours; empty when there is none."""
        drawn = ["\n".join(out["traceback"]) for out in self.outputs if out["type"] == "error"]
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(drawn))

    @property
    def error_name(self) -> str:
        return next((out["ename"] for out in self.outputs if out["type"] == "error"), "")

    @property
    def error_value(self) -> str:
        return next((out["evalue"] for out in self.outputs if out["type"] == "error"), "")


class Kernel:
    """A real ipykernel with the extension loaded.

    With `forks`, cells launch with `start_method=forkserver`, and the fork server stays: of all processes it alone imports torch.
    """

    def __init__(self, *, extension: bool = True, forks: bool = False, env: dict[str, str] | None = None, **options: Any) -> None:
        self._magic = "%%elastic_launch start_method=forkserver" if forks else "%%elastic_launch"
        env = {name: value for name, value in (env or os.environ).items() if not forks or name != STANDBY_VARIABLE}
        self.manager, self.client = start_new_kernel(
            kernel_name="python3", extra_arguments=["--IPKernelApp.log_level=50"], env=env, **options
        )
        if extension:
            outcome = self.run("%load_ext ice_notebook")
            assert not outcome.error, outcome.error

    @property
    def pid(self) -> int:
        return self.manager.provisioner.pid

    def run(self, code: str, timeout_s: float = HANG_S) -> Outcome:
        """Run a cell to its end."""
        return self.finish(self.start(code), timeout_s)

    def start(self, code: str) -> str:
        """Begin a cell, and return what `finish` needs."""
        if re.match(r"%%elastic_launch(?! --help)(?=[ \n])", code):
            code = code.replace("%%elastic_launch", self._magic, 1)
        # ipykernel 6.17 gives up requests that come while it still sees to the error of the cell before.
        return self.client.execute(code, allow_stdin=False, stop_on_error=False)

    def finish(self, request: str, timeout_s: float = HANG_S, until: Callable[[Outcome], bool] = lambda _: False) -> Outcome:
        """Wait for a cell's end, or until what it has shown so far satisfies `until`."""
        outcome = Outcome()
        end = time.monotonic() + timeout_s
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.01, end - time.monotonic()))
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "execute_input":
                outcome.number = content["execution_count"]
            if kind in {"stream", "display_data", "execute_result", "error"}:
                outcome.outputs.append({"type": kind, **content})
            if kind == "status" and content["execution_state"] == "idle":
                return outcome
            if until(outcome):
                return outcome

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the kernel, by its repr."""
        import ast

        outcome = self.run(expression)
        assert not outcome.error, outcome.error
        return ast.literal_eval(outcome.value)

    def interrupt(self) -> None:
        """Do what a notebook's interrupt button does: SIGINT to the kernel's process group."""
        self.manager.interrupt_kernel()

    def close(self) -> None:
        """Shut the kernel down in order, so that it takes away what it has on shared memory; a busy one is killed after 5 s."""
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=False)


@contextmanager
def later(seconds: float, action: Callable[[], Any]):
    """Do something in another thread after a while, or never when the block ends before."""
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
