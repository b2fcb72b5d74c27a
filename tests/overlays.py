"""Environments with other versions than this one's: the oldest and the newest of all that is needed, an older IPython, older kernels.

`python tests/overlays.py` makes them, as `run-tests` does: a virtual environment each, which holds what differs, and finds everything else,
torch above all, in the environment of this interpreter. `tests/versions/NAME.txt` says what NAME has; `newest` has the newest release of every
dependency. One that is there is made anew when its file or constraints.txt has changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
REQUIREMENTS = Path(__file__).parent / "versions"
INSTALLED = Path(sys.prefix) / "versions"
NEWEST = "newest"
_MADE_FROM = "made-from.txt"  # in an environment: what it was made from


# ---- for tests


def is_ci() -> bool:
    """Return whether this is continuous integration, where nothing may be missing."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def fail_in_ci_or_skip(why: str) -> None:
    """End the test: something that it needs is missing here."""
    import pytest

    if is_ci():
        pytest.fail(why)
    pytest.skip(why)


def python(name: str) -> Path:
    """Return the interpreter of an environment; the test fails or is skipped where it was not made as its file says."""
    if not _is_made(name):
        fail_in_ci_or_skip(
            f"The environment {name!r} is missing or was made from other requirements; python tests/overlays.py makes it."
        )
    return _python(name)


def kernels() -> dict[str, Path]:
    """Return the interpreters of older ipykernels by the names of their environments, as far as these are made."""
    return {name: _python(name) for name in names() if pinned(name, "ipykernel") and _is_made(name)}


def pinned(name: str, package: str) -> str:
    """Return the version of a package that an environment's file names, empty when it names none."""
    if name == NEWEST:
        return ""
    found = re.search(rf"^{re.escape(package)}==(\S+)", _file(name).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def names() -> list[str]:
    """Return all environments."""
    return [*sorted(file.stem for file in REQUIREMENTS.glob("*.txt")), NEWEST]


def variables() -> dict[str, str]:
    """Return the environment variables for pytest in such an environment: plugins that are there twice, in two versions, stay away."""
    return {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


# ---- making them


def dependencies() -> list[str]:
    """Return what pyproject.toml asks for, torch aside, and the kernel that runs notebooks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    kernel = [each for each in project["optional-dependencies"]["test"] if each.startswith("ipykernel")]
    return [each for each in [*project["dependencies"], *kernel] if not re.match(r"torch\b", each)]


def make(name: str) -> None:
    """Make an environment if it is not there already. The newest releases are looked for each time."""
    folder = INSTALLED / name
    if not _is_made(name):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        base = sysconfig.get_path("purelib")
        own = Path(base).relative_to(sys.prefix)
        # By `addsitedir`, and not as a plain line, so that the files of this kind in there count, too: the project is found through one.
        (folder / own / "base.pth").write_text(f"import site; site.addsitedir({base!r})\n", encoding="utf-8")
    elif name != NEWEST:
        return
    torch = [line for line in _constraints().splitlines() if line.startswith("torch==")]
    what = (
        ["--upgrade", "--upgrade-strategy", "eager", *torch, *dependencies()] if name == NEWEST else ["--requirement", _file(name)]
    )
    command = [sys.executable, "-m", "pip", "--python", _python(name), "install", "-qq", "--no-compile", *what]
    subprocess.run(command, check=True)
    (folder / _MADE_FROM).write_text(_wanted(name), encoding="utf-8")


def _is_made(name: str) -> bool:
    made_from = INSTALLED / name / _MADE_FROM
    return made_from.is_file() and made_from.read_text(encoding="utf-8") == _wanted(name)


def _wanted(name: str) -> str:
    requirements = "\n".join(dependencies()) if name == NEWEST else _file(name).read_text(encoding="utf-8")
    return f"{requirements}\n{_constraints()}"


def _constraints() -> str:
    return (ROOT / "constraints.txt").read_text(encoding="utf-8")


def _file(name: str) -> Path:
    return REQUIREMENTS / f"{name}.txt"


def _python(name: str) -> Path:
    return INSTALLED / name / "bin" / "python"


if __name__ == "__main__":
    for each in sys.argv[1:] or names():
        make(each)
