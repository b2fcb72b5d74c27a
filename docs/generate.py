"""Write `options.md` and `errors.md` from the code: `python docs/generate.py`. A test checks that the committed pages are what this writes."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

from ice_notebook import errors
from ice_notebook.devices.grammar import FORMS
from ice_notebook.options.launch_options import LATER, OF_TORCHRUN, TABLE
from ice_notebook.options.table import EVERYWHERE, Option, Surface

HERE = Path(__file__).parent
PLACES = {Surface.PYTHON: "Python", Surface.CELL: "a cell", Surface.LINE: "a line", Surface.CLI: "a terminal"}


# ---- options -----------------------------------------------------------------------------------------------------------------------

OPTIONS_HEAD = """\
# Options

<!-- Written by docs/generate.py from the table in ice_notebook/options/launch_options.py. -->

One table of options serves the magics, Python and the command line, with the names, the meanings and, unless this page says otherwise,
the defaults of torchrun.

## How do I write an option?

| where | written as |
|---|---|
| a cell or a line | `max_restarts=2`, `--max-restarts 2` or `--max_restarts=2`; dashes and underscores are equal |
| a terminal | `--max-restarts 2`, `--max_restarts=2`; a flag is on by `--standalone`, off by `--standalone=false` |
| Python | `ElasticLauncher("cuda:*", max_restarts=2)`; texts are as good as values: `max_restarts="2"`, `nnodes="1:1"`, `redirects="0"` |

Behind two dashes the beginning of a name will do, as with torchrun, where it can only mean one option: `--max-re 2`. A terminal also reads
torchrun's options from the environment, as torchrun does: `PET_MAX_RESTARTS=2`; what the command line says counts more.

On the line of a magic:

- A flag is on by its name alone (`background`), and off by `background=false`.
- A value that holds blanks stands in quotes or brackets: `log_dir="my logs"`, `args=(3, "a b")`. What stands in quotes is text.
- `args=` and `kwargs=` take a Python expression over the notebook's variables.
- Elsewhere `{expression}` is one, also inside a text: `max_restarts={n + 1}`, `log_dir=logs/{name}`.
- A bare word is first read as a value of the option, and otherwise as a variable of the notebook: `devices=chosen`.
- Only the first `=` splits: `env=NCCL_DEBUG=INFO`.
- An option whose default is no value takes `none` to say so: `timeout=none`.

On `%elastic_launch` and in a terminal, what is launched and its arguments follow the options, and are the script's: see
[From torchrun](torchrun.md). On the line of a magic, quotes are taken off them and `{expression}` is evaluated in them too.

Tab completes names, words and devices; `%%elastic_launch?` shows this page's tables as text.
"""

DEVICES_HEAD = """\
## What can I write for `devices`?

A kind alone is one rank; a list has one rank for each of its devices.

| `devices=` | means |
|---|---|
"""

DEVICES_TAIL = """
From Python a list of GPU numbers (`[0, 1]`), a list of texts, a `torch.device`, or an object that has `devices`, such as a picker or another
launcher, is as good. [Choosing devices](devices.md) is about the picker, and about devices for a whole notebook.

`cuda:0` is the first GPU that the notebook sees: the first entry of its `CUDA_VISIBLE_DEVICES`, or of the PCI bus order that `nvidia-smi`
shows. Every rank sees the chosen GPUs, in the chosen order and once each, so that `LOCAL_RANK` is right as a device number also for
`cuda:2,3`. Of MIG instances a rank sees its own only, as `cuda:0`.

`nproc_per_node=N` takes the first N devices of a kind. With a list, more ranks than devices take them in turn, and ranks that share a GPU
are joined by gloo, because nccl refuses two ranks on one GPU.
"""

OF_TORCHRUN_HEAD = """\
## Which options of torchrun are not here?

They are refused by name. [From torchrun](torchrun.md) compares all of them.

| option | what to do |
|---|---|
"""

LATER_HEAD = """\
## Which options are known, but not available yet?

They are refused by name.

| option | why |
|---|---|
"""


def options_page() -> str:
    """Return `options.md`."""
    tables = [f"## {heading}\n\n{_options_table(options)}" for heading, options in TABLE.groups().items()]
    forms = "".join(f"| `{text}` | {meaning} |\n" for text, meaning in FORMS)
    later = "".join(f"| `{name}` | {why} |\n" for name, why in LATER.items())
    of_torchrun = "".join(f"| `{name}` | {text[:1].upper()}{text[1:]} |\n" for name, text in OF_TORCHRUN.items())
    parts = [OPTIONS_HEAD, DEVICES_HEAD + forms + DEVICES_TAIL, *tables, OF_TORCHRUN_HEAD + of_torchrun, LATER_HEAD + later]
    return "\n".join(parts)


def _options_table(options: list[Option]) -> str:
    rows = "".join(_option_row(option) for option in options)
    return f"| option | takes | default | what it does |\n|---|---|---|---|\n{rows}"


def _option_row(option: Option) -> str:
    name = f"`{option.name}`" + "".join(f", `-{short}`" for short in option.short)
    where = "" if option.surfaces == EVERYWHERE else f"Only for {_places(option)}."
    example = f"For example `{option.name}={option.example}`." if option.example else ""
    text = " ".join(filter(None, [option.sentence, option.note, option.of_scripts, where, example]))
    default = option.shown or f"`{option.default_text}`"
    return f"| {name} | {_cell(option.grammar.allowed)} | {_cell(default)} | {_cell(text)} |\n"


def _places(option: Option) -> str:
    return errors.join([word for place, word in PLACES.items() if place in option.surfaces])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ---- errors ------------------------------------------------------------------------------------------------------------------------

ERRORS_HEAD = """\
# Errors

