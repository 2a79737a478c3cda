"""A file as a stream: asked for by a signed address, continued where the connection breaks, its size checked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

import httpx

from neptune_assets.errors import FileGoneError
from neptune_assets.sources.live import Attempts
from neptune_assets.sources.neptune3.connection import Connection
from neptune_assets.sources.neptune3.model import FileReference, RefusedError

_SIGN: Final = "/api/storagebridge/v1/signedUrl"
_BLOCK: Final = 1 << 20
_BELIEVED: Final = 3
"""A refusal, or an answer that is whole and shorter than the file, is believed when it came so often."""


def open_download(connection: Connection, project: str, reference: FileReference) -> BinaryIO:
    """Open a file for reading; nothing is kept on disk.

    Raises FileGoneError if the server does not have it, then or while reading if it ends early.
    """
    download = _Download(connection, project, reference)
    download.begin()
    return cast(BinaryIO, io.BufferedReader(download, _BLOCK))


class _Download(io.RawIOBase):
    def __init__(self, connection: Connection, project: str, reference: FileReference) -> None:
        super().__init__()
        self._connection = connection
        self._project = project
        self._reference = reference
        self._attempts: Attempts = connection.attempts()
        self._ends = 0
        self._refusals = 0
        self._offset = 0
        self._response: httpx.Response | None = None
        self._blocks: Iterator[bytes] = iter(())
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._hang_up()
        super().close()

    def begin(self) -> None:
        """Ask for the file from where we are; try again what can heal."""
        while True:
            trouble = self._ask()
            if trouble is None:
                return
            if not self._attempts.again():
                raise self._gone(f"could not be fetched after {self._attempts.count} tries; the last: {trouble}")

    def readinto(self, buffer: object) -> int:
        target = memoryview(cast(bytearray, buffer)).cast("B")
        while not self._left:
            trouble = ""
            try:
                block = next(self._blocks, None)
            except httpx.RequestError as error:
                block, trouble = None, f"{type(error).__name__} {error}"
            if block is not None:
                if self._offset + len(block) > self._reference.size:
                    # It could go on until the disk is full.
                    raise self._gone(f"goes on after the {self._reference.size:,} bytes that the server has promised")
                self._left = memoryview(block)
                continue
            if not trouble and self._offset == self._reference.size:
                return 0
            if not trouble:
                self._ends += 1
                if self._ends >= _BELIEVED:
                    raise self._gone(f"ends after {self._offset:,} of {self._reference.size:,} bytes")
            if not self._attempts.again():
                raise self._gone(f"broke off after {self._offset:,} bytes; the last: {trouble or 'it ended early'}")
            self.begin()
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        self._offset += count
        return count

    def _ask(self) -> str | None:
        """Open the file at the offset; return what went wrong if trying again may help."""
        self._hang_up()
        headers = {"Range": f"bytes={self._offset}-"} if self._offset else {}
        try:
            request = self._connection.files.build_request("GET", self._signed_address(), headers=headers)
            self._connection.pace.wait()
            response = self._connection.files.send(request, stream=True)
        except (httpx.RequestError, httpx.InvalidURL, ValueError) as error:
            return f"{type(error).__name__} {error}"
        self._response = response
        status = response.status_code
        if status == 404:
            raise self._gone("is not on the server (404)")
        if status not in {200, 206}:
            # A signature that ran out is 400 or 403; the next try has a new one.
            self._refusals += status < 500 and status not in {408, 429}
            if self._refusals >= _BELIEVED:
                raise self._gone(f"is refused (HTTP {status})")
            return f"HTTP {status}"
        self._blocks = response.iter_bytes(_BLOCK)
        if status == 200 and self._offset:
            try:
                self._skip()
            except httpx.RequestError as error:
                return f"{type(error).__name__} {error}"
        return None

    def _skip(self) -> None:
        """Pass over what was read before a server that does not do ranges began again."""
        left = self._offset
        while left:
            block = next(self._blocks, b"")
            if not block:
                return
            if len(block) > left:
                self._left = memoryview(block)[left:]
            left -= min(left, len(block))

    def _signed_address(self) -> str:
        body = {
            "files": [{"path": self._reference.key, "permission": "read", "project_identifier": self._project}],
        }
        try:
            files = json.loads(self._connection.post(_SIGN, body))["files"]
            return str(files[0]["url"])
        except RefusedError as error:
            raise self._gone(f"cannot be fetched: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise self._gone("has no address the server could tell") from error

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _gone(self, what: str) -> FileGoneError:
        return FileGoneError(
            f"The file {self._reference.key!r} of {self._project} {what}.",
            hint="The run stays partial; materialize again once the server has the file.",
        )
