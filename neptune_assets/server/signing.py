"""URLs of file bytes that need no token: signed, for one key and one purpose, and only for a while."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Final, Literal

_UPLOAD_SECONDS: Final = 7 * 86_400
"""An upload that has begun may go on for this long: clients give a file up for lost when its URL expires meanwhile."""

Permission = Literal["read", "write"]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a signed URL allows: to read or write the bytes of one key of one project, or one part of an upload."""

    project: str
    key: str
    permission: Permission
    upload: str | None = None
    part: int | None = None
    mime_type: str | None = None


class Signer:
    """Makes tokens of grants and checks them."""

    def __init__(self, key: bytes, seconds: int) -> None:
        self._key = key
        self._seconds = seconds

    def sign(self, grant: Grant) -> str:
        """Return a token that is good for a while; its characters need no escaping in URLs."""
        seconds = self._seconds if grant.upload is None else max(self._seconds, _UPLOAD_SECONDS)
        fields = asdict(grant) | {"expires": int(time.time()) + seconds}
        payload = base64.urlsafe_b64encode(json.dumps(fields, separators=(",", ":")).encode()).rstrip(b"=")
        return f"{payload.decode('ascii')}.{self._signature(payload)}"

    def grant(self, token: str) -> Grant | None:
        """Return what a token allows; None if it is not ours or has expired."""
        payload, _, signature = token.partition(".")
        raw = payload.encode("utf-8", "replace")
        if not hmac.compare_digest(self._signature(raw).encode(), signature.encode("utf-8", "replace")):
            return None
        try:
            fields = json.loads(base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4)))
        except (binascii.Error, ValueError):
            return None
        if fields.pop("expires") < time.time():
            return None
        return Grant(**fields)

    def _signature(self, payload: bytes) -> str:
        return hmac.new(self._key, payload, sha256).hexdigest()
