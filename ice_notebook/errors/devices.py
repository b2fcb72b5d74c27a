"""Which devices there are not."""

from __future__ import annotations

from collections.abc import Sequence

from ice_notebook.errors.base import IceNotebookError
from ice_notebook.errors.words import join, quote, suggest, written


class DeviceError(IceNotebookError, ValueError):
    """A device was asked for that cannot be had, or a device text that cannot be read."""

    def of_notebook(self) -> DeviceError:
        """Return the same error, saying as well that the launch itself named no devices."""
        return DeviceError(
            f"{self} They were set with %elastic_devices for launches that name none; %elastic_devices off forgets them."
        )

    @classmethod
    def empty(cls, text: object) -> DeviceError:
        return cls(
            f"{written('devices', quote(text))} is not a device: expected auto, cpu, cuda or a list of them such as cuda:0,1, cuda:* or cpu:0-3."
        )

    @classmethod
    def unknown_kind(cls, text: str, kind: str, kinds: Sequence[str]) -> DeviceError:
        meant = {"gpu": "cuda", "free": "cuda:free"}.get(kind.lower())
        hint = f" Did you mean {meant!r}?" if meant else suggest(kind, kinds)
        return cls(f"{written('devices', quote(text))}: {quote(kind)} is not a device type; the types are {join(kinds)}.{hint}")

    @classmethod
    def number_alone(cls, text: object) -> DeviceError:
        return cls(
            f"{written('devices', text)} could be a device or a count: write {written('devices', f'cuda:{text}')} for that GPU, or "
            f"{written('nproc_per_node', text)} for that many ranks."
        )

    @classmethod
    def unreadable_entry(cls, text: str, entry: str) -> DeviceError:
        found = f"{quote(entry)} is not a device" if entry else "a device is missing beside a comma or colon"
        return cls(
            f"{written('devices', quote(text))}: {found}; expected numbers (0), ranges (0-2), * for all and, after cuda:, UUIDs (GPU-…, MIG-…), "
            "free and free:2."
        )

    @classmethod
    def backward_range(cls, text: str, first: int, last: int) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: the range {first}-{last} runs backwards; write {last}-{first}.")

    @classmethod
    def star_with_others(cls, text: str) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: * already stands for every device; write it alone.")

    @classmethod
    def free_with_others(cls, text: str) -> DeviceError:
        return cls(
            f"{written('devices', quote(text))}: free stands for GPUs that are found at launch; write it alone, with their number: cuda:free:2."
        )

    @classmethod
    def free_of_kind(cls, text: str) -> DeviceError:
        return cls(
            f"{written('devices', quote(text))}: free works only with cuda, because only GPUs report which processes use them; write cuda:free or cuda:free:2."
        )

    @classmethod
    def not_free(cls, text: str, n_free: int, n_visible: int, holders: Sequence[str]) -> DeviceError:
        count = f"{n_free} is" if n_free == 1 else f"{n_free or 'none'} are"
        who = (
            f"In use are {'; '.join(holders)}. Name GPUs to share them, or launch again later."
            if holders
            else "Ask for at most that many."
        )
        return cls(f"{written('devices', quote(text))}: of the {n_visible} GPUs that are visible here {count} free. {who}")

    @classmethod
    def nothing_picked(cls, picker: object) -> DeviceError:
        return cls(
            f"{written('devices', quote(picker))}: nothing is selected in it. Tick a device, or give a number of ranks on the CPU."
        )

    @classmethod
    def picked_twice(cls, text: str) -> DeviceError:
        return cls(f"{quote(text)} names a device twice, and a picker can pick it once; give devices={text} to the launch itself.")

    @classmethod
    def uuid_of_kind(cls, text: str, uuid: str) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: a UUID names a GPU; write cuda:{uuid}.")

    @classmethod
    def mixed(cls, text: str, kinds: Sequence[str]) -> DeviceError:
        return cls(
            f"{written('devices', quote(text))} mixes {join(kinds)}: all ranks of a launch use one kind; write {kinds[0]}:… once, then numbers."
        )

    @classmethod
    def too_many(cls, found: str, most: int) -> DeviceError:
        return cls(f"{found} asks for more than {most} ranks on one machine, which is the most that is allowed; name fewer.")

    @classmethod
    def not_devices(cls, value: object) -> DeviceError:
        return cls(
            f"{written('devices', quote(value))} is {type(value).__name__!r}: expected a string such as 'cuda:0,1', a list of GPU numbers or of strings, "
            "a torch.device, and an object that has `devices`."
        )

    @classmethod
    def no_cuda(cls, asked: str, why: str) -> DeviceError:
        return cls(
            f"{asked}: no CUDA device can be used here, because {why}. Use {written('devices', 'cpu')} for ranks on the CPU."
        )

    @classmethod
    def absent(cls, text: str, device: str, available: str) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: {device} does not exist here; visible here: {available}.")

    @classmethod
    def ambiguous(cls, text: str, uuid: str, matches: Sequence[str]) -> DeviceError:
        return cls(f"{written('devices', quote(text))}: {uuid} begins {join(matches)}; write more of the UUID.")

    @classmethod
    def too_few(cls, count: int, available: str, n_available: int) -> DeviceError:
        return cls(
            f"{written('nproc_per_node', count)} is more than the GPUs that are visible here ({available}): ask for at most {n_available}, "
            f"or let ranks share them with {written('devices', available)} {written('nproc_per_node', count)}."
        )

    @classmethod
    def below_list(cls, count: int, text: str, n_devices: int) -> DeviceError:
        shorter = f"write {written('devices', f'cuda:free:{count}')}" if text.startswith("cuda:free") else "shorten the list"
        return cls(
            f"{written('nproc_per_node', count)} is less than the {n_devices} devices of {written('devices', quote(text))}: {shorter}, or "
            f"leave {written('nproc_per_node')} out."
        )

    @classmethod
    def count_of_list(cls, word: str, text: str) -> DeviceError:
        return cls(
            f"{written('nproc_per_node', word)} and {written('devices', quote(text))} both say how many ranks there are: leave "
            f"{written('nproc_per_node')} out, or give a number."
        )

    @classmethod
    def other_kind(cls, word: str, text: str) -> DeviceError:
        return cls(
            f"{written('nproc_per_node', word)} counts another kind of device than {written('devices', quote(text))} names: leave one of "
            "them out."
        )

    @classmethod
    def nccl(cls, text: str, why: str) -> DeviceError:
        return cls(
            f"{written('dist_backend', 'nccl')} cannot join the ranks of {text}: {why}. Use {written('dist_backend', 'gloo')}, or leave it "
            "out."
        )
