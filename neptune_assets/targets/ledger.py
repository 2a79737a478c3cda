"""Receipts and verdicts of what was loaded, kept beside the lake: a cache, never trusted over the target.

One JSON line a run under ``<lake>/targets/<target>/<S(project)>.jsonl``; a later line of a run replaces an earlier one.
Losing the file loses nothing: :meth:`Ledger.rebuild` asks the target. The lock lies beside it, so that two loads of one
project into one target never run at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from neptune_assets.errors import LakeBusyError
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.storage import Storage, storage_errors
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.protocol import Dropped, Receipt, TargetRun

LEASE_SECONDS: Final = 900
"""How long a lock on an object store is honoured after its owner last renewed it."""

SAVE_SECONDS: Final = 30.0
"""How often a ledger on an object store, which cannot append, is written while a load goes on."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one run in a target.

    ``receipt`` is None where the ledger was rebuilt; ``verified`` is None where reading back was not finished.
    """

    run_id: str
    target_id: str
    digest: str
    receipt: Receipt | None = None
    verified: bool | None = None
    differences: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that :meth:`from_json` turns back into an equal entry."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """Build an entry from what :meth:`to_json` returned; raises TypeError or KeyError for anything else."""
        fields = dict(data)
        receipt = fields.pop("receipt", None)
        if receipt is not None:
            receipt = dict(receipt)
            receipt["dropped"] = tuple(Dropped(**item) for item in receipt.get("dropped", ()))
            receipt["notes"] = tuple(receipt.get("notes", ()))
            fields["receipt"] = Receipt(**receipt)
        fields["differences"] = tuple(fields.get("differences", ()))
        return cls(**fields)


class Ledger:
    """The entries of one project in one target. Not shared between threads."""

    def __init__(self, settings: LakeSettings, target: str, project_id: str) -> None:
        self._storage = Storage(settings.root, settings.storage)
        layout = Layout(self._storage.root)
        self._path = layout.ledger(target, project_id, "jsonl")
        self._lock = layout.ledger(target, project_id, "lock")
        self._what = f"{project_id} into {target}"
        self._entries: dict[str, Entry] | None = None
        self._saved = time.monotonic()

    @property
    def path(self) -> str:
        """Where the ledger lies."""
        return self._path

    def entries(self) -> dict[str, Entry] | None:
        """Return the entries by run id, or None where there is no ledger that can be read as a whole.

        A torn last line, which dying while writing leaves, is left out; any other line that is not ours means that
        the file cannot be trusted.
        """
        if self._entries is None:
            self._entries = self._read()
        return self._entries

    def rebuild(self, held: Iterable[TargetRun]) -> dict[str, Entry]:
        """Forget everything and take what the target says it holds; runs without a digest are not finished."""
        self._entries = {run.run_id: Entry(run.run_id, run.target_id, run.digest) for run in held if run.digest}
        self.save()
        return self._entries

    def record(self, entry: Entry) -> None:
        """Keep an entry. Local ledgers are appended to at once, others written now and then and by :meth:`save`."""
        entries = self.entries()
        if entries is None:
            entries = self._entries = {}
        entries[entry.run_id] = entry
        if self._storage.local:
            with storage_errors(self._storage, "Writing the ledger"):
                Path(self._path).parent.mkdir(parents=True, exist_ok=True)
                with Path(self._path).open("ab") as stream:
                    stream.write(_line(entry))
        elif time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def forget(self, run_id: str) -> None:
        """Leave out a run that the target holds no longer; written by the next :meth:`save`."""
        if self._entries:
            self._entries.pop(run_id, None)

    def save(self) -> None:
        """Write the whole ledger anew, one line a run."""
        data = b"".join(_line(entry) for _, entry in sorted((self._entries or {}).items()))
        with storage_errors(self._storage, "Writing the ledger"):
            self._storage.put(self._path, data)
        self._saved = time.monotonic()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this project in this target for oneself.

        A lock of the operating system for local lakes, which dies with its process; on object stores a lease that
        others honour for :data:`LEASE_SECONDS` after it was last renewed by :meth:`renew`. Raises LakeBusyError.
        """
        with self._flock() if self._storage.local else self._lease():
            yield

    def renew(self) -> None:
        """Say that the owner of a lease is alive; nothing to do for local lakes."""
        if not self._storage.local and time.monotonic() - self._renewed > LEASE_SECONDS / 5:
            self._write_lease()

    # -- internals

    def _read(self) -> dict[str, Entry] | None:
        try:
            lines = self._storage.read(self._path).split(b"\n")
        except FileNotFoundError:
            return None
        entries: dict[str, Entry] = {}
        for number, line in enumerate(lines):
            if not line:
                continue
            try:
                entry = Entry.from_json(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                if number == len(lines) - 1:
                    break
                return None
            entries[entry.run_id] = entry
        return entries

    def _busy(self, owner: str) -> LakeBusyError:
        return LakeBusyError(
            f"Another load of {self._what} is running{owner}.", hint="Wait until it has ended, then load again."
        )

    @contextmanager
    def _flock(self) -> Iterator[None]:
        with storage_errors(self._storage, "Locking the ledger"):
            Path(self._lock).parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._busy("") from None
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _lease(self) -> Iterator[None]:
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        data = self._lease_bytes()
        if not self._storage.create(self._lock, data):
            held = self._read_lease()
            if held is not None and time.time() - held["at"] < LEASE_SECONDS:
                raise self._busy(f" (owner {held['owner']})")
            # Whoever held it is gone. Taking it over is write, wait, read: of two that do so at once, one wins.
            self._storage.put(self._lock, data)
            time.sleep(1.0)
        held = self._read_lease()
        if held is None or held["owner"] != self._owner:
            raise self._busy("")
        self._renewed = time.monotonic()
        try:
            yield
        finally:
            held = self._read_lease()
            if held is not None and held["owner"] == self._owner:
                self._storage.delete(self._lock)

    def _lease_bytes(self) -> bytes:
        return json.dumps({"owner": self._owner, "at": time.time()}).encode()

    def _write_lease(self) -> None:
        held = self._read_lease()
        if held is None or held["owner"] != self._owner:
            raise self._busy(", which took over the lease of this one")
        self._storage.put(self._lock, self._lease_bytes())
        self._renewed = time.monotonic()

    def _read_lease(self) -> dict[str, Any] | None:
        try:
            data = json.loads(self._storage.read(self._lock))
            return {"owner": str(data["owner"]), "at": float(data["at"])}
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None


def _line(entry: Entry) -> bytes:
    return json.dumps(entry.to_json(), separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
