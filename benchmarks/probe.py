"""What a page says of itself while lines come: each frame, and when it had drawn which line. A script in the page, and sums over what it noted."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.figures import Value

# In a task right after a frame was drawn the newest lines in it are looked at, in the panel as many as are in sight and the chips' ones, in
# the text of an output the same number from its end. A line counts when its number is the highest of its rank so far.
START = """({ panel, text }) => {
    const probe = window.iceProbe = { frames: [], lines: [], offset: Date.now() - performance.now(), stops: false };
    const newest = {};
    const lastText = () => {
        const found = document.querySelectorAll(text);
        let node = found[found.length - 1];
        while (node?.lastChild) node = node.lastChild;
        return node?.data?.slice(-2700) || '';
    };
    const inPanel = () => Array.from(document.querySelectorAll(panel), (node) => node.textContent).join('\\n');
    const drawn = new MessageChannel();
    drawn.port1.onmessage = () => {
        const now = Date.now();
        const before = { ...newest };
        const seen = new Set();
        for (const [, stamp, rank, n] of (panel ? inPanel() : lastText()).matchAll(/@(\\d+\\.\\d{3}) (\\d+) (\\d{7})/g)) {
            if (Number(n) <= (before[rank] ?? -1) || seen.has(rank + n)) continue;
            seen.add(rank + n);
            newest[rank] = Math.max(newest[rank] ?? -1, Number(n));
            probe.lines.push([now, stamp * 1000]);
        }
    };
    const frame = () => {
        probe.frames.push(probe.offset + performance.now());
        drawn.port2.postMessage(0);
        if (!probe.stops) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
}"""
# For how many seconds no new line was drawn.
REST = "() => { const { lines } = window.iceProbe; return lines.length ? (Date.now() - lines[lines.length - 1][0]) / 1000 : 1e9 }"
READ = "() => { const { frames, lines } = window.iceProbe; window.iceProbe.stops = true; return { frames, lines } }"


def figures_of(noted: Mapping[str, Sequence[Any]], begun: float, ended: float) -> dict[str, list[Value]]:
    """Return what the page did while lines were printed, between two times in seconds.

    A gap counts whole when a part of it was in that time. Lines count that were printed in it, whenever they were drawn.
    """
    frames = [at / 1000 for at in noted["frames"]]
    inside = [at for at in frames if begun <= at < ended]
    gaps = [after - before for before, after in itertools.pairwise(frames) if after > begun and before < ended]
    lines = [(drawn / 1000, printed / 1000) for drawn, printed in noted["lines"] if begun <= printed / 1000 < ended]
    facts: dict[str, list[Value]] = {
        "frames": [len(inside) / (ended - begun)],
        "gap": [1000 * max(gaps, default=ended - begun)],
    }
    if len(lines) > 1:
        delays = sorted(drawn - printed for drawn, printed in lines)
        facts["delay"] = [1000 * statistics.median(delays)]
        facts["delay_99"] = [1000 * statistics.quantiles(delays, n=100, method="inclusive")[-1]]
        facts["last"] = [max(0.0, max(drawn for drawn, _ in lines) - ended)]
    return facts
