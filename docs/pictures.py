"""Make the pictures of the docs: `python docs/pictures.py [NAME ...]`. Needs Chromium, as the browser tests do, and the extra `docs`.

The stills show played runs (`tests/fake_run.py`) and a recorded machine (`tests/recorded_machines.py`) in JupyterLab, in light and dark and
at two widths; the moving picture of the README is a real launch.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from harness import SETUP, Browser, JupyterLab, NotebookPage  # noqa: E402 - the tests' own tool

IMAGES = ROOT / "docs" / "images"
WIDTHS = (1250, 700)  # px, of a cell's output
COLOURS = 256  # of a picture; text on plain grounds needs no more

PREPARE = f"""
{SETUP}
import time
from recorded_machines import eight
from ice_notebook import DevicePicker

def ago(seconds, events):
    at = time.time() - seconds
    events = [msgspec.structs.replace(event, at=at) for event in events]
    return [
        msgspec.structs.replace(event, failure=msgspec.structs.replace(event.failure, at=at)) if hasattr(event, "failure") else event
        for event in events
    ]

def steps(first, last, n, attempt=0):
    return [
        out(rank, f"epoch 3  step {{i}}  loss {{0.9 - i * 0.0004 + rank * 0.003:.3f}}  {{306 - rank}} it/s\\n", attempt)
        for i in range(first, last) for rank in range(n)
    ]
"""
GPUS = 'make_plan({n}, device="cuda", name="train(launcher, epochs=3)", max_restarts=3)'
TABLE = (
    "<table><tr><th></th><th>loss</th><th>accuracy</th></tr><tr><td>epoch 1</td><td>0.51</td><td>0.91</td></tr>"
    "<tr><td>epoch 2</td><td>0.43</td><td>0.93</td></tr><tr><td>epoch 3</td><td>0.41</td><td>0.94</td></tr></table>"
)


def played(n: int, script: str) -> str:
    return f"run = show(*ago(83, gpus({n})), {script}, plan={GPUS.format(n=n)}, waits=False)"


def nothing(_: NotebookPage) -> None:
    """Leave the panel as it opens."""


def search_merged(page: NotebookPage) -> None:
    page.output(0).get_by_role("button", name="merged").click()
    page.output(0).get_by_role("searchbox").fill("loss 0.4")


def open_results(page: NotebookPage) -> None:
    page.panel(0).tab("Results").click()


def pick(page: NotebookPage) -> None:
    page.output(0).get_by_text("All free", exact=True).click()


@dataclass(frozen=True)
class Still:
    """A cell whose output is taken when it shows a text, after what a person does with it."""

    cell: str
    text: str
    act: Callable[[NotebookPage], None] = nothing


STILLS = {
    "running": Still(
        played(4, "*steps(1200, 1221, 4), {r: [['epoch', 2, 3], ['step', 1220 + r, 2000]] for r in range(4)}"),
        "step 1220",
    ),
    "restarted": Still(
        played(
            4,
            "*steps(1190, 1196, 4), *ago(41, failed(4, root=2, restarting=True)), *ago(39, gpus(4, 1)), *steps(1000, 1006, 4, 1), "
            "*[out(r, f'\\r {45 + r}%|####5     | {45 + r}/100 [00:04<00:05, 10.2it/s]', 1) for r in range(4)]",
        ),
        "45/100",
    ),
    "failed": Still(played(4, "*steps(1200, 1210, 4), *ago(50, failed(4, root=1, echo=0))"), "Traceback of rank 1"),
    "done": Still(
        played(
            2,
            "*steps(1990, 2000, 2), *ago(1, returned([value(\"{'loss': 0.41, 'accuracy': 0.94}\"), "
            f'value("history", "DataFrame", {TABLE!r}, 8_400)]))',
        ),
        "Succeeded",
        open_results,
    ),
    "ranks-16": Still(played(16, "*[item for i in range(1200, 1220) for item in (*steps(i, i + 1, 16), 0.12)]"), "step 1219"),
    "search": Still(
        played(4, "*[item for i in range(1196, 1221) for item in (*steps(i, i + 1, 4), 0.12)]"), "step 1220", search_merged
    ),
    "picker": Still("picker = DevicePicker(source=eight())\npicker", "cuda:7", pick),
}
GPU_EVENTS = """
def gpus(n, attempt=0):
    return begun(n, attempt=attempt, device="cuda")
