"""Whom an error that a notebook shows calls the cause."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """Return a text without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def blamed_rank(error: str) -> str:
    """Return the rank that an error calls the cause: what torch's summary says, else the first rank that is named."""
    text = plain(error)
    found = re.search(r"Root Cause.*?rank\s*:\s*(\d+)", text, re.DOTALL) or re.search(r"[Rr]ank (\d+)", text)
    return f"rank {found[1]}" if found else "none"
