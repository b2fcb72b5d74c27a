"""Values to a file and back: what arrives, what the file costs, and what is left when it goes wrong."""

from __future__ import annotations

import errno
import importlib
import linecache
import mmap
import os
import pickle
import subprocess
import sys
import textwrap
from array import array
from types import ModuleType

import cloudpickle
import pytest

from ice_notebook.errors import OptionError, PayloadError, ResultError, UnknownFormWarning
from ice_notebook.values import pickles, value_files
from ice_notebook.values.pickles import DeviceTensors, Written, dump, load, prepare

TO_HOST = DeviceTensors.TO_HOST


@pytest.fixture
def path(tmp_path):
    return tmp_path / "value"


@pytest.fixture
def other_main(monkeypatch):
    """The `__main__` of a rank: fresh, without what the notebook holds."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


def cell(text, namespace, name="/cells/1.py"):
    """Run a cell in a notebook's variables."""
    source = textwrap.dedent(text)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), namespace)
    return namespace


def notebook():
    return {"__name__": "__main__", "__builtins__": __builtins__}


def round_trip(value, path, **options):
    dump(value, path, devices=TO_HOST, **options)
    return load(path)


class Holder:
    """Gives its memory out of band, as numpy does, and takes what it is loaded from as it is."""

    def __init__(self, memory):
        self.memory = memory

    def __reduce_ex__(self, protocol):
        return Holder, (pickle.PickleBuffer(self.memory),)


# ---- what arrives ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [None, 1, "text", b"x" * 200_000, bytearray(200_000), [1, {"a": (2, {3})}], array("d", [0.5]), 1 << 200], ids=type
)
def test_plain_values_come_back(value, path):
    assert round_trip(value, path) == value


def test_shared_and_cyclic_structure_is_kept(path):
    inner = [1]
    value = {"a": inner, "b": inner}
    value["self"] = value
    back = round_trip(value, path)
    assert back["a"] is back["b"]
    assert back["self"] is back


def test_a_lambda_and_its_closure_come_back(path):
    scale = 3
    assert round_trip(lambda x: x * scale, path)(2) == 6


def test_buffers_are_aligned_and_mapped(path):
    value = [Holder(bytearray([i]) * (2000 + i)) for i in range(5)]
    back = round_trip(value, path)
    assert [bytes(h.memory) for h in back] == [bytes(h.memory) for h in value]
    with open(path, "rb") as file:
        layout = value_files.read_layout(file, path)
    assert len(layout.buffer_sizes) == 5
    assert all(start % 64 == 0 for start in layout.starts[:-1])
    assert all(isinstance(h.memory.obj, mmap.mmap) for h in back)


def test_writing_to_a_loaded_buffer_changes_neither_the_file_nor_another_reader(path):
    dump(Holder(bytearray(5000)), path, devices=TO_HOST)
    before = path.read_bytes()
    first, second = load(path), load(path)
    first.memory[0] = 7
    assert (first.memory[0], second.memory[0]) == (7, 0)
    assert path.read_bytes() == before


def test_a_read_only_buffer_stays_read_only(path):
    assert round_trip(Holder(bytes(5000)), path).memory.readonly


def test_a_loaded_value_survives_the_unlinking_of_its_file(path):
    dump(Holder(bytearray(b"ab" * 5000)), path, devices=TO_HOST)
    back = load(path)
    path.unlink()
    assert bytes(back.memory[:4]) == b"abab"


def test_a_small_buffer_keeps_no_mapping(path):
    assert not isinstance(round_trip(Holder(bytearray(8)), path).memory, memoryview)


def test_numpy_arrays_travel_out_of_band(path):
    numpy = pytest.importorskip("numpy")
    value = {
        "a": numpy.arange(10_000.0),
        "f": numpy.asfortranarray(numpy.ones((50, 60))),
        "view": numpy.arange(100)[::3],
        "o": numpy.array([{}, None]),
    }
    prepared = prepare(value, devices=TO_HOST)
    assert prepared._buffers[0].nbytes == 80_000
    prepared.write(path)
    back = load(path)
    for name, array_ in value.items():
        assert numpy.array_equal(back[name], array_)
        assert back[name].dtype == array_.dtype
    assert back["a"].flags.writeable
    assert back["a"].ctypes.data % 64 == 0
    assert back["f"].flags.f_contiguous
    back["a"][0] = 5


