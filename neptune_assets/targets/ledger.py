"""Receipts and verdicts of what was loaded, kept beside the lake: a cache, never trusted over the target.

One JSON line a run under ``<lake>/targets/<target>/<S(project)>.jsonl``, with a checksum at its end; a later line of a
run replaces an earlier one. Losing the file loses nothing: :meth:`Ledger.rebuild` asks the target. The lock is beside
it, so that two loads of one project into one target never run at once.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from neptune_assets import durable
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.lock import ProjectLock, project_lock
from neptune_assets.lake.storage import Storage, storage_errors
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.protocol import Dropped, Receipt, TargetRun

log = logging.getLogger(__name__)

_CHECKSUM: Final = b"\t#"
"""Between an entry and its checksum: JSON has no tab outside of texts, and escapes it there."""

SAVE_SECONDS: Final = 30.0
"""How often a ledger on an object store, which cannot append, is written while a load goes on."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one run in a target.

    ``receipt`` is None where the ledger was rebuilt; ``verified`` is None where reading back was not finished.
    ``seconds`` is how long planning, writing and reading back took, where it was measured; where several runs were
    loaded at once, the run's share of that time.
    """

    run_id: str
    target_id: str
    digest: str
    receipt: Receipt | None = None
    verified: bool | None = None
    differences: tuple[str, ...] = ()
    seconds: float | None = None

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
        self._allow_unsafe = settings.allow_unsafe_locks
        self._what = f"{project_id} into {target}"
        self._entries: dict[str, Entry] | None = None
        self._saved = time.monotonic()
        self._torn = False

    @property
    def path(self) -> str:
        """Path of the ledger's file."""
        return self._path

    def entries(self) -> dict[str, Entry] | None:
        """Return the entries by run id, None without a ledger that can be read as a whole.

        A torn last line, which dying while writing leaves, is left out; any other line that is not ours, or that is not
        as it was written, means that the file cannot be trusted, which is logged as a warning.
        """
        if self._entries is None:
            self._entries = self._read()
        return self._entries

    def damage(self) -> str | None:
        """Return what is wrong with the file as it is now; None if nothing is, or if there is none."""
        try:
            entries, _ = _parse(self._storage.read(self._path))
        except FileNotFoundError:
            return None
        return None if entries is not None else "a line of it is not as it was written"

    def of_other_projects(self) -> list[Entry]:
        """Return the entries of another project's ledger of this target, the first in order of names that has any."""
        directory = self._path.rpartition("/")[0]
        for name in sorted(self._storage.names(directory)):
            path = f"{directory}/{name}"
            if name.endswith(".jsonl") and path != self._path:
                entries, _ = _parse(self._storage.read(path))
                if entries:
                    return list(entries.values())
        return []

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
        if self._torn:
            self.save()
        elif self._storage.local:
            with storage_errors(self._storage, "Writing the ledger"):
                durable.make_directory(Path(self._path).parent)
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
        self._torn = False
        self._saved = time.monotonic()

    @contextmanager
    def lock(self) -> Iterator[ProjectLock]:
        """Hold this project in this target for oneself. Raises LakeBusyError, naming the holder."""
        with project_lock(self._storage, self._lock, self._what, allow_unsafe=self._allow_unsafe) as held:
            yield held

    # -- internals

    def _read(self) -> dict[str, Entry] | None:
        try:
            data = self._storage.read(self._path)
        except FileNotFoundError:
            return None
        entries, self._torn = _parse(data)
        if entries is None:
            log.warning(
                "The receipts %s are damaged: they are made again from what the target holds.",
                self._storage.url(self._path),
            )
        return entries


def _parse(data: bytes) -> tuple[dict[str, Entry] | None, bool]:
    """Return the entries of a ledger, None if any line but the last is not ours, and whether the last one is torn."""
    lines = data.split(b"\n")
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            entry = Entry.from_json(json.loads(_checked(line)))
        except (ValueError, TypeError, KeyError, AttributeError):
            return (entries, True) if number == len(lines) - 1 else (None, False)
        entries[entry.run_id] = entry
    return entries, False


def _checked(line: bytes) -> bytes:
    """Return the entry of a line. Raises ValueError if it is not as it was written."""
    body, mark, checksum = line.partition(_CHECKSUM)
    # Lines of before receipts had checksums have no mark; one whose mark was damaged is not JSON.
    if mark and checksum != _checksum(body):
        raise ValueError("the line is not as it was written")
    return body


def _line(entry: Entry) -> bytes:
    body = json.dumps(entry.to_json(), separators=(",", ":"), ensure_ascii=True).encode()
    return body + _CHECKSUM + _checksum(body) + b"\n"


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).hexdigest().encode()
