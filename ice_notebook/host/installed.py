"""Which source files are a library's, and which the user's own."""

from __future__ import annotations

import os
import site
import sysconfig
from functools import lru_cache

OWN_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # of ice_notebook


def is_library(file: str) -> bool:
    """Return whether a file belongs to Python, to an installed package or to ice_notebook; all others are the user's."""
    if file.startswith("<frozen "):
        return True
    parts = file.split(os.sep)
    return "site-packages" in parts or "dist-packages" in parts or file.startswith((OWN_FOLDER, *_library_folders()))


@lru_cache(maxsize=1)
def _library_folders() -> tuple[str, ...]:
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    folders |= {site.getusersitepackages()} if site.ENABLE_USER_SITE else set()
    return tuple(os.path.join(folder, "") for each in folders if each for folder in {each, os.path.realpath(each)})
