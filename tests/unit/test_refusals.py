"""What may not travel: named by the user's own names, with its line and a way out, before anything is written."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import functools
import io
import linecache
import os
import queue
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import weakref
from types import ModuleType, SimpleNamespace

import pytest

from ice_notebook.errors import PayloadError, ResultError, format_size
from ice_notebook.values.pickles import DeviceTensors, dump, load, prepare
from ice_notebook.values.references import find

LOCK = "a lock"


def cell(text, **variables):
    """Run a cell in a notebook with some variables, and return all of them."""
    namespace = {"__name__": "__main__", **variables}
    source = textwrap.dedent(text).lstrip("\n")
    linecache.cache["/cells/1.py"] = (len(source), None, source.splitlines(keepends=True), "/cells/1.py")
    exec(compile(source, "/cells/1.py", "exec"), namespace)
    return namespace


def refusal_of(value, **options):
    with pytest.raises(PayloadError) as raised:
        prepare(value, devices=DeviceTensors.TO_HOST, **options)
    assert raised.value.refusal is not None
    return raised.value.refusal


@pytest.fixture
def log(tmp_path):
    with open(tmp_path / "log.txt", "w", encoding="utf-8") as file:
        yield file


class Handle:
    _ice_refused = "the handle of a run, which lives in the notebook"


class Stubborn:
    def __reduce__(self):
        raise ValueError("not me at 0x7f0012345678\nmore")


# ---- the sentence ------------------------------------------------------------------------------------------------------------------


def test_the_sentence_names_variable_kind_way_out_and_line(log):
    train = cell(
        """
        def train():
            x = 1
            log.write("start")
        """,
        log=log,
    )["train"]
    with pytest.raises(PayloadError) as raised:
        prepare(train, devices=DeviceTensors.TO_HOST, names={"train": train})
    assert str(raised.value) == (
        '`log` cannot be sent to the ranks: it is an open file. Open it in the function. `train` uses it in line 3: log.write("start")'
    )


def test_a_result_has_a_sentence_of_its_own(log):
    refusal = refusal_of({"log": log}, names={"result": {"log": log}})
    assert str(ResultError.cannot_send(1, refusal)) == (
        "The value returned by rank 1 cannot be sent back: result['log'] is an open file. Return what it holds, or its path."
    )
    assert str(ResultError.cannot_send(0, refusal_of(log, names={"result": log}))) == (
        "The value returned by rank 0 cannot be sent back: it is an open file. Return what it holds, or its path."
    )


def test_an_object_that_pickle_refuses_is_named_with_the_reason():
    value = {"a": Stubborn()}
    with pytest.raises(PayloadError) as raised:
        prepare(value, devices=DeviceTensors.TO_HOST, names={"value": value})
    assert str(raised.value) == (
        "`value['a']` cannot be sent to the ranks: it is a Stubborn, and pickling it raised ValueError: not me at 0x…."
        " Create it in the function, or send what it is made from."
    )
    assert isinstance(raised.value.__cause__, ValueError)


def test_no_room_is_said_with_the_size():
    assert str(ResultError.no_room(2, 3 << 30)).startswith("The value returned by rank 2 has 3 GiB, and there is no room for it.")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1023 << 20, "1023 MiB"), (1536, "1.5 KiB"), (5 << 40, "5 TiB"), (300 << 20, "300 MiB")],
)
def test_sizes_read_as_people_say_them(size, text):
    assert format_size(size) == text


def test_nothing_is_written_for_what_is_refused(tmp_path):
    with pytest.raises(PayloadError):
        dump([threading.Lock()], tmp_path / "value", devices=DeviceTensors.TO_HOST)
    assert os.listdir(tmp_path) == []


# ---- kinds -------------------------------------------------------------------------------------------------------------------------


def a_generator():
    yield 1


async def a_coroutine():
    pass


def a_traceback():
    try:
        1 / 0
    except ZeroDivisionError as error:
        return error.__traceback__


KINDS = {
    "a lock": threading.Lock,
    "a lock ": threading.RLock,
    "something that threads wait for": threading.Event,
    "something that threads wait for ": threading.Condition,
    "a store of values of each thread": threading.local,
    "a thread": threading.Thread,
    "a queue between threads": queue.Queue,
    "a queue between threads ": queue.SimpleQueue,
    "a generator": a_generator,
    "part of a running call": a_traceback,
    "part of a running call ": sys._getframe,
    "the promise of a value": concurrent.futures.Future,
    "a weak reference": lambda: weakref.ref(Handle),
    "the handle of a run": Handle,
    "an open database": lambda: sqlite3.connect(":memory:"),
    "an open connection": socket.socket,
    "a pool of workers": lambda: concurrent.futures.ThreadPoolExecutor(1),
    "an event loop": asyncio.new_event_loop,
    "a coroutine": a_coroutine,
    "a process": lambda: subprocess.Popen(["true"]),
    "an open file": lambda: open(os.devnull, "rb"),
    "an open file ": lambda: open(os.devnull, encoding="utf-8"),
}


@pytest.mark.parametrize("words", list(KINDS))
def test_known_kinds_are_said_in_words(words):
    value = KINDS[words]()
    try:
        refusal = refusal_of([value])
        assert refusal.what.startswith(words.strip())
        assert refusal.path == "value[0]"
        assert refusal.advice.endswith(".")
        assert refusal.result_advice.endswith(".")
    finally:
        for method in ("close", "wait"):
            if not isinstance(value, (threading.Event, threading.Condition)):
                getattr(value, method, lambda: None)()


@pytest.mark.parametrize("value", [io.StringIO("a"), io.BytesIO(b"a")], ids=type)
def test_files_in_memory_travel(tmp_path, value):
    dump(value, tmp_path / "value", devices=DeviceTensors.TO_HOST)
    assert load(tmp_path / "value").getvalue() == value.getvalue()


def test_standard_streams_are_those_of_the_process_that_loads_them(tmp_path, monkeypatch):
    with open(os.devnull, "w", encoding="utf-8") as here, open(os.devnull, "w", encoding="utf-8") as there:
        monkeypatch.setattr(sys, "stdout", here)
        dump([sys.stdout, sys.__stderr__], tmp_path / "value", devices=DeviceTensors.TO_HOST)
        monkeypatch.setattr(sys, "stdout", there)
        assert load(tmp_path / "value") == [there, sys.stderr]


class Worker(threading.Thread):
    """Says itself how it is pickled."""

    def __reduce__(self):
        return Worker, ()


def test_a_class_that_says_how_it_is_pickled_is_not_stopped_by_its_base(tmp_path):
    dump(Worker(), tmp_path / "value", devices=DeviceTensors.TO_HOST)
    assert isinstance(load(tmp_path / "value"), Worker)


# ---- where -------------------------------------------------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("cache", "unset")


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024


@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("value", lambda x: x),
        ("value[1]", lambda x: [0, x]),
        ("value['log']", lambda x: {"log": x}),
        ("value[(1, 2)]", lambda x: {(1, 2): x}),
        ("value[…]", lambda x: {"k" * 100: x}),
        ("value['a'][0].b", lambda x: {"a": [SimpleNamespace(b=x)]}),
        ("value.right", lambda x: Pair(1, x)),
        ("value.keywords['log']", lambda x: functools.partial(print, log=x)),
        ("value.args[0]", lambda x: functools.partial(print, x)),
        ("value[0]", lambda x: collections.deque([x])),
    ],
)
def test_the_path_reads_as_the_user_would_write_it(path, make):
    assert refusal_of(make(threading.Lock())).path == path


def test_a_slot_is_an_attribute():
    value = Slotted()
    value.cache = threading.Lock()
    assert refusal_of(value).path == "value.cache"


@pytest.mark.parametrize("make", [lambda x: {x}, lambda x: {x: 1}, lambda x: map(str, [x]), lambda x: zip([1], [x], strict=True)])
def test_what_has_no_place_to_name_is_said_to_be_inside(make):
    refusal = refusal_of({"a": make(threading.Lock())})
    assert (refusal.path, refusal.is_inside, refusal.what) == ("value['a']", True, LOCK)


def test_the_shortest_path_is_taken():
    lock = threading.Lock()
    assert refusal_of({"deep": [[lock]], "short": lock}).path == "value['short']"


def test_an_object_made_while_pickling_is_said_to_be_inside():
    class Maker:
        def __reduce__(self):
            return Maker, (threading.Lock(),)

    refusal = refusal_of([Maker()])
    assert (refusal.path, refusal.is_inside, refusal.what) == ("value", True, LOCK)


def test_the_first_of_the_given_names_that_leads_there_is_used():
    lock = threading.Lock()
    value = ([1], {"a": lock})
    assert refusal_of(value, names={"args": value[0], "kwargs": value[1]}).path == "kwargs['a']"


def test_a_helpers_variable_is_found_through_the_function_that_calls_it():
    train = cell(
        """
        def helper():
            return [
                cache["lock"]
            ]

        def train():
            return helper()
        """,
        cache={"lock": threading.Lock()},
    )["train"]
    refusal = refusal_of(train, names={"train": train})
    assert (refusal.path, refusal.function, refusal.line, refusal.source) == ("cache['lock']", "helper", 3, 'cache["lock"]')


def test_a_line_in_a_nested_function_is_found():
    train = cell("def train():\n    def inner():\n        return lock\n    return inner", lock=threading.Lock())["train"]
    refusal = refusal_of(train, names={"train": train})
    assert (refusal.path, refusal.function, refusal.line) == ("lock", "train", 3)


def test_a_closures_variable_is_found():
    train = cell(
        "def make(lock):\n    def train():\n        return lock\n    return train\ntrain = make(lock)", lock=threading.Lock()
    )["train"]
    refusal = refusal_of(train, names={"train": train})
    assert (refusal.path, refusal.function, refusal.line) == ("lock", "train", 3)


@pytest.mark.parametrize("text", ["def train(a, lock=lock): pass", "def train(a, *, lock=lock): pass"])
def test_a_default_is_named_as_its_parameter(text):
    train = cell(text, lock=threading.Lock())["train"]
    refusal = refusal_of(train, names={"train": train})
    assert (refusal.path, refusal.source) == ("lock", text)


def test_a_class_of_the_notebook_is_searched():
    namespace = cell(
        """
        class Model:
            cache = {"lock": lock}

            @staticmethod
            def step():
                return 1

        model = Model()
        def train():
            return model
        """,
        lock=threading.Lock(),
    )
    assert refusal_of(namespace["train"], names={"train": namespace["train"]}).path == "Model.cache['lock']"


def test_a_method_of_a_notebook_class_is_searched(log):
    namespace = cell("class Model:\n    @property\n    def step(self):\n        return log.name\n", log=log)
    refusal = refusal_of(namespace["Model"]())
    assert (refusal.path, refusal.function, refusal.line) == ("log", "Model.step", 4)


def test_the_object_of_a_bound_method_is_searched():
    namespace = cell("class Model:\n    def step(self): pass\nmodel = Model()", lock=None)
    namespace["model"].lock = threading.Lock()
    assert refusal_of(namespace["model"].step).path == "value.__self__.lock"


def test_a_bound_method_is_said_to_hold_its_object():
    refusal = refusal_of({"stop": threading.Event().set})
    assert (refusal.path, refusal.is_inside) == ("value['stop']", True)


def test_installed_functions_are_not_searched():
    lock = threading.Lock()
    assert find({"dedent": textwrap.dedent}, is_wanted=lambda value, _: value is textwrap._whitespace_only_re) is None
    assert refusal_of([textwrap.dedent, lock]).path == "value[1]"


def test_a_module_by_value_is_searched(monkeypatch):
    module = ModuleType("local_by_value")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("import threading\nlock = threading.Lock()\ndef f(): return lock", vars(module))
    refusal = refusal_of(module.f, by_value=["local_by_value"], names={"f": module.f})
    assert (refusal.path, refusal.what) == ("lock", LOCK)


def test_a_cycle_ends_the_search():
    value = {"a": []}
    value["a"].append(value)
    value["b"] = threading.Lock()
    assert refusal_of(value).path == "value['b']"
    assert find({"value": value}, is_wanted=lambda value, _: False) is None


def test_a_million_numbers_do_not_hide_what_comes_after_them():
    assert refusal_of([list(range(1_000_000)), threading.Lock()]).path == "value[1]"


def test_a_search_has_an_end(monkeypatch):
    monkeypatch.setattr("ice_notebook.values.references.NODES", 50)
    refusal = refusal_of([[[] for _ in range(100)], [threading.Lock()]])
    assert (refusal.path, refusal.is_inside) == ("value", True)


# ---- what a library has made ---------------------------------------------------------------------------------------------------------


def sentence_of(value, **options):
    with pytest.raises(PayloadError) as raised:
        prepare(value, devices=DeviceTensors.TO_HOST, **options)
    return str(raised.value)


def test_what_is_inside_a_librarys_object_is_told_as_that_object():
    from rich.console import Console

    train = cell("def train():\n    return console", console=Console())["train"]
    assert sentence_of(train, names={"train": train}) == (
        "`console` cannot be sent to the ranks: it holds a lock (`console._lock`). Create `console` in the function."
        " `train` uses it in line 2: return console"
    )
    assert sentence_of({"a": [Console()]}).startswith(
        "`value['a'][0]` cannot be sent to the ranks: it holds a lock (`value['a'][0]._lock`). Create `value['a'][0]` in the function."
    )


def test_what_is_the_users_inside_a_librarys_object_is_named():
    import collections
    import logging

    handler = logging.Filter()  # any object of a library
    handler.mine = mine = cell("class Mine: pass")["Mine"]()
    mine.lock = threading.Lock()
    assert refusal_of(collections.OrderedDict(a=handler)).path == "value['a'].mine.lock"


def test_a_line_of_a_library_is_not_shown():
    import contextlib

    namespace = cell(
        "@stack.callback\ndef f(): pass\nkept = stack.pop_all()\ndef train(): return kept", stack=contextlib.ExitStack()
    )
    namespace["kept"].callback(threading.Lock().acquire)
    refusal = refusal_of(namespace["train"], names={"train": namespace["train"]})
    assert (refusal.path, refusal.function, refusal.line) == ("kept", "train", 4)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Only by name. See:\nhttps://there", "Only by name"),
        ("Not so.", "Not so"),
        ("", ""),
        ("one line: two", "one line: two"),
        ("in the next:\nline", "in the next:"),
    ],
)
def test_a_reason_is_cut_where_it_ends(message, said):
    class Refuses:
        def __reduce__(self):
            raise ValueError(message)

    assert refusal_of(Refuses()).what == f"a Refuses, and pickling it raised ValueError{f': {said}' if said else ''}".rstrip(".")


class Exits:
    def __reduce__(self):
        raise SystemExit(3)


class Interrupts:
    def __reduce__(self):
        raise KeyboardInterrupt


def test_an_object_that_leaves_the_program_when_it_is_pickled_is_refused():
    assert refusal_of([Exits()]).what == "an Exits, and pickling it raised SystemExit: 3"
    assert (
        refusal_of([Interrupts()], is_interrupted=lambda: False).what == "an Interrupts, and pickling it raised KeyboardInterrupt"
    )
    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupts(), devices=DeviceTensors.TO_HOST)


# ---- depth -------------------------------------------------------------------------------------------------------------------------


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def test_what_is_nested_too_deeply_is_named_by_its_variable():
    train = cell("def train():\n    return config, tree", tree=nested(100_000), config={"a": nested(10)})["train"]
    refusal = refusal_of(train, names={"train": train})
    assert (refusal.path, refusal.line) == ("tree", 2)
    assert refusal.what == "nested too deeply to be pickled"


def test_a_long_linked_list_is_named_by_its_variable():
    head = None
    for _ in range(10_000):
        head = SimpleNamespace(next=head)
    assert refusal_of({"list": head}, names={"list": head}).path == "list"


# ---- objects that stop nothing -----------------------------------------------------------------------------------------------------


def test_an_object_whose_repr_or_attributes_raise_does_not_hide_the_reason():
    class Odd:
        def __repr__(self):
            raise ValueError

        @property
        def broken(self):
            raise RuntimeError

        def __hash__(self):
            return 1

    assert refusal_of({"a": {Odd(): 1}, "b": {Odd(): threading.Lock()}}).path == "value['b'][…]"


def test_an_error_is_still_one_after_it_was_pickled():
    import pickle

    with pytest.raises(PayloadError) as raised:
        prepare(threading.Lock(), devices=DeviceTensors.TO_HOST)
    back = pickle.loads(pickle.dumps(raised.value))
    assert str(back) == str(raised.value)
    assert back.refusal == raised.value.refusal
