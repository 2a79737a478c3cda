"""Who may call: API tokens that people put into their environment, access tokens made from them, and signed URLs."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

import jwt

from neptune_assets import durable
from neptune_assets.errors import SettingsError
from neptune_assets.server.store.database import StoreError
from neptune_assets.server.store.files import private_directory

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


CLIENT_ID: Final = "neptune-cli"
REALM: Final = "/auth/realms/neptune"
_ALGORITHM: Final = "HS256"
_SECRETS: Final = "secrets.json"
_KEY_LENGTH: Final = 22
"""Characters of an API key: as many as 128 bits have in base64."""
_REMEMBERED: Final = 1_024
"""Access tokens that were found good lately: checking a signature costs more than many an answer."""


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What must not be known: the API key, and the keys that sign access tokens and URLs of files."""

    api_key: str
    token_key: bytes
    url_key: bytes


class Attempts:
    """Wrong API tokens by the address that they came from: after so many it must wait."""

    def __init__(self, allowed: int = 20, seconds: float = 60, addresses: int = 10_000) -> None:
        self._allowed = allowed
        self._seconds = seconds
        self._addresses = addresses
        self._known: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._guard = threading.Lock()

    def exhausted(self, address: str) -> bool:
        """True if the address must wait."""
        with self._guard:
            since, count = self._known.get(address, (0.0, 0))
            return count >= self._allowed and time.monotonic() - since < self._seconds

    def failed(self, address: str) -> None:
        """Count a wrong token."""
        with self._guard:
            now = time.monotonic()
            since, count = self._known.pop(address, (now, 0))
            self._known[address] = (since, count + 1) if now - since < self._seconds else (now, 1)
            while len(self._known) > self._addresses:
                self._known.popitem(last=False)


class Tokens:
    """Checks API tokens and makes access tokens. Keys outlive restarts, and so do the tokens."""

    def __init__(self, known: Secrets, user: str, seconds: int) -> None:
        self._secrets = known
        self._user = user
        self._seconds = seconds
        self._good: OrderedDict[bytes, float] = OrderedDict()

    def exchange(self, api_token: str, base_url: str) -> dict[str, str] | None:
        """Turn an API token into access and refresh tokens; None if it is not ours."""
        key = api_key_of(api_token)
        if key is None or not hmac.compare_digest(key.encode(), self._secrets.api_key.encode()):
            return None
        session = secrets.token_hex(8)
        return {
            "accessToken": self._make("access", base_url, session),
            "refreshToken": self._make("refresh", base_url, session),
            "username": self._user,
        }

    def refresh(self, refresh_token: str, base_url: str) -> dict[str, Any] | None:
        """Turn a refresh token into new ones; None if it is not ours or too old."""
        claims = self._claims(refresh_token, "refresh")
        if claims is None:
            return None
        session = str(claims.get("sid", ""))
        return {
            "access_token": self._make("access", base_url, session),
            "refresh_token": self._make("refresh", base_url, session),
            "token_type": "bearer",
            "expires_in": self._seconds,
        }

    def session(self, header: str | None) -> str:
        """The session that an Authorization header is of: one for each time that an API token was exchanged."""
        claims = self._claims((header or "").partition(" ")[2].strip(), "access")
        return "" if claims is None else str(claims.get("sid", ""))

    def authorized(self, header: str | None) -> bool:
        """True if the Authorization header holds an access token of ours that has not expired."""
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        # Looking up a digest tells nobody how much of a token was right.
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        until = self._good.get(digest)
        if until is not None and time.time() < until:
            return True
        claims = self._claims(token.strip(), "access")
        if claims is None:
            return False
        self._good[digest] = float(claims["exp"])
        while len(self._good) > _REMEMBERED:
            self._good.popitem(last=False)
        return True

    def _make(self, kind: str, base_url: str, session: str) -> str:
        now = int(time.time())
        seconds = self._seconds if kind == "access" else max(self._seconds * 24, 30 * 86_400)
        claims = {
            "iss": f"{base_url}{REALM}",
            "azp": CLIENT_ID,
            "typ": kind,
            "sub": self._user,
            "preferred_username": self._user,
            "iat": now,
            "exp": now + seconds,
            "jti": secrets.token_hex(8),
            "sid": session,
        }
        return jwt.encode(claims, self._secrets.token_key, algorithm=_ALGORITHM)

    def _claims(self, token: str, kind: str) -> dict[str, Any] | None:
        """What a token of ours says that has not expired; None for any other."""
        try:
            claims = jwt.decode(
                token,
                self._secrets.token_key,
                algorithms=[_ALGORITHM],
                # A clock that was set back must not make our own tokens of a moment ago ones of the future.
                options={"require": ["exp", "typ"], "verify_iat": False},
            )
        except jwt.InvalidTokenError:
            return None
        return claims if claims["typ"] == kind else None


def api_token(api_key: str, base_url: str) -> str:
    """What ``NEPTUNE_API_TOKEN`` is set to: address and key, as every Neptune client reads them."""
    fields = {"api_address": base_url, "api_url": base_url, "api_key": api_key}
    return base64.b64encode(json.dumps(fields).encode()).decode("ascii")


def api_key_of(token: str) -> str | None:
    """The key inside an API token; None if it is none."""
    try:
        fields = json.loads(base64.b64decode(token.encode("ascii"), validate=True))
    except (binascii.Error, ValueError):
        return None
    key = fields.get("api_key") if isinstance(fields, dict) else None
    return key if isinstance(key, str) else None


def load_secrets(store: Path, api_key_env: str | None) -> Secrets:
    """Read the store's secrets, readable by their owner only; made the first time. The API key may come from outside.

    Raises SettingsError if the environment variable that should hold the key is empty or too short, StoreError if
    others can read the secrets or write to the store.
    """
    path = store / _SECRETS
    private_directory(store)
    if not path.exists():
        content = {name: secrets.token_hex(32) for name in ("api_key", "token_key", "url_key")}
        # Another process may be first; its secrets are read then.
        durable.write(path, json.dumps(content).encode("ascii"), exclusive=True, mode=0o600)
    if path.stat().st_mode & 0o077:
        raise StoreError(f"Other users can read the secrets in {path}.", hint=f"Run `chmod 600 {path}`.")
    found = json.loads(path.read_text(encoding="ascii"))
    key = str(found["api_key"])
    if api_key_env is not None:
        key = os.environ.get(api_key_env, "")
        if not key:
            raise SettingsError(
                f"The environment variable {api_key_env} holds no API key.", hint="Set it, or leave api_key_env out."
            )
        if len(key) < _KEY_LENGTH:
            raise SettingsError(
                f"The API key in {api_key_env} is too short: {len(key)} characters of at least {_KEY_LENGTH}.",
                hint="Use 128 random bits or more, such as `openssl rand -hex 32` prints.",
            )
    return Secrets(key, bytes.fromhex(found["token_key"]), bytes.fromhex(found["url_key"]))
