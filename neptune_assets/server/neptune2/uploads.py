"""Uploads that come in parts: kept on disk until the last one is there, so that they outlive the server."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neptune_assets import durable
from neptune_assets.server.neptune2.errors import RANGE_MISMATCH, BadRequestError, NotFoundError

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d+)/(\d+)")
_IDENTIFIER: Final = re.compile(r"[0-9a-f]{32}")
_ABANDONED_SECONDS: Final = 7 * 24 * 3600
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes of a file that a part holds: from `start` on, `length` of them, of `total`."""

    start: int
    length: int
    total: int


def parse_range(text: str | None) -> Range:
    """Return what ``X-Range: bytes=<first>-<last>/<total>`` says. Raises BadRequestError for anything else."""
    match = _RANGE.fullmatch(text or "")
    if match is None:
        raise BadRequestError(f"X-Range {text!r} is not of the form bytes=<first>-<last>/<total>.")
    first, last, total = (int(group) for group in match.groups())
    if not first <= last < total:
        raise BadRequestError(f"X-Range {text!r} is not a range inside of a file.")
    return Range(first, last - first + 1, total)


class Uploads:
    """Unfinished uploads below one directory; each is a directory of its own with its parts by where they start."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def start(self, total: int, about: Mapping[str, Any]) -> str:
        """Begin an upload of `total` bytes and return its identifier; `about` is given back when it is finished."""
        self._remove_abandoned()
        identifier = secrets.token_hex(16)
        directory = self._root / identifier
        durable.make_directory(directory, mode=0o700)
        durable.write(directory / "about.json", json.dumps({"total": total, **about}).encode("utf-8"))
        return identifier

    def about(self, identifier: str) -> dict[str, Any]:
        """Return the total (``total``) and what was said at the start. Raises NotFoundError for an unknown upload."""
        try:
            text = (self._directory(identifier) / "about.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            raise NotFoundError(f"There is no upload {identifier!r}.") from None
        about: dict[str, Any] = json.loads(text)
        return about

    def put(self, identifier: str, at: Range, content: bytes) -> None:
        """Keep a part, durably; one that comes again replaces the first.

        Raises BadRequestError if the part is not one of this upload, or not as long as it says.
        """
        if at.total != self.about(identifier)["total"]:
            raise BadRequestError(f"{RANGE_MISMATCH}: {at.total} bytes in all are not what the upload began with.")
        if len(content) != at.length:
            raise BadRequestError(f"{RANGE_MISMATCH}: {len(content)} bytes arrived of {at.length}.")
        target = self._directory(identifier) / f"{at.start:020d}-{at.length:020d}"
        durable.write(target, content)

    def blocks(self, identifier: str) -> Iterator[bytes]:
        """Yield the whole file in blocks.

        Raises BadRequestError, at the end, if parts are missing: the client begins anew.
        """
        total, position = int(self.about(identifier)["total"]), 0
        for path in sorted(self._directory(identifier).glob("*-*")):
            start, length = (int(number) for number in path.name.split("-"))
            if start != position or path.stat().st_size != length:
                break
            with path.open("rb") as source:
                while block := source.read(_CHUNK):
                    yield block
            position += length
        if position != total:
            raise BadRequestError(f"{RANGE_MISMATCH}: {position} of {total} bytes arrived.")

    def remove(self, identifier: str) -> None:
        """Forget an upload that is finished."""
        shutil.rmtree(self._directory(identifier), ignore_errors=True)

    def _directory(self, identifier: str) -> Path:
        if not _IDENTIFIER.fullmatch(identifier):
            raise NotFoundError(f"There is no upload {identifier!r}.")
        return self._root / identifier

    def _remove_abandoned(self) -> None:
        """Remove what no client has come back to for a week."""
        if not self._root.is_dir():
            return
        for directory in self._root.iterdir():
            newest = max((path.stat().st_mtime for path in (directory, *directory.glob("*"))), default=0.0)
            if newest < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(directory, ignore_errors=True)
