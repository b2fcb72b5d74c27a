"""What `%%elastic_launch?` and its kin, and `--help` in a terminal, show: a head for each place, and the options that may be given there."""

from __future__ import annotations

import textwrap

from ice_notebook.errors import options_with_dashes
from ice_notebook.options.join_options import HEAD, JOIN_TABLE
from ice_notebook.options.launch_options import TABLE
from ice_notebook.options.table import Surface

PAGE = 100  # columns of a notebook's page
_NARROW_MEANING = 24  # columns, beside a command
NARROW, WIDE = 40, 100  # narrower than this nothing can be read, and wider lines are hard to


def help_text(surface: Surface, width: int = PAGE) -> str:
    """Return the help of a place, in lines of so many columns."""
    if surface is not Surface.CLI:
        return f"{fill(_HEADS[surface], width)}\n\n{TABLE.help_text(surface, width)}"
    with options_with_dashes():
        return f"{fill(_HEADS[surface], width)}\n\n{TABLE.help_text(surface, width)}"


def join_help(width: int) -> str:
    """Return the help of the join command."""
    with options_with_dashes():
        return f"{fill(HEAD, width)}\n\n{JOIN_TABLE.help_text(Surface.CLI, width)}"


def fill(text: str, width: int) -> str:
    """Return a text with its paragraphs in lines of so many columns. Indented lines, and those that begin with a command, stay lines."""
    filled = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        if all(line.startswith(_COMMANDS) for line in lines):
            filled.append("\n".join(_wrapped(line, width) for line in lines))
        else:
            filled.append(textwrap.fill(" ".join(lines), width, break_on_hyphens=False, break_long_words=False))
    return "\n\n".join(filled)


def columns(found: int) -> int:
    """Return how many columns a page has in a terminal that has so many."""
    return max(NARROW, min(WIDE, found))


def _wrapped(line: str, width: int) -> str:
    start = " " * (len(line) - len(line.lstrip()))
    words, meaning = line.strip().split("   ", 1) if "   " in line.strip() else (line.strip(), "")
    if not meaning:
        indent = f"{start}        "
        return textwrap.fill(words, width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)
    # A command, and what it does, below each other where they do not fit beside each other.
    gap = len(line) - len(line.lstrip()) + len(words) + len(meaning) - len(meaning.lstrip()) + 3
    beside = f"{start}{words}".ljust(gap)
    if width - gap < _NARROW_MEANING:
        return f"{start}{words}\n{textwrap.fill(meaning.strip(), width, initial_indent=f'{start}    ', subsequent_indent=f'{start}    ')}"
    return textwrap.fill(meaning.strip(), width, initial_indent=beside, subsequent_indent=" " * gap)


_COMMANDS = ("    ", "ice_notebook ", "%", "ElasticLauncher(")
_HOW_TO_WRITE = """\
Options are written name=value or --name value; dashes and underscores are equal, and after dashes a beginning that only one option has will do. A
flag is on by its name alone, and off by flag=false. Quotes and brackets keep blanks together. A bare word may be a variable of the notebook
(devices=chosen), and {expression} is evaluated."""
_HEADS = {
    Surface.CELL: f"""\
%%elastic_launch [option=value ...]

Run the cell on several ranks under torch's elastic agent, and show their output and their results below it. If the cell ends with a function
definition, that function is launched; otherwise every rank runs the whole cell. The cell's value is the Run: run.results[0] is what rank 0 returned.

    %%elastic_launch devices=cuda:0,1 max_restarts=1 -o run
    def train(launcher):
        ...

{_HOW_TO_WRITE}""",
    Surface.LINE: f"""\
%elastic_launch [option=value ...] script.py [argument ...]
%elastic_launch [option=value ...] -m module [argument ...]
%elastic_launch [option=value ...] --no-python program [argument ...]
%elastic_launch [option=value ...] function

Run a script, a module, a program, or a function of the notebook, on several ranks under torch's elastic agent, as torchrun does, and show their
output below the cell. The cell's value is the Run. Options stand before what is launched; what follows is the script's, as it is typed but for
quotes and for {{expression}}, which is evaluated.

    %elastic_launch devices=cuda:0,1 train.py --lr {{lr}}

{_HOW_TO_WRITE}""",
    Surface.PYTHON: """\
ElasticLauncher(devices, option=value, ...).freeze()(function, *args, **kwargs)

Run the function on several ranks under torch's elastic agent. Values are Python values, or texts as the magic takes them.""",
    Surface.CLI: """\
ice_notebook launch [--option VALUE ...] script.py [argument ...]
ice_notebook launch [--option VALUE ...] -m module [argument ...]
ice_notebook launch [--option VALUE ...] --no-python program [argument ...]

Run a script on several ranks of this machine under torch's elastic agent, as torchrun does. Each line of output has its rank before it.
`python -m ice_notebook launch` is the same.

    ice_notebook launch --nproc-per-node 2 train.py --lr 0.1
    ice_notebook launch --devices cuda:0,1 -t 3 -m package.train

Options stand before the script; what follows is the script's. They are written --name VALUE or --name=VALUE, with dashes or underscores, and a
beginning that only one option has will do; a flag is off by --name=false. Those of torchrun are also read from the environment, as there:
PET_NNODES=2. -h and --help show this page.

Exit status: 0 when all ranks ended with 0; the code of the rank that failed first, or 128 + N when a signal N ended it; 130 after Ctrl-C, 128 + N
after a signal N; 124 when the time was over; 2 when it cannot be launched as asked; 141 when nobody reads what is shown. Ctrl-C stops the run in
order, a second one kills it.""",
}