def test_neither_side_imports_torch_or_numpy(path):
    done = run_python(
        f"""
        import sys
        from ice_notebook.values.pickles import DeviceTensors, dump, load
        dump({{"a": bytearray(5000)}}, {str(path)!r}, devices=DeviceTensors.TO_HOST)
        load({str(path)!r})
        print(sorted({{"torch", "numpy"}} & set(sys.modules)))
        """
    )
    assert done == "[]"


# ---- the file ----------------------------------------------------------------------------------------------------------------------


def test_the_file_is_the_owners_alone_and_has_the_size_that_was_said(path):
    prepared = prepare([Holder(bytearray(5000)), "x" * 100_000], devices=TO_HOST)
    old = os.umask(0)
    try:
        prepared.write(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == prepared.size_bytes
    assert dump(1, path, devices=TO_HOST) == Written(path.stat().st_size, frozenset())
    assert os.listdir(path.parent) == ["value"]


def test_large_bytes_are_not_copied_before_they_are_written():
    value = b"x" * 1_000_000
    assert any(part is value for part in prepare([value], devices=TO_HOST)._stream)


def test_many_buffers_need_few_write_calls(path, monkeypatch):
    calls = []
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: calls.append(len(parts)) or writev(fd, parts))
    value = [Holder(bytearray(1100 + i)) for i in range(2000)]
    back = round_trip(value, path)
    assert all(bytes(a.memory) == bytes(b.memory) for a, b in zip(value, back, strict=True))
    assert len(calls) < 12


def test_short_writes_are_continued(path, monkeypatch):
    write = os.write

    def a_little(fd, parts):
        return write(fd, bytes(next(p for p in parts if p.nbytes)[:1000]))

    monkeypatch.setattr(os, "writev", a_little)
    value = [Holder(bytearray(range(250)) * 20) for _ in range(3)]
    assert [bytes(h.memory) for h in round_trip(value, path)] == [bytes(h.memory) for h in value]


@pytest.mark.parametrize("keep", [0, 10, 5000, -1, -32])
def test_a_cut_file_is_a_clear_error(path, keep):
    dump(Holder(bytearray(5000)), path, devices=TO_HOST)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResultError, match="does not hold a whole value"):
        load(path)


def test_another_file_is_a_clear_error(path):
    path.write_bytes(pickle.dumps(1) * 1000)
    with pytest.raises(ResultError, match="its end is not that of a value's file"):
        load(path)


def test_a_file_with_bytes_before_it_is_a_clear_error(path):
    dump(1, path, devices=TO_HOST)
    path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(ResultError, match="bytes and has"):
        load(path)


def test_a_missing_file_is_a_file_not_found_error(path):
    with pytest.raises(FileNotFoundError):
        load(path)


def failing_after(calls, error):
    writev = os.writev
    done = []

    def write(fd, parts):
        done.append(1)
        if len(done) > calls:
            raise error
        return writev(fd, parts)

    return write


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()],
    ids=["full", "interrupt", "memory"],
)
def test_nothing_is_left_of_a_write_that_stops(path, monkeypatch, error):
    monkeypatch.setattr(value_files, "PIECE_BYTES", 1000)
    monkeypatch.setattr(os, "writev", failing_after(2, error))
    with pytest.raises(type(error)):
        dump(Holder(bytearray(50_000)), path, devices=TO_HOST)
    assert os.listdir(path.parent) == []


