"""Execute the notebooks of this folder: `python notebooks/build.py` refreshes their stored outputs, `--show NAME` prints one instead.

What is stored must read the same whoever builds it: no execution times, no widget models, no paths of the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
CELL_TIMEOUT_S = 300
WIDGET = "application/vnd.jupyter.widget-view+json"  # names a model that lives in a kernel, so nothing outside of this run


def execute(path: Path) -> Any:
    """Return a notebook with fresh outputs. Raises `CellExecutionError` for a cell that fails and is not tagged `raises-exception`."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        resources={"metadata": {"path": str(HERE)}},
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    client.execute()
    clean(notebook)
    return notebook


def clean(notebook: Any) -> None:
    """Take out what differs from one execution to the next, or from one machine to another."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
            if "metadata" in output:
                output["metadata"] = {}


def printed(notebook: Any) -> Iterator[str]:
    """Yield what the code cells show, as text."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield output.text.rstrip("\n")
            elif output.output_type == "execute_result":
                yield output.data["text/plain"]
            elif output.output_type == "error":
                yield f"{output.ename}: {output.evalue}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--show", action="store_true", help="print what the cells show, and change no file")
    parser.add_argument("names", nargs="*", help="notebooks of this folder; all of them when none is given")
    arguments = parser.parse_args()
    for path in [HERE / name for name in arguments.names] or sorted(HERE.glob("*.ipynb")):
        notebook = execute(path)
        if arguments.show:
            print("\n".join(printed(notebook)))
        else:
            nbformat.write(notebook, path)
            print(f"{path.name}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells")


if __name__ == "__main__":
    main()
