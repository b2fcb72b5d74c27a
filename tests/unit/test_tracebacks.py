from __future__ import annotations

import importlib
import json
import linecache
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ice_notebook.host import installed
from ice_notebook.runs import tracebacks
from ice_notebook.runs.tracebacks import cut_middle, failure_from_exception, is_communication
from ice_notebook.wire import protocol as p


class Cells:
    """Runs sources as cells of one notebook, the way a rank does: compiled under a file name, with the source in linecache."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}
        self.namespace: dict[str, Any] = {"__name__": "__main__"}

    def run(self, source: str) -> None:
        number = len(self.labels) + 1
        name = f"/tmp/ipykernel_4242/{98765 + number}.py"
        self.labels[name] = f"Cell In[{number}]"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), self.namespace)

    def failure(self, source: str) -> p.Failure:
        try:
            self.run(source)
        except BaseException as error:
            tb = error.__traceback__
            while tb is not None and tb.tb_frame.f_code.co_filename == __file__:  # the test's own frames
                tb = tb.tb_next
            return failure_from_exception(error.with_traceback(tb), self.labels, at=12.5)
        pytest.fail("the cell did not raise")


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells()
    yield made
    for name in made.labels:
        linecache.cache.pop(name, None)


LOSS = """\
def step(x):
    y = x + 1
    raise ValueError("bad loss")
    return y

def train():
    for i in range(3):
        step(i)
"""


def test_a_cell_is_named_and_the_frames_are_the_users(cells: Cells) -> None:
    cells.run(LOSS)
    failure = cells.failure("train()\n")
    assert failure.headline == "ValueError: bad loss"
    assert (failure.kind, failure.type_name, failure.at, failure.is_communication) == ("raised", "ValueError", 12.5, False)
    assert [(f.where, f.line, f.function, f.source) for f in failure.frames] == [
        ("Cell In[2]", 1, "<module>", "train()"),
        ("Cell In[1]", 8, "train", "step(i)"),
        ("Cell In[1]", 3, "step", 'raise ValueError("bad loss")'),
    ]
    assert all(frame.is_users for frame in failure.frames)


def test_the_excerpt_is_five_lines_around_the_failing_one(cells: Cells) -> None:
    cells.run(LOSS)
    excerpt = cells.failure("train()\n").excerpt
    assert excerpt == p.Excerpt(where="Cell In[1]", first=1, lines=tuple(LOSS.splitlines()[:5]), failing=3)


@pytest.mark.parametrize(("failing", "first"), [(1, 1), (2, 1), (5, 3), (8, 5), (9, 5)])
def test_the_excerpt_stays_inside_the_cell(cells: Cells, failing: int, first: int) -> None:
    lines = [f"x{n} = {n}" for n in range(1, 10)]
    lines[failing - 1] = "1 / 0"
    excerpt = cells.failure("\n".join(lines)).excerpt
    assert excerpt is not None
    assert (excerpt.first, excerpt.failing, len(excerpt.lines)) == (first, failing, 5)
    assert excerpt.lines[failing - first] == "1 / 0"


def test_the_excerpt_of_a_short_cell_is_the_cell(cells: Cells) -> None:
    excerpt = cells.failure("a = 1\n1 / 0\n").excerpt
    assert excerpt == p.Excerpt(where="Cell In[1]", first=1, lines=("a = 1", "1 / 0"), failing=2)


def test_a_local_module_is_the_users_and_the_excerpt_prefers_the_cell(
    cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local_model.py").write_text("def forward(x):\n    return x / 0\n")
    parts = tmp_path / "local_parts"
    parts.mkdir()
    (parts / "__init__.py").write_text("from local_parts.block import run\n")
    (parts / "block.py").write_text("import local_model\n\ndef run():\n    return local_model.forward(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    failure = cells.failure("import local_parts\n\nlocal_parts.run()\n")
    monkeypatch.delitem(sys.modules, "local_model")
    assert [(f.where, f.line, f.is_users) for f in failure.frames][-3:] == [
        ("Cell In[1]", 3, True),
        ("local_parts/block.py", 4, True),
        ("local_model.py", 2, True),
    ]
    assert failure.frames[-1].source == "return x / 0"
    assert failure.excerpt is not None
    assert (failure.excerpt.where, failure.excerpt.failing) == ("Cell In[1]", 3)


def test_without_a_cell_the_excerpt_is_of_the_innermost_local_file(
    cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone.py").write_text("def forward(x):\n    return x / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("alone")
    try:
        module.forward(1)
    except ZeroDivisionError as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this test's own frame
        failure = failure_from_exception(error, {}, at=0)
    assert failure.excerpt == p.Excerpt(where="alone.py", first=1, lines=("def forward(x):", "    return x / 0"), failing=2)


def test_library_frames_behind_the_users_last_one_are_kept_by_module_and_those_between_are_not(cells: Cells) -> None:
    cells.run("import json\n\ndef parse(pairs):\n    return json.loads('{')\n")
    failure = cells.failure("json.loads('{}', object_pairs_hook=parse)\n")
    frames = [(f.where, f.is_users) for f in failure.frames]
    users = [where for where, is_users in frames if is_users]
    library = [where for where, is_users in frames if not is_users]
    assert users == ["Cell In[2]", "Cell In[1]"]
    assert library
    assert set(library) <= {"json", "json.decoder"}
    assert frames[-1] == ("json.decoder", False)
    assert str(Path(json.__file__).parent) not in repr(failure.frames)


def _own_module(name: str, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that stands inside of the package, as the rank's bootstrap does."""
    file = tmp_path / f"{name.rpartition('.')[2]}.py"
    module = types.ModuleType(name)
    for owner in (tracebacks, installed):
        monkeypatch.setattr(owner, "OWN_FOLDER", f"{tmp_path}/")
    exec(compile(source, str(file), "exec"), module.__dict__)
    return module


