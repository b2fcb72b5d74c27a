"""What loading the extension costs a kernel."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench import Bench, Facts, Row, words
from benchmarks.peers import OURS, Peer
from benchmarks.session import Session

_TIMED = """
import sys, threading, time
_threads = threading.active_count()
_began = time.perf_counter()
import ipywidgets
_widgets_s = time.perf_counter() - _began
_began = time.perf_counter()
get_ipython().run_line_magic("load_ext", "ice_notebook")
_load_s = time.perf_counter() - _began
_threads = threading.active_count() - _threads
"""


def _measure(_peer: Peer, scratch: Path) -> Facts:
    with Session(scratch) as session:
        session.check(_TIMED)
        widgets_s, load_s, has_torch, threads = session.value("[_widgets_s, _load_s, 'torch' in sys.modules, _threads]")
        return {
            "widgets": [widgets_s],
            "load": [load_s],
            "torch": [words(has_torch)],
            "started": [f"{threads} threads, {len(session.others())} processes"],
        }


BENCH = Bench(
    name="load",
    title="Loading the extension",
    about="In a fresh kernel `import ipywidgets`, which the panel needs anyway, and then `%load_ext ice_notebook`, timed in the kernel.",
    rows=(
        Row("widgets", "`import ipywidgets`"),
        Row("load", "`%load_ext ice_notebook` after it"),
        Row("torch", "imports torch", ""),
        Row("started", "has started", ""),
    ),
    measure=_measure,
    peers=(OURS,),
)
