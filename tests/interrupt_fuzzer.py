"""Interrupts launches in a real kernel at random moments, once, twice or three times in a row, and looks at what that leaves behind.

    python tests/interrupt_fuzzer.py --minutes 30 --seed 7

Whatever the moment: the cell ends, the run that its name is bound to ends, no process of it is left, the next launch works, and ranks stand by
again. A round that breaks one of these is printed with its seed and number, by which `--only` plays it alone.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from support import HANG_S, Kernel, Outcome

BEGINNING_S = 0.15  # a warm launch has begun by then: most of what can be broken off is before
LATE_S = 1.0
CELL = """\
%%elastic_launch devices=cpu:0-1 grace=2 {options} -o {name}
def work(launcher):
    import time
    try:
        time.sleep({seconds})
    finally:
        print("unwound")
"""
CHECKS = """\
def _unclean(name):
    import time
    from ice_notebook.host import processes
    from ice_notebook.kernel.pool import pool
    def what():
        run, here = globals().get(name), pool()
        if run is not None and not run.done():
            return f"{name} is bound to a run that does not end: {run}"
        with here._lock:
            if any(not each.done() for each in here._running):
                return "the pool waits for a run that does not end"
            servers = [*here._retired, *([here._server] if here._server is not None else [])]
            known = {each.preparation.marker for each in (*here._sets, *servers)}
        left = [pid for pid in processes._pids() if processes.marker_of(pid) not in {None, *known} and _is_ours(pid)]
        return f"processes are left: {left}" if left else ""
    until = time.monotonic() + 20
    while (found := what()) and time.monotonic() < until:
        time.sleep(0.02)
    return found

def _is_ours(pid):
    try:
        return b"ICE_FUZZER=%d" % _me in open(f"/proc/{pid}/environ", "rb").read()
    except OSError:
        return False

import os
_me = os.getpid()
os.environ["ICE_FUZZER"] = str(_me)
"""


@dataclass
class Round:
    """What one round did and found."""

    number: int
    options: str
    moments: list[float]
    error: str = ""
    fault: str = ""

    def __str__(self) -> str:
        times = ", ".join(f"{1000 * moment:.0f}" for moment in self.moments)
        return f"round {self.number}: {self.options!r}, interrupts after {times} ms: {self.error or 'no error'}: {self.fault or 'clean'}"


@dataclass
class Fuzzer:
    """Plays rounds in one kernel. The seed and the number of a round settle what it does."""

    seed: int
    kernel: Kernel
    rounds: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        outcome = self.kernel.run(CHECKS)
        assert not outcome.error, outcome.error

    @property
    def faults(self) -> list[str]:
        return [str(each) for each in self.rounds if each.fault]

    def play(self, number: int) -> Round:
        """Play one round."""
        chance = random.Random(f"{self.seed}:{number}")
        options = " ".join(
            filter(None, [chance.choice(["", "", "start_method=forkserver"]), chance.choice(["", "", "background"])])
        )
        first = chance.uniform(0, BEGINNING_S if chance.random() < 0.8 else LATE_S)
        gaps = [chance.choice([0.0, 0.001, chance.uniform(0, 0.05)]) for _ in range(chance.choice([0, 0, 1, 2]))]
        moments = [first + sum(gaps[:n]) for n in range(len(gaps) + 1)]
        done = Round(number, options, moments)
        self.rounds.append(done)
        name = f"run{number}"
        request = self.kernel.start(CELL.format(options=options, name=name, seconds=chance.choice([0, 0.3, 10_000])))
        is_over = threading.Event()
        sender = threading.Thread(target=self._interrupt, args=[moments, is_over])
        sender.start()
        try:
            outcome = self.kernel.finish(request)
        except Exception as error:  # the queue of its messages stays empty
            done.fault = f"the cell does not end ({type(error).__name__})"
            return done
        finally:
            is_over.set()
            sender.join()
        done.error = outcome.error_name
        done.fault = self._fault(outcome, name)
        return done

    def _interrupt(self, moments: list[float], is_over: threading.Event) -> None:
        began = time.monotonic()
        for moment in moments:
            if not is_over.wait(max(0.0, began + moment - time.monotonic())):
                os.kill(self.kernel.pid, signal.SIGINT)

    def _fault(self, outcome: Outcome, name: str) -> str:
        if outcome.error_name not in {"", "KeyboardInterrupt"}:
            return f"another error than the interrupt: {outcome.error}"
        if outcome.error_name and "ice_notebook/" in outcome.error:
            return f"frames of ours are shown: {outcome.error}"
        # An interrupt that came when the cell was over may hit these cells: they are asked again.
        for _ in range(len(self.rounds[-1].moments) + 1):
            asked = self.kernel.run(f"globals().get({name!r}) is not None and {name}.stop()\n_unclean({name!r})", 2 * HANG_S)
            if asked.error_name != "KeyboardInterrupt":
                return asked.error or eval(asked.value)
        return "the kernel cannot be asked"

    def launch(self) -> str:
        """Return what is wrong with a launch that nobody interrupts, and with what stands by after it."""
        outcome = self.kernel.run("%%elastic_launch devices=cpu:0-1 -o plain\ndef work(launcher):\n    return launcher.rank\n")
        if outcome.error or "rank 1: 1" not in outcome.value:
            return f"a launch afterwards: {outcome.error or outcome.text}"
        asked = self.kernel.run(
            "import time\nfrom ice_notebook.kernel.pool import pool\nuntil = time.monotonic() + 60\n"
            "while 'ready' not in pool().describe().split(';')[0].replace('getting ready', '') and time.monotonic() < until:\n"
            "    time.sleep(0.05)\npool().describe()",
            2 * HANG_S,
        )
        return "" if "ready" in asked.value.replace("getting ready", "") else f"no ranks stand by: {asked.error or asked.value}"


def main() -> int:
    """Play rounds for a while, and return 1 if one of them left something behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="play this round alone, again and again")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        kernel = Kernel(env={**os.environ, "XDG_CACHE_HOME": cache})
        try:
            return _play(Fuzzer(asked.seed, kernel), asked)
        finally:
            kernel.close()


def _play(fuzzer: Fuzzer, asked: argparse.Namespace) -> int:
    until = time.monotonic() + 60 * asked.minutes
    number = 0
    while time.monotonic() < until:
        done = fuzzer.play(number if asked.only is None else asked.only)
        if done.fault:
            print(done, flush=True)
        number += 1
        if number % 20 == 0 and (fault := fuzzer.launch()):
            done.fault = fault
            print(done, flush=True)
    errors = Counter(each.error or "none" for each in fuzzer.rounds)
    print(f"seed {asked.seed}: {number} rounds, errors {dict(errors)}, {len(fuzzer.faults)} faults")
    return int(bool(fuzzer.faults))


if __name__ == "__main__":
    sys.exit(main())
