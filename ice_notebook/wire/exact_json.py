r"""Structures as JSON in which every text survives, also one that holds bytes of the operating system which are no UTF-8.

Python keeps such a byte of a path, an argument or a variable as half of a surrogate pair (`os.fsdecode`), which UTF-8 cannot say but JSON can:
as the escape `\udce9`. msgspec neither writes nor reads that; Python's own `json`, which is slower, does both.
"""

from __future__ import annotations

import functools
import json
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")
_LONE = (
    b"\\ud"  # how the escape begins; a text of a backslash and these letters holds it as well, and is read as right by either way
)
_encoder = msgspec.json.Encoder()


def encode(value: object, *, indent: int | None = None) -> bytes:
    """Return a structure as JSON, in one line unless `indent` says otherwise."""
    try:
        encoded = _encoder.encode(value)
    except UnicodeEncodeError:
        separators = (",", ":") if indent is None else (",", ": ")
        return json.dumps(msgspec.to_builtins(value), separators=separators, indent=indent).encode()
    return encoded if indent is None else msgspec.json.format(encoded, indent=indent)


class Decoder(Generic[T]):
    """Reads structures of one kind; made once, it is prepared for each of them."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)

    def decode(self, data: bytes) -> T:
        """Return the structure, checked against its fields.

        Raises:
            msgspec.DecodeError: it is not a whole one of this kind.
        """
        try:
            return self._decoder.decode(data)
        except UnicodeDecodeError as error:
            raise msgspec.DecodeError(f"JSON is malformed: {error}") from None
        except RecursionError as error:
            raise msgspec.DecodeError(f"JSON is nested too deeply: {error}") from None
        except msgspec.DecodeError:
            if _LONE not in data:
                raise
        try:
            converted: T = msgspec.convert(json.loads(data), self._kind, str_keys=True)
        except (ValueError, RecursionError) as error:
            raise msgspec.DecodeError(f"JSON is malformed: {error}") from None
        return converted


def decode(data: bytes, kind: type[T]) -> T:
    """Return a structure, checked against its fields. Raises as `Decoder.decode` does."""
    decoder: Decoder[T] = decoder_of(kind)  # type: ignore[arg-type]  # a class can be hashed
    return decoder.decode(data)


@functools.cache
def decoder_of(kind: Any) -> Decoder[Any]:
    """Return the decoder of a kind. The first one of each kind takes about a millisecond to make."""
    return Decoder(kind)