"""


def take_stills(names: list[str]) -> None:
    with JupyterLab() as lab, Browser(width=1700, height=1000) as browser:
        page = browser.open(lab, lab.notebook(["pass"]))
        page.execute(PREPARE + GPU_EVENTS)
        page.page.evaluate("() => { window.jupyterapp.shell.collapseLeft() }")
        for name in names:
            still = STILLS[name]
            page.put_cells(still.cell)
            page.run_cell(0)
            page.wait_output(0, still.text)
            still.act(page)
            page.page.mouse.move(0, 0)  # nothing is shown as pointed at
            for dark in (False, True):
                page.set_theme(dark=dark)
                for width in WIDTHS:
                    page.set_width(width)
                    page.page.wait_for_timeout(700)  # frames take their colours from the theme half a second later
                    shown = page.output(0).locator(".ice, .ice-devices").first
                    write(IMAGES / f"{name}-{'dark' if dark else 'light'}-{width}.png", shown.screenshot())


def write(path: Path, png: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


# ---- the moving picture -------------------------------------------------------------------------------------------------------------------

CELL = """\
%%elastic_launch devices=cpu:0-1 max_restarts=1 -o run
import time

import torch
from torch.nn.parallel import DistributedDataParallel


def train(launcher):
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for epoch in launcher.progress(range(8), "epoch"):
        points = torch.randn(64, 8)
        loss = (model(points).squeeze(1) - points.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"epoch {epoch}  loss {loss.item():.4f}")
        if epoch == 3 and launcher.rank == 1 and launcher.restart_count == 0:
            raise ValueError("bad batch")
        time.sleep(0.8)
    return loss.item()
"""
MOVING = "panel.gif"
FRAME_S, SHOWN_S, LAST_S = 0.25, 0.15, 2.0  # between two frames as they are taken, as they are shown, and how long the last stands


def take_moving() -> None:
    with JupyterLab() as lab, Browser(width=980, height=1150) as browser:
        page = browser.open(lab, lab.notebook(["%load_ext ice_notebook", CELL.rstrip()], "training.ipynb"))
        page.page.evaluate("() => { window.jupyterapp.shell.collapseLeft() }")
        page.run_cell(0)
        page.cell(1).scroll_into_view_if_needed()
        page.run_cell(1, wait=False)
        page.wait_output(1, "epoch 0", 120)
        frames: list[bytes] = []
        while not page.output(1).get_by_text("Succeeded").count() and len(frames) < 200:
            frames.append(page.cell(1).screenshot())
            page.page.wait_for_timeout(FRAME_S * 1000)
        page.wait_idle()
        page.page.wait_for_timeout(500)
        frames.append(page.cell(1).screenshot())
    write_moving(frames)


def write_moving(frames: list[bytes]) -> None:
    """Write the frames, of which equal ones in a row are shown once, on a canvas as large as the largest."""
    taken = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    size = max(picture.width for picture in taken), max(picture.height for picture in taken)
    pictures: list[Any] = []
    for picture in taken:
        canvas = Image.new("RGB", size, "white")
        canvas.paste(picture)
        small = canvas.quantize(COLOURS // 2, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        if not pictures or small.tobytes() != pictures[-1].tobytes():
            pictures.append(small)
    times = [round(SHOWN_S * 1000)] * (len(pictures) - 1) + [round(LAST_S * 1000)]
    path = IMAGES / MOVING
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB, {len(pictures)} frames")


def main() -> None:
    names = sys.argv[1:] or [*STILLS, "moving"]
    if unknown := set(names) - {*STILLS, "moving"}:
        sys.exit(f"There is no picture {', '.join(sorted(unknown))}; there are {', '.join([*STILLS, 'moving'])}.")
    take_stills([name for name in names if name in STILLS])
    if "moving" in names:
        take_moving()


if __name__ == "__main__":
    main()
