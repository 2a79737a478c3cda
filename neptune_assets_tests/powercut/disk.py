"""Which states a power cut may leave of a recording, as POSIX allows, and how to put one on a disk.

After an fsync of a file its bytes are kept; of what was written later, any part may be there, in any order, a write
may be cut at any byte, and where a file had grown there may be zeros. After an fsync of a directory its names are kept;
of later changes any may be there and any not, each by itself. One thing is assumed beyond POSIX, because all file
systems of use do so: a file that is renamed has its old name or its new one (or both), never none.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from neptune_assets_tests.powercut.recording import Entry, Label, Recording, Sync, Truncate, Write

Tree = dict[str, bytes | None]
"""Path below the parent of the root -> bytes, or None for a directory."""


@dataclass
class State:
    """What may be on the disk after a cut, and what had been said by then."""

    tree: Tree
    labels: frozenset[str]
    cut: int
    """Operations before the cut."""
    kind: str


@dataclass
class _File:
    kept: bytes
    later: list[tuple[int, Write | Truncate]] = field(default_factory=list)


@dataclass
class _Directory:
    kept: dict[str, int]
    later: list[tuple[int, Entry]] = field(default_factory=list)


def states(
    recording: Recording, samples: int, seen: set[bytes] | None = None, *, every: int = 1, first: int = 0
) -> Iterator[State]:
    """Yield the different states of cuts: the systematic ones, and ``samples`` by chance for each cut.

    Cuts are all after ``first`` operations, or each ``every``-th and the last one. ``seen`` are the digests of states
    that are left out; those that are yielded are added to it.
    """
    disk = _Disk(recording, random.Random(1))
    seen = set() if seen is None else seen
    for cut in range(len(recording.operations) + 1):
        last = cut == len(recording.operations)
        for kind, tree in disk.now(samples) if cut >= first and (cut % every == 0 or last) else ():
            identity = hashlib.blake2b(repr(sorted(disk.labels)).encode())
            for path, data in sorted(tree.items()):
                identity.update(repr((path, None if data is None else len(data))).encode())
                identity.update(data or b"")
            if identity.digest() not in seen:
                seen.add(identity.digest())
                yield State(tree, frozenset(disk.labels), cut, kind)
        if cut < len(recording.operations):
            disk.take(cut)


def put(tree: Tree, base: Path, root: Path) -> None:
    """Make ``root``, a directory in ``base``, what the tree says."""
    shutil.rmtree(root, ignore_errors=True)
    for path, data in sorted(tree.items()):
        target = base / path
        if data is None:
            target.mkdir(mode=0o700)
        else:
            target.write_bytes(data)
            target.chmod(0o600)


class _Disk:
    def __init__(self, recording: Recording, chance: random.Random) -> None:
        self.operations = recording.operations
        self.chance = chance
        self.labels: set[str] = set()
        self.files = {item: _File(data) for item, data in recording.files.items()}
        self.directories = {item: _Directory(dict(names)) for item, names in recording.directories.items()}

    def take(self, number: int) -> None:
        operation = self.operations[number]
        if isinstance(operation, Label):
            self.labels.add(operation.text)
        elif isinstance(operation, Entry):
            self.directories[operation.directory].later.append((number, operation))
        elif isinstance(operation, Write | Truncate):
            self.files[operation.file].later.append((number, operation))
        elif isinstance(operation, Sync):
            if operation.item in self.files:
                file = self.files[operation.item]
                covered = [item for item in file.later if item[0] < operation.covers]
                file.kept = _content(file.kept, [change for _, change in covered])
                file.later = file.later[len(covered) :]
            else:
                directory = self.directories[operation.item]
                covered_names = [item for item in directory.later if item[0] < operation.covers]
                for _, entry in covered_names:
                    _apply(directory.kept, entry)
                directory.later = directory.later[len(covered_names) :]

    def now(self, samples: int) -> Iterator[tuple[str, Tree]]:
        """Yield the states that a cut at this moment may leave."""
        names = [item for directory in self.directories.values() for item in directory.later]
        names.sort(key=lambda item: item[0])
        numbers = {number for number, _ in names}
        added = {number for number, entry in names if entry.item is not None}
        changed = [item for item, file in self.files.items() if file.later]
        whole, nothing = _every, _none
        yield "all", self.tree(numbers, lambda item: whole)
        yield "nothing", self.tree(set(), lambda item: nothing)
        yield "names", self.tree(numbers, lambda item: nothing)
        yield "names and sizes", self.tree(numbers, lambda item: _zeros)
        yield "bytes", self.tree(set(), lambda item: whole)
        yield "new names", self.tree(added, lambda item: whole)
        yield "removed names", self.tree(numbers - added, lambda item: whole)
        for number in numbers:
            yield f"all but name {number}", self.tree(numbers - {number}, lambda item: whole)
            yield f"only name {number}", self.tree({number}, lambda item: whole)
        for one in changed:
            for kind in (nothing, _zeros, self.torn):
                yield (
                    f"file {one} lost",
                    self.tree(numbers, lambda item, one=one, kind=kind: kind if item == one else whole),
                )  # type: ignore[misc]
        for _ in range(samples if numbers or changed else 0):
            part = {number for number in numbers if self.chance.random() < 0.5}
            kinds = {item: self.chance.choice((whole, whole, nothing, _zeros, self.torn)) for item in changed}
            yield "chance", self.tree(part, lambda item, kinds=kinds: kinds.get(item, whole))  # type: ignore[misc]

    def torn(self, kept: bytes, changes: list[Write | Truncate]) -> bytes:
        """Any of the changes, in any order, each cut at any byte; the file may have grown before its bytes came."""
        content = bytearray(kept if self.chance.random() < 0.5 else _zeros(kept, changes))
        for change in self.chance.sample(changes, len(changes)):
            if self.chance.random() < 0.5:
                if isinstance(change, Write):
                    data = change.data[: self.chance.randint(0, len(change.data))]
                    _into(content, change.offset, data)
                else:
                    _resize(content, change.size)
        return bytes(content)

    def tree(
        self, persisted: set[int], content: Callable[[int], Callable[[bytes, list[Write | Truncate]], bytes]]
    ) -> Tree:
        """The tree in which these changes of names are there; of a rename the new name if the old one is gone."""
        pairs: dict[int, int] = {}
        for directory in self.directories.values():
            for number, entry in directory.later:
                if entry.pair is not None and entry.item is not None:
                    pairs[entry.pair] = number
        persisted = persisted | {
            pairs[entry.pair]
            for directory in self.directories.values()
            for number, entry in directory.later
            if number in persisted and entry.item is None and entry.pair in pairs
        }
        tree: Tree = {}

        def descend(item: int, path: str) -> None:
            directory = self.directories[item]
            names = dict(directory.kept)
            for number, entry in directory.later:
                if number in persisted:
                    _apply(names, entry)
            for name, child in names.items():
                place = f"{path}/{name}" if path else name
                if child in self.directories:
                    # A directory that moved may be reached twice; a file system would show it once.
                    if place not in tree:
                        tree[place] = None
                        descend(child, place)
                else:
                    file = self.files[child]
                    changes = [change for _, change in file.later]
                    tree[place] = content(child)(file.kept, changes) if changes else file.kept

        descend(0, "")
        return tree


def _every(kept: bytes, changes: list[Write | Truncate]) -> bytes:
    return _content(kept, changes)


def _none(kept: bytes, changes: list[Write | Truncate]) -> bytes:
    return kept


def _zeros(kept: bytes, changes: list[Write | Truncate]) -> bytes:
    size = len(_content(kept, changes))
    return kept[:size].ljust(size, b"\0")


def _content(kept: bytes, changes: list[Write | Truncate]) -> bytes:
    content = bytearray(kept)
    for change in changes:
        if isinstance(change, Write):
            _into(content, change.offset, change.data)
        else:
            _resize(content, change.size)
    return bytes(content)


def _into(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def _apply(names: dict[str, int], entry: Entry) -> None:
    if entry.item is None:
        names.pop(entry.name, None)
    else:
        names[entry.name] = entry.item
