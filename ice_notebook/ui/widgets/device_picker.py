"""The device picker: what this machine has, who uses it, and a choice of it that launches take.

The kernel owns the choice and the readings; a page says what a person asks for, and draws what the kernel answers. Everything that a page
must know is one snapshot in one synced trait. Messages from the page:

- `look {tab}`: somebody looks. Readings are taken every 2 s until the look is over or older than 40 s; a page repeats it every 15 s.
- `away {tab}`: nobody does any more, in that tab.
- `pick {uuids, on}`, `cpu {n}`, `free`, `none`, `refresh`, each with a `nonce`: what a person asks for. It is repeated until the nonce
  stands among the acknowledgements; taken up once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import anywidget
import traitlets

from ice_notebook.devices import grammar as d
from ice_notebook.devices import holders, machine, picked
from ice_notebook.devices.holders import Use
from ice_notebook.devices.machine import Gpu, Inventory
from ice_notebook.errors import join
from ice_notebook.host import notebook
from ice_notebook.ui.widgets.kernel import can_draw, keep_subshell, sendable
from ice_notebook.ui.widgets.picker_state import UNREAD, Selection, select, snapshot, status
from ice_notebook.ui.widgets.scripts import lean_module

HERE = Path(__file__).parent
READ_EVERY_S = 2.0
LOOK_S = 40.0  # that a page's look holds; it says so again well before
# A picker that is displayed while its cell goes on to block may not hear its page before the end of the cell.
FIRST_LOOK_S = 10.0


class Source(Protocol):
    """Where a picker has its devices from. `label` is shown when it is not this machine."""

    label: str

    def inventory(self) -> Inventory:
        """Return what the machine has."""

    def look(self, gpus: Iterable[Gpu]) -> Mapping[str, Use]:
        """Return what GPUs do now and for whom, by UUID."""


class ThisMachine:
    """The devices of the machine that this process runs on, through NVML: CUDA stays untouched."""

    label = ""

    def inventory(self) -> Inventory:
        """Return what this machine has now."""
        return machine.inventory()

    def look(self, gpus: Iterable[Gpu]) -> Mapping[str, Use]:
        """Return what its GPUs do now and for whom."""
        return holders.look(gpus)


class DevicePicker(anywidget.AnyWidget):
    """Show the devices of this machine and let a person choose among them.

        picker = DevicePicker()
        picker

    `picker.devices` is the choice as a text, and the picker itself is a value of `devices`: `%%elastic_launch devices=picker`,
    `ElasticLauncher(picker)`. A launch takes what is picked when it is given; nothing picked is an error.
    """

    _esm = lean_module(HERE / "device_picker.js")
    _css = HERE / "device_picker.css"
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, devices: Any = None, *, source: Source | None = None) -> None:
        """Begin with devices picked, in any form that a launch takes; `source` shows other devices than this machine's.

        Raises:
            DeviceError: the machine does not have them, or they name one twice.
        """
        self._source = source or ThisMachine()
        self._lock = threading.RLock()
        self._looks: dict[str, float] = {}  # until when somebody looks, by tab
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()  # the cell that wakes may be interrupted: an Event would break
        self._inventory = self._source.inventory()
        self._uses: Mapping[str, Use] = self._source.look(self._inventory.visible)
        self._read_at = time.time()
        self._selection = Selection() if devices is None else self._select(devices)
        self._thread: threading.Thread | None = None
        self._taken: deque[str] = deque(maxlen=32)  # nonces
        self._problems: deque[str] = deque(maxlen=3)
        self._rev = 0
        super().__init__(state=self._snapshot())
        keep_subshell(self.comm)
        self.on_msg(self._received)

    def __repr__(self) -> str:
        return "DevicePicker()"

    @property
    def devices(self) -> str:
        """Return what is picked as a text that every launch reads, such as `cuda:0,2`; empty when nothing is. Set it to pick from code."""
        with self._lock:
            return self._selection.text(self._inventory)

    @devices.setter
    def devices(self, value: Any) -> None:
        with self._lock:
            self._selection = Selection() if value is None else self._select(value)
        self._publish()

    def refresh(self) -> None:
        """Look at the machine again: which devices there are, and what they do."""
        found = self._source.inventory()
        uses = self._source.look(found.visible)
        with self._lock:
            self._inventory, self._uses, self._read_at = found, uses, time.time()
            here = {gpu.uuid for gpu in found.visible}
            self._selection = dataclasses.replace(
                self._selection, gpus=tuple(uuid for uuid in self._selection.gpus if uuid in here)
            )
        self._publish()

    def close(self) -> None:
        """End the widget and its readings."""
        with self._lock:
            self._looks.clear()
        self._wakes.put(None)
        super().close()

    def _ipython_display_(self) -> None:
        if not can_draw():
            raise NotImplementedError  # IPython goes on to the text form
        self._look("", FIRST_LOOK_S)
        notebook.display(_Shown(self))
        notebook.display(_Foot())

    def _select(self, devices: Any) -> Selection:
        held = {
            gpu.uuid: join(words)
            for gpu in self._inventory.visible
            if (words := self._uses.get(gpu.uuid, UNREAD).obstacles(gpu.memory_bytes))
        }
        return select(d.convert_devices(devices), dataclasses.replace(self._inventory, held=held))

    # ---- to the page

    def _snapshot(self) -> dict[str, Any]:
        self._rev += 1
        return {
            **sendable(snapshot(self._inventory, self._uses, self._selection)),
            "label": self._source.label,
            "is_default": picked.chosen() is self,
            "taken": list(self._taken),
            "problems": list(self._problems),
            "read_at": self._read_at,
            "rev": self._rev,
        }

    def _publish(self) -> None:
        with self._lock:
            self.state = self._snapshot()

    def _note(self, error: Exception) -> None:
        """Show an error of ours in the picker: elsewhere nobody would see it."""
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in where)
        problem = f"{type(error).__name__}: {error}{place}"[:500]
        with self._lock:
            if problem not in self._problems:
                self._problems.append(problem)

    # ---- readings while somebody looks

    def _look(self, tab: str, for_s: float = LOOK_S) -> None:
        """Take readings from now on, for a while."""
        with self._lock:
            self._looks[tab] = time.monotonic() + for_s
            if self._thread is None:
                self._thread = threading.Thread(target=self._read_while_looked_at, name="ice-picker", daemon=True)
                self._thread.start()
        self._wakes.put(None)

    def _read_while_looked_at(self) -> None:
        while (pause := self._turn()) is not None:
            with contextlib.suppress(queue.Empty):
                self._wakes.get(timeout=pause)
            while not self._wakes.empty():
                self._wakes.get()

    def _turn(self) -> float | None:
        """Take a reading and send it. Return the seconds until the next one, None when nobody looks any more."""
        with self._lock:
            now = time.monotonic()
            self._looks = {tab: until for tab, until in self._looks.items() if until > now}
            if not self._looks:
                self._thread = None  # in the same breath as the look at the looks: a later one starts another thread
                return None
            gpus = self._inventory.visible
        try:
            uses = self._source.look(gpus)
            with self._lock:
                self._uses, self._read_at = uses, time.time()
        except Exception as error:
            self._note(error)
        self._publish()
        return READ_EVERY_S

    # ---- from the page

    def _received(self, _widget: object, content: Any, _buffers: object) -> None:
        # An exception here would go to the server's log, where nobody looks.
        try:
            nonce = str(content.get("nonce", ""))
            with self._lock:
                is_new = not nonce or nonce not in self._taken
                if nonce and is_new:
                    self._taken.append(nonce)
            if is_new:
                _HANDLERS[content["kind"]](self, content)
        except Exception as error:
            self._note(error)
        self._publish()

    def _looked(self, content: Mapping[str, Any]) -> None:
        self._look(str(content["tab"]))

    def _went_away(self, content: Mapping[str, Any]) -> None:
        with self._lock:
            self._looks.pop(str(content["tab"]), None)
            self._looks.pop("", None)  # a page was heard: the first look has done its work
        self._wakes.put(None)

    def _picked(self, content: Mapping[str, Any]) -> None:
        with self._lock:
            gpus = {*self._selection.gpus, *content["uuids"]} if content["on"] else {*self._selection.gpus} - {*content["uuids"]}
            self._selection = self._selection.with_gpus(gpus, self._inventory)

    def _counted(self, content: Mapping[str, Any]) -> None:
        n = max(0, min(d.MOST_RANKS, int(content["n"])))
        with self._lock:
            if n or self._selection.n_cpu:  # from none to none is no reason to drop the GPUs
                self._selection = Selection(n_cpu=n)

    def _asked_for_free(self, _content: Mapping[str, Any]) -> None:
        self.refresh()
        with self._lock:
            free = [gpu.uuid for gpu in self._inventory.visible if status(gpu, self._uses.get(gpu.uuid, UNREAD)) == "free"]
            self._selection = self._selection.with_gpus(free, self._inventory)

    def _asked_for_none(self, _content: Mapping[str, Any]) -> None:
        with self._lock:
            self._selection = Selection()

    def _asked_to_refresh(self, _content: Mapping[str, Any]) -> None:
        self.refresh()


class _Shown:
    """The picker's own output."""

    def __init__(self, picker: DevicePicker) -> None:
        self._picker = picker

    def __repr__(self) -> str:
        return repr(self._picker)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self._picker._repr_mimebundle_(**options)


class _Foot:
    """What stands in place of a picker whose kernel is gone: in a notebook that is opened again, on GitHub, in a page made of it.

    The first rule hides it while a picker is drawn in the same cell, the second JupyterLab's "Error displaying widget" below it.
    """

    def __repr__(self) -> str:
        return "Device picker: run this cell to choose devices."

    def _repr_html_(self) -> str:
        return FOOT.format(text=repr(self))


# That error alone puts the widget's class on the output node itself.
FOOT = """<div class="ice-devices-foot">{text}<style>
.jp-OutputArea:has(.ice-devices) > .jp-OutputArea-child:has(.ice-devices-foot),
.output:has(.ice-devices) > .output_area:has(.ice-devices-foot) {{ display: none }}
.jp-OutputArea:has(.ice-devices-foot) > .jp-OutputArea-child > .jp-OutputArea-output.jupyter-widgets {{ display: none }}
</style></div>"""


_HANDLERS = {
    "look": DevicePicker._looked,
    "away": DevicePicker._went_away,
    "pick": DevicePicker._picked,
    "cpu": DevicePicker._counted,
    "free": DevicePicker._asked_for_free,
    "none": DevicePicker._asked_for_none,
    "refresh": DevicePicker._asked_to_refresh,
}
