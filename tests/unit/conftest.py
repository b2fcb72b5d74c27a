from __future__ import annotations

from pathlib import Path

import pytest
from arriving import Notebook


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    """A notebook whose functions can be called in a rank, without a process."""
    return Notebook(tmp_path)