<!-- Written by docs/generate.py from ice_notebook/errors. -->

Every exception that a call of the project raises is in `ice_notebook.errors`, derives from `IceNotebookError`, and also from the built-in
exception that its kind suggests: `except ValueError` catches an option that cannot be read. `NodeError`, in `ice_notebook.errors.nodes`, is what
an agent or the join command says; a notebook has its sentence as the reason of a run's end. A sentence says what was found, what is allowed, and what
to do. Below, words in {braces} stand for what the sentence names in your case.
"""


CONTRACTS = ("base", "options", "devices", "cells", "payloads", "scripts", "launches", "runs", "nodes")


def errors_page() -> str:
    """Return `errors.md`."""
    modules = [importlib.import_module(f"ice_notebook.errors.{contract}") for contract in CONTRACTS]
    found = [(module, node) for module in modules for node in ast.parse(inspect.getsource(module)).body]
    sections = [
        _error_section(node)
        for module, node in found
        if isinstance(node, ast.ClassDef) and issubclass(getattr(module, node.name), errors.IceNotebookError)
    ]
    return "\n".join([ERRORS_HEAD, *sections])


def _error_section(node: ast.ClassDef) -> str:
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    builtin = [f"`{base}`" for base in bases if base not in {"IceNotebookError", "Exception"}]
    heading = f"## `{node.name}`" + (f", which is also {errors.join(builtin)}" if builtin else "")
    sentences = [_sentence(method) for method in node.body if isinstance(method, ast.FunctionDef) and _is_constructor(method)]
    bullets = "".join(f"- {sentence}\n" for sentence in sentences if sentence)
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    return f"{heading}\n\n{text}\n" + (f"\n{bullets}" if bullets else "")


def _is_constructor(method: ast.FunctionDef) -> bool:
    return any(isinstance(decorator, ast.Name) and decorator.id == "classmethod" for decorator in method.decorator_list)


def _sentence(method: ast.FunctionDef) -> str:
    """Return the sentence of a named constructor, with names for its variable parts: the first argument of what it calls `cls` with."""
    known = {
        target.id: assign.value
        for assign in ast.walk(method)
        if isinstance(assign, ast.Assign)
        for target in assign.targets
        if isinstance(target, ast.Name)
    }
    calls = [
        call
        for call in ast.walk(method)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "cls"
    ]
    texts = [_text(call.args[0], known) for call in calls if call.args]
    return next((text for text in texts if " " in text), "")  # a constructor that only passes a finished line on has no sentence


def _text(node: ast.expr, known: dict[str, ast.expr]) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _escaped(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, known) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, known) + _text(node.right, known)
    if isinstance(node, ast.IfExp):
        return _text(node.body, known)
    if isinstance(node, ast.BoolOp):
        return _text(node.values[-1], known)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, known)
    if isinstance(node, ast.Call) and _calls(node, "written"):
        # An option, with dashes where the sentence is read in a terminal.
        name, *value = (_text(argument, known) for argument in node.args)
        return "=".join([name, *value])
    if _calls(node, "_way_out") or _calls(node, "_way_to_processes"):
        return "{advice}"
    if _calls(node, "suggest") or (isinstance(node, ast.Name) and node.id == "hint"):
        return ""  # `Did you mean …?` is there when something is near
    if isinstance(node, ast.Name) and node.id in known:
        return _text(known[node.id], {name: value for name, value in known.items() if name != node.id})
    if isinstance(node, ast.Attribute) and node.attr == "__name__":
        return "{type}"
    if isinstance(node, ast.Attribute):
        return f"{{{node.attr}}}"
    functions = {call.func for call in ast.walk(node) if isinstance(call, ast.Call)}
    names = [name.id for name in ast.walk(node) if isinstance(name, ast.Name) and name not in functions]
    return f"{{{names[0]}}}" if names else "…"


def _calls(node: ast.expr, function: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function


def _escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("<", "&lt;")


if __name__ == "__main__":
    (HERE / "options.md").write_text(options_page(), encoding="utf-8")
    (HERE / "errors.md").write_text(errors_page(), encoding="utf-8")
