"""The token of a run: what another machine needs to join it, one word that names the run's certificate and holds a secret."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from ice_notebook.errors.nodes import NodeError

VARIABLE = "ICE_NOTEBOOK_TOKEN"
NONCE_BYTES = PROOF_BYTES = 32
_SECRET_BYTES, _FINGERPRINT_BYTES = 16, 32
_PURPOSE = b"ice_notebook: a node joins a run\0"


@dataclass(frozen=True)
class Token:
    """A secret that only those have who may join, and the SHA-256 of the certificate that the run's own machine shows them."""

    secret: bytes
    fingerprint: bytes

    @classmethod
    def new(cls, fingerprint: bytes) -> Token:
        """Return a token with a fresh secret."""
        return cls(secrets.token_bytes(_SECRET_BYTES), fingerprint)

    def format(self) -> str:
        """Return the token as one word of 64 characters, without any that a shell would treat."""
        return base64.urlsafe_b64encode(self.secret + self.fingerprint).decode()

    def prove(self, nonce: bytes) -> bytes:
        """Return what only an owner of the token can answer to a challenge, which is used once."""
        return hmac.digest(self.secret, _PURPOSE + nonce, hashlib.sha256)

    def is_proved_by(self, proof: bytes, nonce: bytes) -> bool:
        """Return whether an answer to a challenge is that of an owner."""
        return hmac.compare_digest(proof, self.prove(nonce))

    def __repr__(self) -> str:
        return "Token(…)"  # it must not end up in a log


def parse_token(text: str) -> Token:
    """Return the token that a word says.

    Raises:
        NodeError: it is none, or not a whole one.
    """
    try:
        raw = base64.urlsafe_b64decode(text.strip().encode("ascii"))
    except (binascii.Error, ValueError):
        raise NodeError.unreadable_token(len(text.strip())) from None
    if len(raw) != _SECRET_BYTES + _FINGERPRINT_BYTES:
        raise NodeError.unreadable_token(len(text.strip()))
    return Token(raw[:_SECRET_BYTES], raw[_SECRET_BYTES:])
