"""What depends on other packages holds with the oldest that pyproject.toml allows, and with the newest that there are: a short suite."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata
from pathlib import Path

import overlays
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
MAIN_PATH = "tests/launch/test_main_path.py"
SHORT = (
    "tests/unit/test_device_picker.py",
    "tests/unit/test_devices.py",
    "tests/unit/test_nodes_connection.py",
    "tests/unit/test_pickles.py",
    "tests/unit/test_pickles_torch.py",
    "tests/unit/test_private_names.py",
    "tests/unit/test_processes.py",
    "tests/unit/test_protocol.py",
    "tests/unit/test_refusals.py",
    "tests/unit/test_run_panel.py",
    "tests/unit/test_safe_html.py",
    "tests/unit/test_tracebacks.py",
    "tests/launch/test_capture.py",
    "tests/launch/test_restarts.py",
    MAIN_PATH,
)
# What each environment has on its path, and what runs there.
SUITES = {"oldest": SHORT, overlays.NEWEST: SHORT, "ipython-8": (MAIN_PATH,)}


@pytest.mark.launch
@pytest.mark.timeout(1200)  # of all tests together; each has its own
@pytest.mark.parametrize("name", SUITES)
def test_the_short_suite_passes_with_other_versions(name: str, capsys: pytest.CaptureFixture[str]):
    command = [
        overlays.python(name),
        "-m",
        "pytest",
        "-p",
        "pytest_timeout",
        "-p",
        "no:cacheprovider",
        "-q",
        "--color=no",
        *SUITES[name],
    ]
    done = subprocess.run(command, cwd=ROOT, env=overlays.variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        versions = subprocess.run([overlays.python(name), "-c", VERSIONS], capture_output=True, text=True, check=True).stdout
        pytest.fail(f"The short suite fails with the versions {name!r}:\n{versions}\n{done.stdout[-20_000:]}", pytrace=False)
    with capsys.disabled():
        print(f" {name}: {done.stdout.strip().splitlines()[-1]} ", end="")


VERSIONS = """
from importlib import metadata
for name in ("anywidget", "cloudpickle", "cryptography", "ipykernel", "ipython", "ipywidgets", "msgspec", "nh3", "platformdirs", "psutil", "torch"):
    print(name, metadata.version(name))
"""


def test_the_oldest_versions_are_those_that_pyproject_allows():
    for requirement in map(Requirement, overlays.dependencies()):
        (lower,) = requirement.specifier
        assert (lower.operator, overlays.pinned("oldest", requirement.name)) == (">=", lower.version), requirement


def test_colabs_image_has_what_is_needed_and_pip_would_change_nothing_there():
    """The versions of its public list of August 2026; what it lacks is installed anew, which changes nothing."""
    image = {
        "anywidget": "0.9.21",
        "cloudpickle": "3.1.2",
        "cryptography": "50.0.0",
        "ipykernel": "6.17.1",
        "ipython": "7.34.0",
        "ipywidgets": "7.7.1",
        "nvidia-ml-py": "13.610.43",
        "platformdirs": "4.11.3",
        "psutil": "5.9.5",
        "torch": "2.11.0",
    }
    needed = {Requirement(each) for each in metadata.requires("ice-notebook") or () if "extra" not in each}
    # The list is of what was installed by name: wcwidth, of any version, comes with IPython's prompt.
    assert {each.name for each in needed} - set(image) == {"msgspec", "nh3", "wcwidth"}
    assert [each for each in needed if each.name in image and not each.specifier.contains(image[each.name])] == []


def test_torch_is_the_pinned_one_in_every_environment():
    pinned = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    for name in SUITES:
        found = subprocess.run([overlays.python(name), "-c", VERSIONS], capture_output=True, text=True, check=True).stdout
        assert f"torch {pinned[1]}" in found
