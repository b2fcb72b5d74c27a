"""Take the README's picture of the panel in JupyterLab: `python docs/screenshot.py`. Needs Chromium, as the browser tests do."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from harness import Browser, JupyterLab  # noqa: E402 - the tests' own tool

TARGET = ROOT / "docs" / "images" / "panel-light.png"
CELL = """\
%%elastic_launch devices=cpu:0-1 max_restarts=1 -o run
import time

import torch
from torch.nn.parallel import DistributedDataParallel


def train(launcher):
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for epoch in range(200):
        points = torch.randn(64, 8)
        loss = (model(points).squeeze(1) - points.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"epoch {epoch}  loss {loss.item():.4f}")
        time.sleep(0.2)
    return loss.item()
"""


def main() -> None:
    with JupyterLab() as lab, Browser(width=1000, height=1100) as browser:
        page = browser.open(lab, lab.notebook(["%load_ext ice_notebook", CELL.rstrip()], "training.ipynb"))
        page.run_cell(0)
        page.run_cell(1, wait=False)
        page.wait_output(1, "epoch 7", 120)
        page.page.evaluate("() => { window.jupyterapp.shell.collapseLeft() }")
        page.page.wait_for_timeout(1000)  # the page is laid out again
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        page.cell(1).screenshot(path=str(TARGET))
        page.interrupt()
        page.wait_idle()


if __name__ == "__main__":
    main()
