"""Every message that can refuse something.

These are the exceptions that ice_notebook raises, with their sentences; those between machines are in `errors.nodes`. Each derives from
`IceNotebookError` and from the built-in that a caller would expect. `__init__` takes just the message, so that an exception survives
pickling on its way from a rank; what else it knows is set on it by the named constructors.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_has_dashes: ContextVar[bool] = ContextVar("options are written with dashes", default=False)
SUPPORTED_LINE_MAGICS = frozenset({"time", "cd", "pwd", "env"})  # of IPython's line magics, those that a rank has too
_IN_A_SHELL = {"rdzv_configs": "rdzv_conf"}  # torchrun's name, where that is another one than ice-learn's


@contextlib.contextmanager
def options_with_dashes() -> Iterator[None]:
    """Have sentences name options as a shell's command line does: `--max-restarts=2`."""
    before = _has_dashes.set(True)
    try:
        yield
    finally:
        _has_dashes.reset(before)


def written(option: str, value: object = None) -> str:
    """Return an option, or an option with its value, as it is written where the sentence is read: `max_restarts=2`."""
    name = f"--{_IN_A_SHELL.get(option, option).replace('_', '-')}" if _has_dashes.get() else option
    return name if value is None else f"{name}={value}"


def join(words: Iterable[object], conjunction: str = "and") -> str:
    """Return the words as an English list: `a, b and c`."""
    texts = [str(word) for word in words]
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} {conjunction} {texts[-1]}"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known word nearest to a misspelled one, or nothing."""
    words = list(known)
    # The beginning of one word alone is that word, however long the rest is: nproc is no close match of nproc_per_node.
    begun = [each for each in words if word and each.startswith(word)]
    near = begun if len(begun) == 1 else difflib.get_close_matches(word, words, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def quote(value: object, limit: int = 80) -> str:
    """Return a value's repr, cut to a length that a sentence can bear."""
    try:
        text = repr(value)
    except Exception:  # of a foreign type, or nested too deep: the sentence is about something else
        text = f"<{type(value).__name__}>"
    return cut(text, limit)


def cut(text: str, limit: int = 80) -> str:
    """Return a text, cut to a length that a sentence can bear."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def describe_kind(value: object) -> str:
    """Return what a value is, with an article: `an int`."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def describe_error(error: BaseException) -> str:
    """Return what an exception says, as a part of a sentence: its type and its first line, without a full stop."""
    try:
        first, _, rest = str(error).strip().partition("\n")
    except Exception:  # of the exception's own code
        return f"{type(error).__name__} (its message cannot be read)"
    if rest and first.endswith(":") and ". " in first:  # `… . See:`: what there is to see comes in the next line
        first = first.rpartition(". ")[0]
    return f"{type(error).__name__}: {first.rstrip('. ')}" if first else type(error).__name__


def format_size(size_bytes: float) -> str:
    """Return a size as people say it: `640 B`, `1.5 GiB`."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size_bytes >= 1024 and len(units) > 1:
        size_bytes /= 1024
        del units[0]
    return f"{size_bytes:.0f} {units[0]}" if size_bytes >= 100 else f"{size_bytes:.3g} {units[0]}"


def printable(text: str) -> str:
    r"""Return a text for people, which every page and terminal can take: a byte of a path that is no UTF-8 becomes `\udce9`."""
    return text.encode(errors="backslashreplace").decode()


_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_IN_THE_WAY = frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR})


def reason_of(error: Exception) -> str:
    """Return the system's word for what went wrong."""
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def is_for_want_of_room(error: OSError) -> bool:
    """Return whether a file could not be written because a disk, a quota or a limit is full."""
    return error.errno in _NO_ROOM


def excerpt_of_syntax_error(error: SyntaxError) -> tuple[str, ...]:
    """Return the line that is not Python, and a mark below the place; nothing where the error does not have it."""
    if not error.text:
        return ()
    text = error.text.rstrip("\n")
    indent = len(text) - len(text.lstrip())
    return f"    {text.lstrip()}", f"    {' ' * max((error.offset or 1) - 1 - indent, 0)}^"


class IceNotebookError(Exception):
    """Something that ice_notebook was asked to do cannot be done.

    A notebook shows it as its type and its message alone: the frames in between are ours and say nothing to the user.
    """

    def __str__(self) -> str:
        """Return the message as a page or a terminal can take it, also when it quotes a path that is no UTF-8."""
        return printable(super().__str__())

    def with_no_variable(self, name: str, known: Iterable[str]) -> IceNotebookError:
        """Return the same error, saying as well that a word is not the name of a notebook variable either."""
        return type(self)(f"{self} No variable of this notebook is called {name!r} either.{suggest(name, known)}")

    def from_environment(self, variables: Iterable[str]) -> IceNotebookError:
        """Return the same error, saying as well which variables of the environment have a part in it."""
        names = sorted(variables)
        return type(self)(f"{self} The environment sets {join(names)}.") if names else self

    def _render_traceback_(self) -> list[str]:
        # IPython draws an exception by this method when it has one; the cell still counts as failed, unlike after a `UsageError`.
        return [f"{type(self).__name__}: {self}"]


class UnknownFormWarning(UserWarning):
    """A library that was installed has another private form than the ones that this version knows."""

    @classmethod
    def of(cls, library: str, version: str, thing: str, effect: str) -> UnknownFormWarning:
        return cls(f"{library} {version} pickles {thing} in a form that this version of ice_notebook does not know. {effect}")


class OptionError(IceNotebookError, ValueError):
    """A launch option is unknown, or its value is not one that the option takes."""

    @classmethod
    def unknown(cls, name: str, known: Iterable[str]) -> OptionError:
        names, name = sorted(map(written, known)), name if name.startswith("-") else written(name)
        others = f" The options are {join(names)}." if not _has_dashes.get() else " --help lists the options."
        return cls(f"{name!r} is not an option.{suggest(name, names) or others}")

    @classmethod
    def ambiguous(cls, name: str, meant: Iterable[str]) -> OptionError:
        options = join(sorted(set(map(written, meant))), "or")
        return cls(f"{written(name)!r} could be {options}; write more of it.")

    @classmethod
    def no_command(cls, name: str, known: Sequence[str]) -> OptionError:
        commands = "the command is" if len(known) == 1 else "the commands are"
        return cls(f"{name!r} is not a command; {commands} {join(known)}. --help says more.")

    @classmethod
    def not_a_module(cls, option: str, name: str, error: BaseException) -> OptionError:
        return cls(
            f"{option}={name!r}: importing it raised {type(error).__name__}: {error}. Name packages or modules, as in an import."
        )

    @classmethod
    def later(cls, name: str, why: str) -> OptionError:
        return cls(f"{written(name)!r} is not available in this version: {why}")

    @classmethod
    def invalid(cls, name: str, found: object, allowed: str) -> OptionError:
        return cls(f"{written(name, quote(found))} cannot be read: allowed is {allowed}.")

    @classmethod
    def refused(cls, name: str, found: object, why: str) -> OptionError:
        return cls(f"{written(name, quote(found))} is refused: {why}")

    @classmethod
    def elsewhere(cls, name: str, where: str, advice: str = "") -> OptionError:
        return cls(f"{written(name)!r} is not an option here: it belongs to {where}.{f' {advice}' if advice else ''}")

    @classmethod
    def expression(cls, option: str, text: str, error: BaseException) -> OptionError:
        return cls(f"{option}={cut(text)}: the expression raised {type(error).__name__}: {cut(str(error))}.")

    @classmethod
    def unbalanced(cls, text: str) -> OptionError:
        return cls(f"The magic's line ends inside {quote(text)}: close the quote or the bracket.")

    @classmethod
    def twice(cls, name: str) -> OptionError:
        return cls(f"{written(name)!r} is given twice; give it once.")

    @classmethod
    def missing_value(cls, name: str, allowed: str) -> OptionError:
        return cls(f"{written(name)!r} needs a value: {written(name, 'VALUE')}, where VALUE is {allowed}.")

    @classmethod
    def not_an_option(cls, text: str, example: str) -> OptionError:
        return cls(
            f"{quote(text)} is not an option: options are written as name=value or --name value, for example {cut(example)}."
        )

    @classmethod
    def conflict(cls, first: str, second: str, advice: str) -> OptionError:
        return cls(f"{first} and {second} exclude each other: {advice}")


class DeviceError(IceNotebookError, ValueError):
    """A device was asked for that cannot be had, or a device text that cannot be read."""

    def of_notebook(self) -> DeviceError:
        """Return the same error, saying as well that the launch itself named no devices."""
        return DeviceError(
            f"{self} They were set with %elastic_devices for launches that name none; %elastic_devices off forgets them."
        )

    @classmethod
    def empty(cls, text: object) -> DeviceError:
        return cls(
            f"{written('devices', quote(text))} names no device: allowed are auto, cpu, cuda and lists of them such as cuda:0,1, cuda:* or cpu:0-3."
        )

    @classmethod
    def unknown_kind(cls, text: str, kind: str, kinds: Sequence[str]) -> DeviceError:
        meant = {"gpu": "cuda", "free": "cuda:free"}.get(kind.lower())
        hint = f" Did you mean {meant!r}?" if meant else suggest(kind, kinds)
        return cls(f"{written('devices', quote(text))}: {quote(kind)} is no kind of device; the kinds are {join(kinds)}.{hint}")

    @classmethod
    def number_alone(cls, text: object) -> DeviceError:
        return cls(
            f"{written('devices', text)} could be a device or a count: write {written('devices', f'cuda:{text}')} for that GPU, or "
            f"{written('nproc_per_node', text)} for so many ranks."
        )

    @classmethod
    def unreadable_entry(cls, text: str, entry: str) -> DeviceError:
        found = f"{quote(entry)} is not a device" if entry else "a device is missing beside a comma or colon"
        return cls(
            f"{written('devices', quote(text))}: {found}; allowed are numbers (0), ranges (0-2), * for all and, after cuda:, UUIDs (GPU-…, MIG-…), "
            "free and free:2."
        )

    @classmethod
    def backward_range(cls, text: str, first: int, last: int) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: the range {first}-{last} runs backwards; write {last}-{first}.")

    @classmethod
    def star_with_others(cls, text: str) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: * already stands for every device; write it alone.")

    @classmethod
    def free_with_others(cls, text: str) -> DeviceError:
        return cls(
            f"{written('devices', quote(text))}: free stands for GPUs that are found at launch; write it alone, with their number: cuda:free:2."
        )

    @classmethod
    def free_of_kind(cls, text: str) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: only of GPUs is it known who uses them; write cuda:free or cuda:free:2.")

    @classmethod
    def not_free(cls, text: str, n_free: int, n_visible: int, holders: Sequence[str]) -> DeviceError:
        count = f"{n_free} is" if n_free == 1 else f"{n_free or 'none'} are"
        who = (
            f"In use are {'; '.join(holders)}. Name GPUs to share them, or launch again later."
            if holders
            else "Name at most so many."
        )
        return cls(f"{written('devices', quote(text))}: of the {n_visible} GPUs that are visible here {count} free. {who}")

    @classmethod
    def nothing_picked(cls, picker: object) -> DeviceError:
        return cls(
            f"{written('devices', quote(picker))}: nothing is picked in it. Tick a device, or give a number of ranks on the CPU."
        )

    @classmethod
    def picked_twice(cls, text: str) -> DeviceError:
        return cls(f"{quote(text)} names a device twice, and a picker can pick it once; give devices={text} to the launch itself.")

    @classmethod
    def uuid_of_kind(cls, text: str, uuid: str) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: a UUID names a GPU; write cuda:{uuid}.")

    @classmethod
    def mixed(cls, text: str, kinds: Sequence[str]) -> DeviceError:
        return cls(
            f"{written('devices', quote(text))} mixes {join(kinds)}: all ranks of a launch use one kind; write {kinds[0]}:… once, then numbers."
        )

    @classmethod
    def too_many(cls, found: str, most: int) -> DeviceError:
        return cls(f"{found} asks for more than {most} ranks on one machine, which is the most that is allowed; name fewer.")

    @classmethod
    def not_devices(cls, value: object) -> DeviceError:
        return cls(
            f"{written('devices', quote(value))} is {type(value).__name__!r}: allowed are a text such as 'cuda:0,1', a list of GPU numbers or of texts, "
            "a torch.device, and an object that has `devices`."
        )

    @classmethod
    def no_cuda(cls, asked: str, why: str) -> DeviceError:
        return cls(
            f"{asked}: no CUDA device can be used here, because {why}. Use {written('devices', 'cpu')} for ranks on the CPU."
        )

    @classmethod
    def absent(cls, text: str, device: str, available: str) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: {device} is not here; visible here: {available}.")

    @classmethod
    def ambiguous(cls, text: str, uuid: str, matches: Sequence[str]) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: {uuid} begins {join(matches)}; write more of the UUID.")

    @classmethod
    def too_few(cls, count: int, available: str, n_available: int) -> DeviceError:
        return cls(
            f"{written('nproc_per_node', count)} is more than the GPUs that are visible here ({available}): ask for at most {n_available}, "
            f"or let ranks share them with {written('devices', available)} {written('nproc_per_node', count)}."
        )

    @classmethod
    def below_list(cls, count: int, text: str, n_devices: int) -> DeviceError:
        shorter = f"write {written('devices', f'cuda:free:{count}')}" if text.startswith("cuda:free") else "shorten the list"
        return cls(
            f"{written('nproc_per_node', count)} is less than the {n_devices} devices of {written('devices', quote(text))}: {shorter}, or "
            f"leave {written('nproc_per_node')} out."
        )

    @classmethod
    def count_of_list(cls, word: str, text: str) -> DeviceError:
        return cls(
            f"{written('nproc_per_node', word)} and {written('devices', quote(text))} both say how many ranks there are: leave "
            f"{written('nproc_per_node')} out, or give a number."
        )

    @classmethod
    def other_kind(cls, word: str, text: str) -> DeviceError:
        return cls(
            f"{written('nproc_per_node', word)} counts another kind of device than {written('devices', quote(text))} names: leave one of "
            "them out."
        )

    @classmethod
    def nccl(cls, text: str, why: str) -> DeviceError:
        return cls(
            f"{written('dist_backend', 'nccl')} cannot join the ranks of {text}: {why}. Use {written('dist_backend', 'gloo')}, or leave it "
            "out."
        )


class CellError(IceNotebookError, ValueError):
    """A cell holds nothing that can be launched."""

    @classmethod
    def empty(cls) -> CellError:
        return cls("The cell is empty below the magic's line: write the function, or the statements, that every rank is to run.")

    @classmethod
    def cell_magic(cls, name: str) -> CellError:
        return cls(f"%%{name} cannot stand inside a launched cell: a rank runs Python, and `!` and `%` lines.")

    @classmethod
    def line_magic(cls, name: str) -> CellError:
        known = join(f"%{each}" for each in sorted(SUPPORTED_LINE_MAGICS))
        return cls(f"%{name} needs IPython, which a rank does not have. Ranks know {known}, and `!command`.")

    @classmethod
    def awaits(cls, function: str) -> CellError:
        return cls(
            f"`await` beside `{function}` would run in the notebook's own event loop: put it into a cell above, or into the function."
        )

    @classmethod
    def parameters(cls, function: str, required: Sequence[str]) -> CellError:
        return cls(
            f"`{function}` requires {join(required)}: a launched function gets the launcher when it has one required positional parameter. "
            f"Give the others as args=(…) or kwargs={{…}}, or as default values."
        )

    @classmethod
    def no_launcher(cls, function: str, required: Sequence[str], attributes: Sequence[str]) -> CellError:
        verb = "is" if len(required) == 1 else "are"
        uses = join(f"launcher.{attribute}" for attribute in dict.fromkeys(attributes))
        return cls(
            f"`{function}` requires {join(required)}, which {verb} not passed: a launched function gets a launcher. "
            f"Write `def {function}(launcher)`, and use {uses}."
        )

    @classmethod
    def annotated(cls, function: str, name: str, kind: str) -> CellError:
        return cls(
            f"`{function}` requires `{name}: {kind}`, and a launched function gets a launcher. Give the value as args=(…) or "
            f"kwargs={{…}}, or as a default value."
        )

    @classmethod
    def arguments(cls, function: str, error: TypeError) -> CellError:
        return cls(f"`{function}` does not take these arguments: {error}.")

    @classmethod
    def not_callable(cls, found: object) -> CellError:
        return cls(f"A function is launched, and this is {describe_kind(found)}: give the function first, its arguments after it.")

    @classmethod
    def no_function(cls, name: str, found: object) -> CellError:
        return cls(f"function={name}: {name!r} is {describe_kind(found)}, and only a function can be launched.")

    @classmethod
    def not_defined(cls, name: str, known: Iterable[str]) -> CellError:
        return cls(f"function={name}: neither this cell nor the notebook defines {name!r}.{suggest(name, known)}")

    @classmethod
    def body_arguments(cls) -> CellError:
        return cls("args= and kwargs= are for a function: this cell's last statement defines none, and function= names none.")


class CellSyntaxError(CellError):
    """A cell is not Python.

    It is no `SyntaxError`: IPython draws one of those, when it comes out of a magic, behind a page of frames that say nothing.
    """

    excerpt: Sequence[str] = ()

    @classmethod
    def of(cls, error: SyntaxError, label: str) -> CellSyntaxError:
        made = cls(f"{error.msg} ({label}, line {error.lineno})" if error.lineno else f"{error.msg} ({label})")
        made.excerpt = excerpt_of_syntax_error(error)
        return made

    def _render_traceback_(self) -> list[str]:
        return [*self.excerpt, *super()._render_traceback_()]


@dataclass(frozen=True)
class Refusal:
    """What cannot travel, where it was found, and the way out: the parts of a sentence."""

    path: str  # the variable, or the way into it: config['log']
    what: str  # with an article: an open file
    advice: str
    result_advice: str
    is_inside: bool = False  # the path names what holds it, not itself
    function: str = ""  # the function of the user that refers to it
    line: int = 0
    source: str = ""  # the text of that line


class PayloadError(IceNotebookError, TypeError):
    """A value cannot be sent to the ranks. `refusal` says which, as it was found."""

    refusal: Refusal | None = None

    @classmethod
    def holds(cls, refusal: Refusal) -> PayloadError:
        verb = "holds" if refusal.is_inside else "is"
        usage = f" `{refusal.function}` uses it in line {refusal.line}: {refusal.source}" if refusal.source else ""
        error = cls(f"`{refusal.path}` cannot be sent to the ranks: it {verb} {refusal.what}. {refusal.advice}{usage}")
        error.refusal = refusal
        return error


class LoadError(IceNotebookError, RuntimeError):
    """What a function needs has come to a rank, and cannot be loaded there."""

    @classmethod
    def of(cls, name: str | None, error: BaseException) -> LoadError:
        what = f"`{name}`" if name else "What the function needs"
        advice = f"Create {f'`{name}`' if name else 'it'} in the function, or send what it is made from."
        return cls(f"{what} could not be loaded in the ranks: {describe_error(error)}. {advice}")


class ResultError(IceNotebookError, RuntimeError):
    """A rank's value cannot be had: it is not there yet, could not be written, or was not kept."""

    @classmethod
    def cannot_send(cls, rank: int, refusal: Refusal) -> ResultError:
        name = "it" if refusal.path == "result" else refusal.path
        verb = "holds" if refusal.is_inside else "is"
        return cls(f"The value returned by rank {rank} cannot be sent back: {name} {verb} {refusal.what}. {refusal.result_advice}")

    @classmethod
    def unwritten(cls, rank: int, size_bytes: int, error: OSError) -> ResultError:
        if is_for_want_of_room(error):
            return cls.no_room(rank, size_bytes)
        return cls(f"The value returned by rank {rank} cannot be written: {reason_of(error)}.")

    @classmethod
    def no_room(cls, rank: int, size_bytes: int) -> ResultError:
        return cls(
            f"The value returned by rank {rank} has {format_size(size_bytes)}, and there is no room for it. Free some, or give {written('log_dir')} "
            "a folder with room."
        )

    @classmethod
    def not_yet(cls, rank: int) -> ResultError:
        return cls(f"Rank {rank} has not returned yet: run.result({rank}) waits for it.")

    @classmethod
    def no_result(cls, rank: int) -> ResultError:
        return cls(f"The script of rank {rank} gave no value: it gives one with ice_notebook.set_result(value).")

    @classmethod
    def not_kept(cls, rank: int) -> ResultError:
        return cls(
            f"The value of rank {rank} was not kept: it lived as long as its Run object. run.save() brings values into the run folder."
        )

    @classmethod
    def let_go(cls, rank: int) -> ResultError:
        return cls(
            f"The value of rank {rank} was not kept: after several newer launches only the notebook's output history held its run. "
            "Bind a run to a name, as -o does, or call run.save()."
        )

    @classmethod
    def cannot_load(cls, rank: int, error: BaseException) -> ResultError:
        return cls(
            f"The value of rank {rank} cannot be loaded here: {describe_error(error)}. Import or define here what it is made of."
        )

    @classmethod
    def no_run(cls, folder: object) -> ResultError:
        return cls(f"{str(folder)!r} is not the folder of a run: it has no plan.json and events.jsonl of this version.")

    @classmethod
    def foreign(cls, path: object, why: str) -> ResultError:
        return cls(
            f"{path} is not loaded: {why}. It holds a pickle, which runs code of whoever wrote it when it is loaded. If you trust them, copy the "
            "run folder, and open the copy."
        )

    @classmethod
    def damaged(cls, path: object, found: str) -> ResultError:
        return cls(f"{str(path)!r} does not hold a whole value: {found}. Only a file that ice_notebook wrote can be loaded.")


class ScriptError(IceNotebookError, ValueError):
    """What a line or a command names cannot be launched: there is no such script, module or program, or it is not Python."""

    excerpt: Sequence[str] = ()

    @classmethod
    def none(cls, what: str) -> ScriptError:
        return cls(f"Nothing to launch is named: {what}.")

    @classmethod
    def missing(cls, path: str, folder: str, known: Iterable[str]) -> ScriptError:
        return cls(f"There is no script {path!r} in {folder!r}.{suggest(path, known)}")

    @classmethod
    def missing_name(cls, name: str, folder: str, known: Iterable[str]) -> ScriptError:
        return cls(
            f"{name!r} is neither a function of this notebook nor a script in {folder!r}.{suggest(name, known)} "
            "Options are written name=value or --name value, and stand before what is launched."
        )

    @classmethod
    def unreadable(cls, path: str, error: OSError) -> ScriptError:
        return cls(f"The script {path!r} cannot be read: {error.strerror or error}.")

    @classmethod
    def no_main(cls, path: str) -> ScriptError:
        return cls(f"{path!r} has no __main__.py: a folder or an archive is launched by that file. Name a script in it.")

    @classmethod
    def not_absolute(cls, path: str) -> ScriptError:
        return cls(f"{written('run_path')} takes an absolute path, and {path!r} is none; without it a relative one is as good.")

    @classmethod
    def not_python(cls, path: str, why: str) -> ScriptError:
        return cls(f"{path!r} is not Python: {why}. With {written('no_python')} it is started as a program of its own.")

    @classmethod
    def bytecode(cls, path: str, why: str) -> ScriptError:
        return cls(f"{path!r} cannot be run by this Python: {why}. Launch its source, or compile it again.")

    @classmethod
    def syntax(cls, path: str, error: SyntaxError) -> ScriptError:
        where = f" in line {error.lineno}" if error.lineno else ""
        made = cls(f"The script {path!r} is not right{where}: {error.msg}.")
        made.excerpt = excerpt_of_syntax_error(error)
        return made

    @classmethod
    def no_module(cls, name: str, why: str, known: Iterable[str] = ()) -> ScriptError:
        return cls(f"There is no module {name!r} to launch: {why}.{suggest(name, known)}")

    @classmethod
    def module_is_path(cls, name: str) -> ScriptError:
        return cls(f"-m takes the name of a module, and {name!r} is a path: leave -m out, or write it with dots and without .py.")

    @classmethod
    def no_program(cls, name: str, why: str) -> ScriptError:
        return cls(f"There is no program {name!r} to start: {why}.")

    @classmethod
    def function_arguments(cls, name: str, found: str) -> ScriptError:
        return cls(
            f"{name!r} is a function of this notebook, and {found!r} stands behind it: give its arguments as args=(…) or kwargs={{…}}."
        )

    @classmethod
    def function_and_script(cls, name: str, found: str) -> ScriptError:
        return cls(f"function={name} and {found!r} both say what is launched: give one of them.")

    def _render_traceback_(self) -> list[str]:
        return [*self.excerpt, *super()._render_traceback_()]


class LibraryError(IceNotebookError, RuntimeError):
    """A library is not as this version of the project knows it."""

    @classmethod
    def changed(cls, library: str, version: str, what: str) -> LibraryError:
        return cls(
            f"{library} {version} is not as this version of ice_notebook knows it: {what} is new, gone, or not used any more. "
            f"Install an older {library}, or a newer ice_notebook."
        )


class LaunchError(IceNotebookError, RuntimeError):
    """A run cannot be started here."""

    @classmethod
    def port(cls, port: int, address: str, holder: str) -> LaunchError:
        return cls(
            f"The port {port} on {address} is in use{f' by {holder}' if holder else ''}: give another one, or none for a free one."
        )

    @classmethod
    def foreign_cache(cls, path: object, why: str) -> LaunchError:
        return cls(f"Runs cannot be kept in {str(path)!r}: {why}, who could change them. Set XDG_CACHE_HOME to a folder of yours.")

    @classmethod
    def folder(cls, path: object, error: OSError | ValueError, *, is_users: bool) -> LaunchError:
        advice = _way_out(error, f"give {written('log_dir')}" if is_users else "set XDG_CACHE_HOME to")
        if is_users:
            return cls(f"The folder {str(path)!r} cannot be made: {reason_of(error)}. {advice}.")
        return cls(f"The run folder {str(path)!r} cannot be made: {reason_of(error)}. {advice}.")

    @classmethod
    def no_home(cls, path: str) -> LaunchError:
        return cls(f"{written('log_dir')}={path!r} names a home folder that is not known. Write the folder without ~.")

    @classmethod
    def relative_folder(cls, path: str, error: OSError) -> LaunchError:
        return cls(
            f"{written('log_dir')}={path!r} is relative to the working directory, which is gone: {reason_of(error)}. Change to another one "
            "with os.chdir, or give a whole path."
        )

    @classmethod
    def files(cls, what: str, error: OSError) -> LaunchError:
        advice = _way_out(error, f"give {written('log_dir')}")
        return cls(f"{what} cannot be written for the ranks: {reason_of(error)}. {advice}.")

    @classmethod
    def descriptors(cls, n_ranks: int, needed: int, limit: int) -> LaunchError:
        ranks = "1 rank needs" if n_ranks == 1 else f"{n_ranks} ranks need"
        return cls(
            f"{ranks} {needed} open files in the process that watches over them, and the limit is {limit}: raise it (ulimit -Hn), or launch "
            "fewer ranks."
        )

    @classmethod
    def own_descriptors(cls, n_open: int, limit: int) -> LaunchError:
        return cls(
            f"This process has {n_open} files open, and the limit is {limit}: too few are left for a run. Close some, or raise the limit "
            "(ulimit -n)."
        )

    @classmethod
    def resources(cls, error: OSError | RuntimeError) -> LaunchError:
        advice = _way_to_processes(error)
        return cls(f"The processes of the run cannot be started: {reason_of(error)}. {advice}.")

    @classmethod
    def in_rank(cls, rank: int) -> LaunchError:
        return cls(
            f"A launch from inside rank {rank} of a run is not possible: runs are not nested, as torchruns may be. Launch it beside this one, or "
            "use multiprocessing here."
        )

    @classmethod
    def platform(cls, system: str) -> LaunchError:
        return cls(f"Runs need Linux (pidfds, pseudo-terminals, parent-death signals); this is {system}.")

    @classmethod
    def working_directory(cls, error: OSError) -> LaunchError:
        return cls(
            f"The ranks start in the kernel's working directory, which is gone: {reason_of(error)}. Change to another one with os.chdir."
        )

    @classmethod
    def interpreter(cls, path: str) -> LaunchError:
        return cls(f"sys.executable is {path!r}, which is no interpreter that the ranks could be started with.")


class LauncherValueError(IceNotebookError, TypeError):
    """A launcher was used as if it were a number."""

    @classmethod
    def compared(cls, other: object) -> LauncherValueError:
        return cls(
            f"A launcher was compared with {quote(other)}, and is not a number: use launcher.rank, or another of its properties."
        )


def _way_out(error: OSError | ValueError, other: str) -> str:
    """Return what can be done about a file that cannot be made; `other` begins how another folder is named."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_ROOM:
        return f"Free space there, or {other} a folder with room"
    if number in _NOT_ALLOWED:
        return f"{other[:1].upper()}{other[1:]} a folder that you may write to"
    if number in _IN_THE_WAY:
        return f"Move what is in the way, or {other} another folder"
    return f"{other[:1].upper()}{other[1:]} another folder"


def _way_to_processes(error: OSError | RuntimeError) -> str:
    """Return what can be done where no process, or no thread, can be started."""
    number = error.errno if isinstance(error, OSError) else errno.EAGAIN
    return {
        errno.EMFILE: "This process has as many files open as it may: close some, or raise the limit (ulimit -n)",
        errno.ENFILE: "The whole system has as many files open as it may",
        errno.EAGAIN: "There are as many processes or threads as this user or container may have: end some, or raise the limit (ulimit -u)",
        errno.ENOMEM: "There is no memory left: end what holds it",
        errno.E2BIG: "The environment is larger than the system passes on: unset large variables",
    }.get(number or 0, "The interpreter of this notebook must be one that can be started")


class FrozenError(IceNotebookError, RuntimeError):
    """A frozen launcher was to be changed."""

    @classmethod
    def option(cls, name: str) -> FrozenError:
        return cls(f"{name!r} cannot be set: the launcher is frozen. Set options before freeze(), or on a clone().")


class RunStopped(IceNotebookError, RuntimeError):
    """A rank was stopped before it returned."""

    @classmethod
    def before_return(cls, rank: int) -> RunStopped:
        return cls(f"Rank {rank} was stopped before it returned.")


class RunFailed(IceNotebookError, RuntimeError):
    """A run failed: a rank raised or died, or the run's time was over.

    The message names the rank that failed first, its exception with the cell's own lines, and what became of the other ranks. It holds
    no pid, time, id or path: those are on `run`. `__cause__` is the exception of that rank where it could be sent.
    """

    run: Any = None
    lines: Sequence[str] = ()
    __notes__: list[str]

    @classmethod
    def of(cls, run: Any, headline: str, lines: Sequence[str]) -> RunFailed:
        error = cls(headline)
        error.run = run
        error.lines = tuple(lines)
        error.__notes__ = ["\n".join(lines)] if lines else []  # what plain Python, from 3.11 on, prints below the message
        return error

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}", *self.lines]

    def __reduce__(self) -> tuple[Any, ...]:
        # A Run is a handle on processes and stays where it is.
        return type(self).of, (None, str(self), self.lines)