def test_frames_of_ice_notebook_are_cut_at_the_outer_end_only(
    cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "def call(function):\n    return function()\n\ndef refuse():\n    raise RuntimeError('not in a rank')\n"
    own = _own_module("ice_notebook.rank.bootstrap", tmp_path, source, monkeypatch)
    cells.run("def train():\n    refuse()\n")
    cells.namespace["refuse"] = own.refuse
    try:
        own.call(cells.namespace["train"])
    except RuntimeError as error:
        tb = error.__traceback__
        assert tb is not None
        failure = failure_from_exception(error.with_traceback(tb.tb_next), cells.labels, at=0)
    assert [(f.where, f.line) for f in failure.frames] == [("Cell In[1]", 2), ("ice_notebook.rank.bootstrap", 5)]
    assert "in call" not in failure.traceback
    assert "in refuse" in failure.traceback


def test_the_traceback_is_pythons_with_cells_by_their_names(cells: Cells) -> None:
    cells.run(LOSS)
    failure = cells.failure("try:\n    train()\nexcept ValueError as error:\n    raise KeyError('x') from error\n")
    text = failure.traceback
    assert 'File "Cell In[1]", line 3, in step\n    raise ValueError("bad loss")' in text
    assert "The above exception was the direct cause of the following exception:" in text
    assert text.endswith("KeyError: 'x'")
    assert "ipykernel_4242" not in text


def test_notes_stay_in_the_traceback_and_out_of_the_headline(cells: Cells) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("notes came with Python 3.11")
    failure = cells.failure("error = ValueError('bad')\nerror.add_note('in epoch 3')\nraise error\n")
    assert failure.headline == "ValueError: bad"
    assert "in epoch 3" in failure.traceback


def test_a_syntax_error_of_a_local_module_points_into_it(cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_part.py").write_text("x = 1\ndef f(:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    failure = cells.failure("import broken_part\n")
    assert failure.headline == "SyntaxError: invalid syntax"
    last = failure.frames[-1]
    assert (last.where, last.line, last.source) == ("broken_part.py", 2, "def f(:")
    assert failure.excerpt == p.Excerpt(where="broken_part.py", first=1, lines=("x = 1", "def f(:", "    pass"), failing=2)


def test_a_syntax_error_in_a_cell_bears_the_cells_name(cells: Cells) -> None:
    failure = cells.failure("a = 1\nb = = 2\n")
    assert failure.headline == "SyntaxError: invalid syntax"
    assert (failure.frames[-1].where, failure.frames[-1].line) == ("Cell In[1]", 2)
    assert 'File "Cell In[1]", line 2' in failure.traceback
    assert "ipykernel_4242" not in failure.traceback


def test_an_error_whose_str_raises_is_described(cells: Cells) -> None:
    failure = cells.failure("class Odd(Exception):\n    def __str__(self):\n        raise OSError('no')\n\nraise Odd()\n")
    assert failure.headline.startswith("Odd: (its message cannot be read")
    assert "Odd" in failure.traceback
    assert failure.excerpt is not None
    assert failure.excerpt.failing == 5


def test_an_error_that_lies_about_its_cause_is_described(cells: Cells) -> None:
    source = "class Odd(Exception):\n    @property\n    def __cause__(self):\n        raise OSError('no')\n\nraise Odd('bad')\n"
    failure = cells.failure(source)
    assert (failure.type_name, failure.kind) == ("Odd", "raised")
    assert "Odd" in failure.headline


def test_thousands_of_frames_are_bounded_and_the_gap_is_counted(cells: Cells) -> None:
    failure = cells.failure("def down(n):\n    return down(n + 1)\n\ndown(0)\n")
    assert failure.type_name == "RecursionError"
    assert len(failure.frames) == tracebacks.OUTER_FRAMES + 1 + tracebacks.INNER_FRAMES
    gap = failure.frames[tracebacks.OUTER_FRAMES]
    assert (gap.line, gap.is_users) == (0, False)
    assert gap.where.endswith("frames not shown …")
    assert "Previous line repeated" in failure.traceback
    assert len(failure.traceback) < 10_000


def test_mutual_recursion_through_long_lines_stays_below_the_bound(cells: Cells) -> None:
    pad = " + 0" * 200
    source = f"def a(n):\n    return b(n + 1){pad}\n\ndef b(n):\n    return a(n + 1){pad}\n\na(0)\n"
    failure = cells.failure(source)
    assert tracebacks.TRACEBACK_BYTES - 1000 < len(failure.traceback.encode()) <= tracebacks.TRACEBACK_BYTES
    assert "characters not shown" in failure.traceback
    assert failure.traceback.startswith("Traceback (most recent call last)")
    assert "RecursionError" in failure.traceback[-200:]


def test_a_huge_message_is_bounded_everywhere(cells: Cells) -> None:
    failure = cells.failure("raise ValueError('x' * 3_000_000)\n")
    assert len(failure.headline) == tracebacks.HEADLINE_CHARACTERS
    assert failure.headline.endswith("…")
    assert len(p.encode(failure)) < 80_000


@pytest.mark.parametrize("limit", [64, 65, 100, 1000, 1001])
def test_a_cut_text_is_never_longer_than_the_limit(limit: int) -> None:
    for text in ("a" * 5000, "é" * 5000, "🏖" * 5000, "a🏖é" * 1700):
        assert len(cut_middle(text, limit).encode()) <= limit
    assert cut_middle("short", limit) == "short"


def test_the_first_line_with_text_is_the_headline(cells: Cells) -> None:
    assert cells.failure("raise ValueError('\\n\\n  first\\nsecond')\n").headline == "ValueError: first"
    assert cells.failure("raise ValueError\n").headline == "ValueError"
    assert cells.failure("{}['a']\n").headline == "KeyError: 'a'"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("<object at 0x7f3fc0d7b022> is odd", "<object at 0x…> is odd"),
        (
            "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:24208. Look.",
            "Connection closed by peer [127.0.0.1]. Look.",
        ),
        (
            "timed out after 1000ms while trying to connect to (127.0.0.1, 41579).",
            "timed out after 1000ms while trying to connect to (127.0.0.1).",
        ),
        ("failed to listen. port: 41579, useIpv6: false", "failed to listen. port: …, useIpv6: false"),
        ("shapes (3, 4) and 10.0:20 at 12:30", "shapes (3, 4) and 10.0:20 at 12:30"),
    ],
)
def test_what_differs_from_run_to_run_is_not_in_the_headline(cells: Cells, message: str, shown: str) -> None:
    assert cells.failure(f"raise RuntimeError({message!r})\n").headline == f"RuntimeError: {shown}"


def test_the_headline_of_a_full_gpu_has_no_pids(cells: Cells) -> None:
    message = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 9 GiB. Process 4711 has 7 GiB in use."
    failure = cells.failure(f"class OutOfMemoryError(RuntimeError): pass\nraise OutOfMemoryError({message!r})\n")
    assert failure.headline == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert "4711" in failure.traceback


def test_an_error_of_a_dataloader_worker_is_told_by_its_own_words(cells: Cells) -> None:
    original = 'Traceback (most recent call last):\n  File "x.py", line 2, in __getitem__\nValueError: bad sample: 3\n'
    message = f"Caught ValueError in DataLoader worker process 0.\nOriginal {original}"
    failure = cells.failure(f"raise ValueError({message!r})\n")
    assert failure.headline == "ValueError: bad sample: 3 (in DataLoader worker process 0)"


def test_a_group_is_told_by_its_first_error_and_its_place(cells: Cells) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("exception groups came with Python 3.11")
    cells.run(LOSS)
    source = "errors = []\ntry:\n    train()\nexcept ValueError as error:\n    errors.append(error)\nraise ExceptionGroup('two', [ExceptionGroup('one', errors), KeyError('k')])\n"
    failure = cells.failure(source)
    assert failure.headline == "ExceptionGroup: two (2 sub-exceptions): ValueError: bad loss"
    assert failure.excerpt is not None
    assert (failure.excerpt.where, failure.excerpt.failing) == ("Cell In[1]", 3)


def test_an_error_of_ours_around_the_users_shows_the_users_frames(
    cells: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "def wrap(function):\n    try:\n        function()\n    except Exception as error:\n        raise RuntimeError('wrapped') from error\n"
    own = _own_module("ice_notebook.rank.bootstrap", tmp_path, source, monkeypatch)
    cells.run("def train():\n    1 / 0\n")
    try:
        own.wrap(cells.namespace["train"])
    except RuntimeError as error:
        tb = error.__traceback__
        assert tb is not None
        failure = failure_from_exception(error.with_traceback(tb.tb_next), cells.labels, at=0)
    assert failure.headline == "RuntimeError: wrapped"
    assert [(f.where, f.line) for f in failure.frames] == [("Cell In[1]", 2)]


def test_a_cycle_of_causes_ends(cells: Cells) -> None:
    failure = cells.failure("a = ValueError('a')\nb = KeyError('b')\na.__cause__ = b\nb.__cause__ = a\nraise a\n")
    assert failure.headline == "ValueError: a"
    assert failure.is_communication is False


def test_text_that_is_not_unicode_can_still_be_sent(cells: Cells) -> None:
    failure = cells.failure("raise OSError('no file \\udcff')\n")
    assert msgspec.json.decode(p.encode(failure), type=p.Failure) == failure
    assert failure.headline == "OSError: no file \\udcff"


def test_system_exit_and_interrupt_are_described(cells: Cells) -> None:
    assert cells.failure("import sys\nsys.exit(3)\n").headline == "SystemExit: 3"
    assert cells.failure("raise KeyboardInterrupt\n").headline == "KeyboardInterrupt"


@pytest.mark.parametrize(
    "message",
    [
        "[/__w/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:24208. This is typically caused by",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Read error [127.0.0.1]:5: Connection reset by peer",
        "Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144] no error",
        "NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a network error, ncclRemoteError",
        "Timed out waiting 1800000ms for recv operation to complete",
        "recvValue failed on SocketImpl(fd=29): failed to recv, got 0 bytes",
        "sendBytes failed on SocketImpl(fd=3): Broken pipe",
        "[Rank 0]: Ranks 1 failed to pass monitoredBarrier in 30000 ms",
    ],
)
def test_a_broken_connection_to_another_rank_is_communication(message: str) -> None:
    assert is_communication(RuntimeError(message))
    assert not is_communication(ValueError(message))


def _dist_error(name: str) -> type[RuntimeError]:
    return type(name, (type("DistError", (RuntimeError,), {}),), {})


def test_torch_distributeds_own_errors_are_communication_unless_they_are_the_ranks_mistake() -> None:
    assert is_communication(_dist_error("DistNetworkError")("The client socket has timed out after 1000ms"))
    assert is_communication(_dist_error("DistStoreError")("wait timeout after 200ms, keys: /x"))
    assert is_communication(ConnectionResetError(104, "Connection reset by peer"))
    assert not is_communication(
        _dist_error("DistNetworkError")("failed to listen, name: EADDRINUSE, message: address already in use")
    )
    assert not is_communication(_dist_error("DistBackendError")("NCCL error: ncclInvalidUsage, Duplicate GPU detected"))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad loss"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        RuntimeError("CUDA error: device-side assert"),
        OSError("disk"),
    ],
)
def test_other_errors_are_not_communication(error: BaseException) -> None:
    assert not is_communication(error)


def test_what_is_raised_from_a_broken_connection_is_communication_and_what_follows_one_is_not() -> None:
    broken = RuntimeError("Connection closed by peer [127.0.0.1]:5")
    wrapped = ValueError("the step failed")
    wrapped.__cause__ = broken
    meanwhile = ValueError("cleanup failed")
    meanwhile.__context__ = broken
    assert is_communication(wrapped)
    assert not is_communication(meanwhile)
