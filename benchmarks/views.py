"""The ways in which lines of several processes get into a page, each as the cells that a user of it writes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from benchmarks import work
from benchmarks.pump import N_RANKS

Args = tuple[str, float, float]  # of `work.talk`


@dataclass(frozen=True)
class View:
    """A way. `panel` selects the elements whose text is lines; without it they are looked for in the text of the cell's output."""

    name: str
    title: str
    setup: str
    show: str = ""  # what takes the text, in the kernel
    panel: str = ""

    def cell(self, args: Args) -> str:
        """Return the cell that shows what the ranks print."""
        if self.panel:
            return f"%%elastic_launch devices=cpu:0-{N_RANKS - 1} dist_init=no -o run args={args!r}\n{inspect.getsource(work.talk)}"
        return f"pump({args!r}, {self.show})"


_PUMP = "from benchmarks.pump import pump\n"
OURS = View("ours", "ice_notebook", "%load_ext ice_notebook", panel=".ice-rows > div, .ice-last")
VIEWS = (
    OURS,
    View("print", "print to the cell", _PUMP, show='lambda text: print(text, end="")'),
    View(
        "output",
        "ipywidgets.Output",
        f"{_PUMP}import ipywidgets\noutput = ipywidgets.Output()\ndisplay(output)",
        show="output.append_stdout",
    ),
)
