"""Arrays on mapped files: the ranks map the file as well; nothing of it is read or copied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from arriving import Notebook

from ice_notebook.values.pickles import DeviceTensors, dump, load, prepare

numpy = pytest.importorskip("numpy")
TO_HOST = DeviceTensors.TO_HOST


@pytest.fixture
def mapped(tmp_path: Path):
    array = numpy.memmap(tmp_path / "data", dtype="int32", mode="w+", shape=(300, 40), offset=64)
    array[:] = numpy.arange(12_000).reshape(300, 40)
    return array


def there(value: object, tmp_path: Path):
    dump(value, tmp_path / "value", devices=TO_HOST, maps_files=True)
    return load(tmp_path / "value")


@pytest.mark.parametrize(
    "part",
    [
        lambda a: a,
        lambda a: a[100:],
        lambda a: a[5:50:3, ::2],
        lambda a: a[::-1],
        lambda a: a.T,
        lambda a: a[7],
        lambda a: numpy.asarray(a)[3:5],
        lambda a: a.view(numpy.uint8)[:, 2:],
    ],
)
def test_an_array_on_a_file_is_mapped_there(mapped, tmp_path, part):
    value = part(mapped)
    size = prepare(value, devices=TO_HOST, maps_files=True).size_bytes
    back = there(value, tmp_path)
    assert size < 2000, "the name of the file travels, and not its items"
    assert type(back) is type(value)
    assert (back.dtype, back.shape, back.strides) == (value.dtype, value.shape, value.strides)
    assert numpy.array_equal(back, value)
    back[..., 0] = 77
    assert numpy.array_equal(part(mapped), back), "what is written there is in the file"


def test_a_file_that_is_only_read_stays_so(mapped, tmp_path):
    back = there(numpy.memmap(tmp_path / "data", dtype="int32", mode="r", shape=(10,), offset=64), tmp_path)
    assert (back.mode, back.flags.writeable, back.tolist()) == ("r", False, list(range(10)))
    assert os.fspath(back.filename) == str(tmp_path / "data")


@pytest.mark.parametrize("change", ["remove", "replace", "copy on write", "a copy", "no file's"])
def test_what_does_not_lie_in_that_file_travels_with_its_items(mapped, tmp_path, change):
    value, path = mapped, tmp_path / "data"
    if change == "remove":
        path.unlink()
    elif change == "replace":
        (tmp_path / "other").write_bytes(bytes(path.stat().st_size))
        (tmp_path / "other").rename(path)
    elif change == "copy on write":
        value = numpy.memmap(path, dtype="int32", mode="c", shape=(300, 40), offset=64)
        value[:] = mapped
        value[0, 0] = 5
    elif change == "a copy":
        value = mapped + 0
    else:
        value = numpy.array(mapped)
    back = there(value, tmp_path)
    assert numpy.array_equal(back, value)
    assert prepare(value, devices=TO_HOST, maps_files=True)._buffers[0].nbytes == 48_000, "its memory is not copied"


def test_a_result_and_what_goes_to_other_machines_travel_with_their_items(mapped, tmp_path):
    assert prepare(mapped, devices=TO_HOST).size_bytes > 48_000
    notebook = Notebook(tmp_path)
    notebook.variables["mapped"] = mapped
    back = notebook.in_rank("mapped[:3]")
    assert numpy.array_equal(back, mapped[:3])
    assert getattr(back, "filename", None) is None
