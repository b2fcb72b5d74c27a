"""Lines of eight ranks in a page of JupyterLab: does it stay smooth, and how late are they? In Chromium, as the browser tests drive it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks import family, probe
from benchmarks.bench import Bench, Facts, Row, words
from benchmarks.figures import Beyond, Value
from benchmarks.pump import N_RANKS
from benchmarks.session import ROOT, read_notes
from benchmarks.views import OURS, VIEWS, View

RATES = {"1k": 1_000, "10k": 10_000, "100k": 100_000}  # lines a second, of all ranks together
SECONDS = 10.0
READY_S = 120.0  # for all ranks to be there
CALM_S = 2.0  # the page comes to rest before the first line; without a new line for so long it counts as at rest
LIMIT_S = 60.0  # after the last line; a page that has not drawn it by then is stuck
_LINE = re.compile(r"@\d+\.\d{3} \d (\d{7}) loss [\d.]+ \.+")


class _Stuck(Exception):
    """The page did not answer in time."""


def measure(view: View, scratch: Path, rate: int, seconds: float = SECONDS) -> Facts:
    """Show lines in a page, and return what page, kernel and files say of them."""
    folder = scratch / f"lines-{secrets.token_hex(4)}"
    folder.mkdir()
    with _page(view.setup, view.cell((str(folder), rate / N_RANKS, seconds))) as (page, marker):
        page.run_cell(0)
        kernel = page.execute("import os", "os.getpid()")
        page.page.evaluate(probe.START, {"panel": view.panel, "text": ".jp-Cell .jp-OutputArea-output pre"})
        page.run_cell(1, wait=False)
        _wait(lambda: len(list(folder.glob("*.ready"))) == N_RANKS, READY_S, "the ranks did not begin")
        time.sleep(CALM_S)
        facts = _let_go(_processes(marker, kernel), folder / "go", seconds)
        try:
            with _limit():
                facts |= _after(view, page, folder)
        except _Stuck:
            facts |= {"answers": ["stuck"], "gap": [Beyond(1000 * LIMIT_S)], "last": [Beyond(LIMIT_S)]}
    return facts


def _let_go(processes: Mapping[str, Sequence[psutil.Process]], go: Path, seconds: float) -> dict[str, list[Value]]:
    """Have the ranks print, and return the CPU time of each kind of process meanwhile, in percent of a core."""
    before, began = {kind: _cpu_s(some) for kind, some in processes.items()}, time.monotonic()
    go.touch()
    time.sleep(seconds)
    took = time.monotonic() - began
    return {f"cpu_{kind}": [100 * (_cpu_s(some) - before[kind]) / took] for kind, some in processes.items() if some}


def _after(view: View, page: Any, folder: Path) -> dict[str, list[Value]]:
    """Wait until the page is at rest, and return what it did while lines were printed."""
    notes = _wait(lambda: len(found := read_notes(folder)) == N_RANKS and found, LIMIT_S, "the ranks did not end")
    begun, ended = max(note["begun"] for note in notes.values()), min(note["ended"] for note in notes.values())
    while page.page.evaluate(probe.REST) < CALM_S:
        time.sleep(0.1)
    page.wait_idle(LIMIT_S)
    facts = probe.figures_of(page.page.evaluate(probe.READ), begun, ended)
    facts["rate"] = [sum(note["printed"] for note in notes.values()) / (ended - begun)]
    facts["answers"] = ["yes"]
    facts["left_out"] = [words("rate exceeded" in page.server.log)]
    page.save()
    facts["saved"] = [(page.server.root / page.name).stat().st_size / 1000]
    if view is OURS:
        if "delay" not in facts:
            raise RuntimeError("the panel shows no line")
        facts["complete"] = [_complete(Path(page.value("str(run.folder)")), notes)]
    return facts


def _complete(folder: Path, notes: Mapping[int, Mapping[str, float]]) -> float:
    """Return the percentage of all lines that the log files hold whole and in order."""
    held = 0
    for rank in notes:
        expected = 0
        for line in (folder / "attempt_0" / str(rank) / "output.log").read_text().splitlines():
            found = _LINE.fullmatch(line)
            expected += found is not None and int(found[1]) == expected
        held += expected
    return 100 * held / sum(note["printed"] for note in notes.values())


# ---- the page -------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _page(*cells: str) -> Iterator[tuple[Any, str]]:
    """Yield a page with these cells in a server, a browser and a kernel of its own, and the marker that all of them carry."""
    if (tests := str(ROOT / "tests" / "browser")) not in sys.path:
        sys.path.append(tests)
    from harness import Browser, JupyterLab  # the browser tests' own; needed for these benches only
    from playwright.sync_api import Error

    marker = secrets.token_hex(12)
    os.environ[family.MARKER] = marker
    try:
        with JupyterLab() as lab, contextlib.suppress(Error), Browser() as browser:
            yield browser.open(lab, lab.notebook(list(cells))), marker
    finally:
        family.end(marker)
        del os.environ[family.MARKER]


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    """Raise `_Stuck` when the page does not answer for too long. Nothing but the end of its browser ends the wait for such a page."""
    from playwright.sync_api import Error

    timer = threading.Timer(LIMIT_S, lambda: [process.kill() for process in _browser()])
    timer.start()
    try:
        yield
    except Error as error:
        raise _Stuck from error
    finally:
        timer.cancel()


# ---- processes ------------------------------------------------------------------------------------------------------------------------


def _processes(marker: str, kernel: int) -> dict[str, list[psutil.Process]]:
    agents = [pid for pid in family.members(marker) if family.kind(pid) == "agent"]
    return {"kernel": [psutil.Process(kernel)], "agent": [psutil.Process(pid) for pid in agents], "browser": _browser()}


def _browser() -> list[psutil.Process]:
    """Return the processes of Chromium; those that its zygote forks carry no environment."""
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith(("chrom", "google-chrome"))]


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _wait(condition: Callable[[], Any], timeout_s: float, trouble: str) -> Any:
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > until:
            raise RuntimeError(trouble)
        time.sleep(0.05)
    return value


# ---- the tables -----------------------------------------------------------------------------------------------------------------------

_ABOUT = (
    f"Eight ranks print lines of 93 characters with a time in each, for {SECONDS:g} s, and a page of JupyterLab in Chromium shows them: the "
    "panel of a `%%elastic_launch`, with its agent, terminals and log files; or the output of a cell, or an `ipywidgets.Output`, into which a cell "
    "writes what has come from eight processes, 10 times a second. The page notes each frame, and after it when the newest lines in it were "
    "printed: in the panel those in sight, with the chips, and as many at the end of the others. The kernel of the others reads the lines; "
    f"with ice_notebook the agent does, and writes the files. A page that has not drawn the last line {LIMIT_S:g} s after it was printed is stuck."
)
_ROWS = (
    Row("rate", "lines printed per second", "per s"),
    Row("answers", "the page answers", ""),
    Row("frames", "frames per second", "per s"),
    Row("gap", "longest time between two frames", "ms"),
    Row("delay", "line printed → drawn, median", "ms"),
    Row("delay_99", "line printed → drawn, 99 of 100", "ms"),
    Row("last", "last line drawn after it was printed"),
    Row("cpu_kernel", "kernel: CPU time of a core", "%"),
    Row("cpu_agent", "agent: CPU time of a core", "%"),
    Row("cpu_browser", "browser: CPU time of a core", "%"),
    Row("left_out", "the server left messages out", ""),
    Row("saved", "saved notebook", "kB"),
    Row("complete", "lines whole and in order in the log files", "%"),
)


def _bench(name: str, rate: int) -> Bench:
    is_first = rate == min(RATES.values())
    about = _ABOUT if is_first else f"The same at {rate:,} lines a second."
    return Bench(
        name=f"panel_{name}",
        title=f"In the page: {rate:,} lines a second",
        about=about,
        rows=_ROWS,
        measure=partial(measure, rate=rate),
        peers=VIEWS,
        needs=("jupyterlab", "playwright", "pytest"),
    )


BENCHES = tuple(_bench(name, rate) for name, rate in RATES.items())
