from __future__ import annotations

import builtins
import collections.abc
import errno
import inspect
import itertools
import os
import pickle
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ice_notebook import errors
from ice_notebook.errors import (
    CellSyntaxError,
    DeviceError,
    FrozenError,
    IceNotebookError,
    LaunchError,
    OptionError,
    PayloadError,
    Refusal,
    ResultError,
    RunFailed,
)
from ice_notebook.errors.nodes import NodeError

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, IceNotebookError)] + [NodeError]
REFUSAL = Refusal("config['log']", "an open file", "Open it in the function.", "Return its name.", True, "train", 3, "write(log)")


CONSTRUCTORS = [
    pytest.param(kind, getattr(kind, name), id=f"{kind.__name__}.{name}")
    for kind in CLASSES
    for name, member in vars(kind).items()
    if isinstance(member, classmethod)
]


def _syntax_error() -> SyntaxError:
    try:
        compile("a = 1\n    b = (2\n", "cell", "exec")
    except SyntaxError as error:
        return error
    pytest.fail("that is no Python")


def _samples(name: str, kind: Any) -> tuple[Any, ...]:
    """Values for a parameter, by its type. Texts and numbers can be found again in a sentence."""
    kind = typing.get_origin(kind) or kind
    if kind is bool:
        return (False, True)
    if kind is int or kind is float:
        return (71,)
    if kind in {collections.abc.Sequence, collections.abc.Iterable}:
        return (("first", "second"),)
    if kind is OSError:
        return (OSError(28, "No space left on device"), OSError("no strerror"))
    if kind is SyntaxError:
        return (_syntax_error(),)
    if kind is Refusal:
        return (REFUSAL, Refusal("log", "an open file", "Open it in the function.", "Return its name."))
    if isinstance(kind, type) and issubclass(kind, BaseException):
        return (kind("what it said"),) if kind is not BaseException else (ValueError("what it said"),)
    return (f"the-{name}",)


def _calls(constructor: Callable[..., IceNotebookError]) -> Iterator[tuple[dict[str, Any], IceNotebookError]]:
    hints = typing.get_type_hints(constructor)
    names = list(inspect.signature(constructor).parameters)
    for values in itertools.product(*(_samples(name, hints[name]) for name in names)):
        arguments = dict(zip(names, values, strict=True))
        yield arguments, constructor(**arguments)


@pytest.mark.parametrize(("kind", "constructor"), CONSTRUCTORS)
def test_every_constructor_makes_a_sentence_of_its_class(kind: type[IceNotebookError], constructor: Callable[..., Any]) -> None:
    for arguments, error in _calls(constructor):
        text = str(error)
        assert type(error) is kind
        assert text
        assert "\n" not in text
        assert "  " not in text
        assert "!" not in text.replace("`!`", "").replace("`!command`", "")
        assert " object at 0x" not in text
        if kind not in {RunFailed, CellSyntaxError}:  # a headline, and Python's own words
            # What stands last may be the caller's own text: a reason, or the source line that refers to an object.
            assert text.endswith((".", "?", *(value for value in arguments.values() if isinstance(value, str)), REFUSAL.source))


# What is found is described by its type, or is only looked through for something similar.
_UNSAID = {("CellError.not_callable", "found"), ("CellError.no_function", "found"), ("RunFailed.of", "run")}


@pytest.mark.parametrize(("kind", "constructor"), CONSTRUCTORS)
def test_every_sentence_quotes_what_was_found(kind: type[IceNotebookError], constructor: Callable[..., Any]) -> None:
    for arguments, error in _calls(constructor):
        for name, value in arguments.items():
            if (
                isinstance(value, (str, int))
                and not isinstance(value, bool)
                and (f"{kind.__name__}.{constructor.__name__}", name) not in _UNSAID
            ):
                assert str(value) in str(error), f"{name} is not told"


@pytest.mark.parametrize(("kind", "constructor"), CONSTRUCTORS)
def test_every_error_survives_the_way_from_a_rank(kind: type[IceNotebookError], constructor: Callable[..., Any]) -> None:
    for _, error in _calls(constructor):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert str(copy) == str(error)
        assert copy._render_traceback_() == error._render_traceback_()


@pytest.mark.parametrize("kind", [c for c in CLASSES if c is not IceNotebookError])
def test_every_error_is_of_the_builtin_kind_that_a_caller_would_expect(kind: type[IceNotebookError]) -> None:
    bases = [c for c in kind.__mro__ if c.__module__ == builtins.__name__ and c not in {Exception, BaseException, object}]
    assert bases
    assert kind.__init__ is Exception.__init__ or kind.__init__ is bases[0].__init__  # type: ignore[misc]
    assert kind.__doc__


def test_a_failed_run_is_drawn_by_its_lines_and_leaves_the_run_behind_when_it_travels() -> None:
    run = object()
    error = RunFailed.of(run, "rank 1: ValueError: bad loss (Cell In[3], line 4)", ["", "rank 0: stopped"])
    assert error.run is run
    assert error._render_traceback_() == [
        "RunFailed: rank 1: ValueError: bad loss (Cell In[3], line 4)",
        "",
        "rank 0: stopped",
    ]
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.run, str(copy), copy.lines) == (None, str(error), ("", "rank 0: stopped"))


