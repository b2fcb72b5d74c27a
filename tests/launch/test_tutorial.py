"""The examples of the README, the tutorial and other pages do what stands below them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import Kernel, Outcome

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:<!-- raises (?P<raises>\w+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```\n", re.DOTALL)


@dataclass
class Example:
    """A cell, and what the page says that it shows."""

    code: str
    raises: str
    shown: str = ""


def examples(page: str) -> Iterator[Example]:
    example: Example | None = None
    for block in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        if block["kind"] == "text":
            assert example is not None, f"{page}: text that belongs to no example"
            example.shown = block["text"]
        if block["kind"] == "python":
            if example is not None:
                yield example
            example = Example(block["text"].rstrip("\n"), block["raises"] or "")
    if example is not None:
        yield example


def shown(outcome: Outcome) -> str:
    """Return what a reader sees who looks at the text below a cell: a failed cell's error, else its output and value."""
    if outcome.error:
        return outcome.error.strip() + "\n"
    texts = [
        out["text"] if out["type"] == "stream" else out["data"]["text/plain"]
        for out in outcome.outputs
        if out["type"] != "display_data"
    ]
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts)


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md", "docs/devices.md"])
def test_the_examples_of_a_page_do_what_stands_below_them(page: str, cache: Path) -> None:
    kernel = Kernel(extension=False)
    try:
        for example in examples(page):
            outcome = kernel.run(example.code)
            assert outcome.error_name == example.raises, outcome.error or example.code
            if example.shown:
                assert shown(outcome) == example.shown
    finally:
        kernel.close()
