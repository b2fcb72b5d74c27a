"""Our ES modules as a page gets them."""

from __future__ import annotations

import re
from pathlib import Path

_COMMENTS = re.compile(r"^[ \t]*(?:/\*\*.*?\*/[ \t]*$|//[^\n]*)", re.MULTILINE | re.DOTALL)
_REMARKS = re.compile(r"(?<=[;,{}])[ \t]+// [^\"'`\n]*$", re.MULTILINE)
_CASTS = re.compile(r"/\*\* @type .*?\*/ ?")


def lean_module(path: Path) -> str:
    """Return a module without its comments and its indentation.

    Every panel carries its script, and a notebook that is saved with widget state stores it. In our modules a comment has a line of its
    own or stands behind the end of a statement, and no text spans lines.
    """
    text = path.read_text(encoding="utf-8")
    for pattern in (_COMMENTS, _REMARKS, _CASTS):
        text = pattern.sub("", text)
    return "\n".join(line for line in map(str.strip, text.splitlines()) if line)
