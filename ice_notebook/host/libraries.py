"""What this project builds on of other libraries beyond what they promise, and the word that is said when it is not there any more."""

from __future__ import annotations

from importlib import metadata

from ice_notebook.errors import LibraryError


def require(library: str, owner: object, *names: str) -> None:
    """Make sure that a module or a class of a library has names that are private to it, or used in a private way.

    Raises:
        LibraryError: one is missing: the library's version is not one that we know.
    """
    for name in names:
        if not hasattr(owner, name):
            raise LibraryError.changed(library, version(library), f"{getattr(owner, '__name__', owner)}.{name}")


def version(library: str) -> str:
    """Return the version of a library that is installed, as it names itself."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "(of unknown version)"