def test_a_bare_failed_run_can_be_raised_and_sent() -> None:
    copy = pickle.loads(pickle.dumps(RunFailed("by hand")))
    assert (str(copy), copy.lines, copy.run) == ("by hand", (), None)


def test_a_payload_error_keeps_what_was_found_when_it_travels() -> None:
    error = PayloadError.holds(REFUSAL)
    assert str(error) == (
        "`config['log']` cannot be sent to the ranks: it holds an open file. Open it in the function."
        " `train` uses it in line 3: write(log)"
    )
    assert pickle.loads(pickle.dumps(error)).refusal == REFUSAL


def test_a_misspelled_option_is_suggested_and_a_strange_one_gets_the_list() -> None:
    assert str(OptionError.unknown("devcies", ["devices", "env"])) == "'devcies' is not an option. Did you mean 'devices'?"
    assert str(OptionError.unknown("zzz", ["env", "devices"])) == "'zzz' is not an option. The options are devices and env."
    error = OptionError.unknown("zzz", ["env"]).with_no_variable("picker", ["picker_1"])
    assert str(error).endswith("No variable of this notebook is called 'picker' either. Did you mean 'picker_1'?")
    assert isinstance(error, OptionError)


def test_long_values_are_cut_and_sizes_are_said_as_people_do() -> None:
    assert len(str(OptionError.invalid("env", "x" * 10_000, "a mapping"))) < 200
    assert str(ResultError.no_room(1, 3 * 2**30)).startswith("The value returned by rank 1 has 3 GiB,")
    assert [errors.format_size(n) for n in (0, 640, 1024, 1536 * 2**20)] == ["0 B", "640 B", "1 KiB", "1.5 GiB"]
    assert "e+" not in errors.format_size(1023 * 1024)


def test_words_are_joined_as_in_english() -> None:
    assert errors.join([]) == ""
    assert errors.join(["a"]) == "a"
    assert errors.join(["a", "b"], "or") == "a or b"
    assert errors.join([1, 2, 3]) == "1, 2 and 3"


def test_a_folder_error_gives_advice_on_whose_folder_it_is() -> None:
    problem = PermissionError(13, "Permission denied")
    assert "log_dir" in str(LaunchError.folder("/data/logs", problem, is_users=True))
    assert "XDG_CACHE_HOME" in str(LaunchError.folder("/home/a/.cache", problem, is_users=False))


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free space there, or give log_dir a folder with room."),
        (errno.EDQUOT, "Free space there, or give log_dir a folder with room."),
        (errno.EACCES, "Give log_dir a folder that you may write to."),
        (errno.EROFS, "Give log_dir a folder that you may write to."),
        (errno.ENOTDIR, "Move what is in the way, or give log_dir another folder."),
        (errno.ENAMETOOLONG, "Give log_dir another folder."),
        (errno.EIO, "Give log_dir another folder."),
    ],
)
def test_the_advice_on_a_file_is_that_for_its_trouble(number, advice) -> None:
    problem = OSError(number, os.strerror(number))
    for error in (LaunchError.folder("/data", problem, is_users=True), LaunchError.files("The run's files", problem)):
        assert str(error).endswith(f": {os.strerror(number)}. {advice}")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.EAGAIN, "ulimit -u"),
        (errno.ENOMEM, "memory"),
        (errno.E2BIG, "variables"),
        (errno.EACCES, "interpreter"),
    ],
)
def test_the_advice_on_processes_is_another(number, advice) -> None:
    said = str(LaunchError.resources(OSError(number, os.strerror(number))))
    assert advice in said
    assert "log_dir" not in said
    assert "Free space" not in said


def test_a_value_that_cannot_be_written_is_short_of_room_only_where_that_is_so() -> None:
    full, gone = (OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.ENOENT))
    assert str(ResultError.unwritten(1, 2048, full)) == str(ResultError.no_room(1, 2048))
    assert str(ResultError.unwritten(1, 2048, gone)) == "The value returned by rank 1 cannot be written: No such file or directory."


def test_options_are_written_as_they_are_where_the_sentence_is_read() -> None:
    assert str(OptionError.invalid("nproc_per_node", "two", "a number")) == "nproc_per_node='two' is not valid: expected a number."
    with errors.options_with_dashes():
        assert str(OptionError.invalid("nproc_per_node", "two", "a number")).startswith("--nproc-per-node='two' is not valid")
        assert errors.written("rdzv_configs") == "--rdzv-conf"
    assert errors.written("rdzv_configs", "a=1") == "rdzv_configs=a=1"


def test_gpu_is_understood_as_cuda_and_a_frozen_launcher_says_what_to_do() -> None:
    assert str(DeviceError.unknown_kind("gpu:0", "gpu", ["auto", "cpu", "cuda"])).endswith("Did you mean 'cuda'?")
    assert "clone()" in str(FrozenError.option("devices"))


def test_a_syntax_error_points_at_the_place() -> None:
    error = CellSyntaxError.of(_syntax_error(), "Cell In[3]")
    assert str(error) == "unexpected indent (Cell In[3], line 2)"
    assert error.excerpt[0] == "    b = (2"
    assert error._render_traceback_()[-1] == "CellSyntaxError: unexpected indent (Cell In[3], line 2)"