def test_an_older_value_stays_when_a_new_one_cannot_be_written(path, monkeypatch):
    dump("old", path, devices=TO_HOST)
    monkeypatch.setattr(os, "writev", failing_after(0, OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        dump("new", path, devices=TO_HOST)
    assert load(path) == "old"
    assert os.listdir(path.parent) == ["value"]


def test_an_interrupt_while_pickling_leaves_nothing(path):
    class Slow:
        def __reduce__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dump([1, Slow()], path, devices=TO_HOST)
    assert os.listdir(path.parent) == []


# ---- the first place with room -----------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path):
    folders = [tmp_path / "shared", tmp_path / "folder"]
    for folder in folders:
        folder.mkdir()
    return [folder / "value" for folder in folders]


def test_the_first_place_with_room_is_taken(places):
    assert prepare([1], devices=TO_HOST).write_first(places) == places[0]
    assert load(places[0]) == [1]
    assert os.listdir(places[1].parent) == []


def test_a_value_that_does_not_fit_shared_memory_goes_to_the_folder(places, monkeypatch):
    monkeypatch.setattr(value_files, "fits_shared_memory", lambda size, folder: False)
    assert prepare([1], devices=TO_HOST).write_first(places) == places[1]
    assert os.listdir(places[0].parent) == []


def test_shared_memory_that_becomes_full_falls_through_to_the_folder(places, monkeypatch):
    write_file = value_files.write_file

    def full_first(path, *rest):
        if path == places[0]:
            raise OSError(errno.ENOSPC, "full")
        write_file(path, *rest)

    monkeypatch.setattr(value_files, "write_file", full_first)
    assert prepare([1], devices=TO_HOST).write_first(places) == places[1]


def test_a_missing_first_folder_falls_through(places):
    places[0].parent.rmdir()
    assert prepare([1], devices=TO_HOST).write_first(places) == places[1]


def test_no_room_anywhere_is_the_systems_error_and_leaves_nothing(places, monkeypatch):
    monkeypatch.setattr(os, "writev", failing_after(0, OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError) as raised:
        prepare([1], devices=TO_HOST).write_first(places)
    assert raised.value.errno == errno.ENOSPC
    assert [os.listdir(place.parent) for place in places] == [[], []]


@pytest.mark.parametrize(
    ("size", "total", "free", "fits"),
    [
        (1 << 20, 64 << 20, 64 << 20, True),
        (60 << 20, 64 << 20, 64 << 20, True),  # a container has 64 MiB in all: 5 % of them stay free
        (62 << 20, 64 << 20, 64 << 20, False),
        (900 << 20, 1 << 30, 1 << 30, True),
        ((1024 - 50) << 20, 1 << 30, 1 << 30, False),
        (10 << 20, 100 << 30, 64 << 20, False),
    ],
)
def test_shared_memory_keeps_headroom(monkeypatch, size, total, free, fits):
    class Found:
        f_frsize = 4096
        f_blocks = total // 4096
        f_bavail = free // 4096

    monkeypatch.setattr(os, "statvfs", lambda folder: Found)
    monkeypatch.setattr(value_files, "_free_memory", lambda: 1 << 40)
    assert value_files.fits_shared_memory(size, "/dev/shm") is fits


def test_shared_memory_is_not_filled_beyond_the_machines_memory(monkeypatch):
    monkeypatch.setattr(value_files, "_free_memory", lambda: 10 << 20)
    assert not value_files.fits_shared_memory((10 << 20) + 1, os.curdir)


# ---- the notebook's own functions and classes --------------------------------------------------------------------------------------


def test_a_notebook_functions_globals_are_those_of_main(path, other_main):
    user_ns = cell(
        """
        count = 0
        unused = 1

        def step():
            global count
            count += 1
            return count

        def train():
            return step() + step()
        """,
        notebook(),
    )
    back = round_trip(user_ns["train"], path, main_globals=user_ns)
    assert back.__globals__ is vars(other_main)
    assert back() == 3
    assert other_main.count == 2
    assert not hasattr(other_main, "unused")
    assert user_ns["count"] == 0


def test_what_came_from_the_notebook_can_be_pickled_by_reference(path, other_main):
    user_ns = cell(
        """
        class Item:
            pass

        def train(items):
            return items

        item = Item()
        """,
        notebook(),
    )
    function, item = round_trip((user_ns["train"], user_ns["item"]), path, main_globals=user_ns)
    assert pickle.loads(pickle.dumps(function)) is function
    assert type(pickle.loads(pickle.dumps(item))) is type(item)


def test_a_name_that_means_something_else_by_now_is_not_bound(path, other_main):
    user_ns = cell("def f(): return 1\nold = f\ndef f(): return 2", notebook())
    round_trip(user_ns["old"], path, main_globals=user_ns)
    assert not hasattr(other_main, "f")


def test_a_result_changes_nothing_in_main(path, other_main):
    user_ns = cell("x = 1\ndef f(): return x", notebook())
    assert round_trip(user_ns["f"], path)() == 1
    assert set(vars(other_main)) == set(vars(ModuleType("__main__")))


def test_without_cloudpickles_record_a_function_has_globals_of_its_own(path, other_main, monkeypatch):
    user_ns = cell("x = 1\ndef f(): return x", notebook())
    use = pickles._use_main_globals
    monkeypatch.setattr(pickles, "_use_main_globals", lambda pickler, *rest: use(object(), *rest))
    pickles.note_unknown_form.cache_clear()
    with pytest.warns(UnknownFormWarning, match=r"cloudpickle \d[\d.]* pickles the globals of functions in a form"):
        back = round_trip(user_ns["f"], path, main_globals=user_ns)
    assert back() == 1
    assert back.__globals__ is not vars(other_main)


def test_source_files_are_those_of_what_goes_by_value(path):
    user_ns = cell("def helper(): return 1", notebook(), "/cells/1.py")
    cell("class Model:\n    def step(self): return helper()", user_ns, "/cells/2.py")
    cell("import textwrap\ndef train(): return Model().step(), textwrap.dedent", user_ns, "/cells/3.py")
    cell("def other(): pass", user_ns, "/cells/4.py")
    written = dump(user_ns["train"], path, devices=TO_HOST, main_globals=user_ns)
    assert written.source_files == {"/cells/1.py", "/cells/2.py", "/cells/3.py"}


def run_python(text, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text), *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_a_notebooks_class_keeps_its_identity_through_another_process(path, tmp_path):
    user_ns = cell(
        """
        class Point:
            def __init__(self, x):
                self.x = x

        def move(points):
            return [Point(p.x + 1) for p in points], Point
        """,
        notebook(),
    )
    dump((user_ns["move"], [user_ns["Point"](1)]), path, devices=TO_HOST, main_globals=user_ns)
    answer = tmp_path / "answer"
    run_python(
        """
        import sys
        from ice_notebook.values.pickles import DeviceTensors, dump, load
        function, points = load(sys.argv[1])
        assert type(points[0]) is Point
        dump(function(points), sys.argv[2], devices=DeviceTensors.TO_HOST)
        """,
        str(path),
        str(answer),
    )
    points, kind = load(answer)
    assert kind is user_ns["Point"]
    assert isinstance(points[0], user_ns["Point"])
    assert points[0].x == 2


# ---- modules by value --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def local_module(tmp_path, monkeypatch):
    (tmp_path / "somewhere_local.py").write_text("factor = 2\ndef double(x):\n    return factor * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "somewhere_local"
    sys.modules.pop("somewhere_local", None)


def test_a_module_by_value_need_not_be_there(path, local_module, monkeypatch):
    double = importlib.import_module(local_module).double
    by_reference, by_value = path.with_suffix(".1"), path.with_suffix(".2")
    dump(double, by_reference, devices=TO_HOST)
    written = dump(double, by_value, devices=TO_HOST, by_value=[local_module])
    assert {os.path.basename(name) for name in written.source_files} == {"somewhere_local.py"}
    monkeypatch.setitem(sys.modules, local_module, None)
    with pytest.raises(ModuleNotFoundError):
        load(by_reference)
    assert load(by_value)(4) == 8


def test_a_module_by_value_is_imported_when_it_is_not_yet(path, local_module):
    dump(1, path, devices=TO_HOST, by_value=[local_module])
    assert local_module in sys.modules


def test_cloudpickles_register_is_as_it_was_afterwards(path, local_module):
    before = cloudpickle.list_registry_pickle_by_value()
    dump(1, path, devices=TO_HOST, by_value=[local_module])
    assert cloudpickle.list_registry_pickle_by_value() == before
    with pytest.raises(PayloadError):
        dump((i for i in ()), path, devices=TO_HOST, by_value=[local_module])
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_a_module_that_the_user_registered_stays_registered(path, local_module):
    module = importlib.import_module(local_module)
    cloudpickle.register_pickle_by_value(module)
    try:
        dump(1, path, devices=TO_HOST, by_value=[local_module])
        assert local_module in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_a_module_that_is_not_there_is_named(path):
    with pytest.raises(
        OptionError, match=r"by_value='no_such_module': importing it raised ModuleNotFoundError.*Name packages or modules"
    ):
        dump(1, path, devices=TO_HOST, by_value=["no_such_module"])


def test_a_module_that_fails_to_import_is_named(path, tmp_path, monkeypatch):
    (tmp_path / "broken_local.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OptionError, match="'broken_local': importing it raised ZeroDivisionError"):
        dump(1, path, devices=TO_HOST, by_value=["broken_local"])
