"""Which states a power cut may leave of a recording, as POSIX allows, and how to put one on a disk.

After an fsync of a file its bytes are kept; of what was written later, any part may be there, in any order, a write
may be cut at any byte, and where a file had grown there may be zeros. After an fsync of a directory its names are kept;
of later changes any may be there and any not, each by itself. One thing is assumed beyond POSIX, because all file
systems of use do so: a file that is renamed has its old name or its new one (or both), never none.
"""

from __future__ import annotations

import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from neptune_assets_tests.powercut.recording import Entry, Label, Recording, Sync, Truncate, Write

Tree = dict[str, bytes | None]
"""Path below the parent of the root -> bytes, or None for a directory."""
_Kind = Callable[[bytes, list[Write | Truncate]], bytes]
"""Makes of the bytes that are kept, and of what was written later, what may be there after the cut."""


@dataclass
class State:
    """What may be on the disk after a cut, and what had been said by then."""

    tree: Tree
    labels: frozenset[str]
    cut: int
    """Operations before the cut."""
    kind: str

    @property
    def group(self) -> str:
        """The kind without the number of what was picked."""
        return " ".join(word for word in self.kind.split() if not word.isdigit())


@dataclass
class _File:
    kept: bytes
    later: list[tuple[int, Write | Truncate]] = field(default_factory=list)
    made: dict[_Kind, bytes] = field(default_factory=dict)
    """What was made of it since it last changed: equal content of many states is one object, hashed once."""

    def content(self, kind: _Kind) -> bytes:
        if kind not in self.made:
            self.made[kind] = kind(self.kept, [change for _, change in self.later]) if self.later else self.kept
        return self.made[kind]


@dataclass
class _Directory:
    kept: dict[str, int]
    later: list[tuple[int, Entry]] = field(default_factory=list)


def states(
    recording: Recording, samples: int, seen: set[int] | None = None, *, every: int = 1, first: int = 0
) -> Iterator[State]:
    """Yield the different states of cuts: the systematic ones, and ``samples`` by chance for each cut.

    Cuts are all after ``first`` operations, or each ``every``-th and the last one. ``seen`` are the hashes of states
    that are left out; those that are yielded are added to it. The same recording yields the same states each time.
    """
    disk = _Disk(recording, random.Random(1))
    seen = set() if seen is None else seen
    for cut in range(len(recording.operations) + 1):
        last = cut == len(recording.operations)
        labels = frozenset(disk.labels)
        for kind, tree in disk.now(samples) if cut >= first and (cut % every == 0 or last) else ():
            identity = hash((labels, frozenset(tree.items())))
            if identity not in seen:
                seen.add(identity)
                yield State(tree, labels, cut, kind)
        if cut < len(recording.operations):
            disk.take(cut)


@contextmanager
def fast_place() -> Iterator[Path]:
    """A directory in memory where there is room, else on the disk: what states and victims write lasts no longer."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    with TemporaryDirectory(prefix="neptune_assets-", dir=memory if roomy else None) as path:
        yield Path(path)


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
            self.files[operation.file].made.clear()
        elif isinstance(operation, Sync):
            if operation.item in self.files:
                file = self.files[operation.item]
                covered = [item for item in file.later if item[0] < operation.covers]
                file.kept = _content(file.kept, [change for _, change in covered])
                file.later = file.later[len(covered) :]
                file.made.clear()
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
        pairs = {entry.pair: number for number, entry in names if entry.pair is not None and entry.item is not None}
        removed = {number: pairs[entry.pair] for number, entry in names if entry.item is None and entry.pair in pairs}

        def tree(persisted: set[int], kind: _Kind, one: dict[int, _Kind] | None = None) -> Tree:
            # Of a rename the new name is there if the old one is gone.
            renamed = {removed[number] for number in persisted if number in removed}
            return self.tree(persisted | renamed, kind, one or {})

        yield "all", tree(numbers, _every)
        yield "nothing", tree(set(), _none)
        yield "names", tree(numbers, _none)
        yield "names and sizes", tree(numbers, _zeros)
        yield "bytes", tree(set(), _every)
        yield "new names", tree(added, _every)
        yield "removed names", tree(numbers - added, _every)
        for number in numbers:
            yield f"all but name {number}", tree(numbers - {number}, _every)
            yield f"only name {number}", tree({number}, _every)
        for item in changed:
            yield f"file {item} lost", tree(numbers, _every, {item: _none})
            yield f"file {item} of zeros", tree(numbers, _every, {item: _zeros})
            yield f"file {item} torn", tree(numbers, _every, {item: _torn})
        for _ in range(samples if numbers or changed else 0):
            part = {number for number in numbers if self.chance.random() < 0.5}
            kinds = [_every, _every, _none, _zeros, partial(_torn, chance=self.chance)]
            yield "chance", tree(part, _every, {item: self.chance.choice(kinds) for item in changed})

    def tree(self, persisted: set[int], kind: _Kind, others: dict[int, _Kind]) -> Tree:
        """The tree in which these changes of names are there, and of files what their kind makes of them."""
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
                    tree[place] = self.files[child].content(others.get(child, kind))

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


def _torn(kept: bytes, changes: list[Write | Truncate], chance: random.Random | None = None) -> bytes:
    """Any of the changes, in any order, each cut at any byte; the file may have grown before its bytes came."""
    # Without another source of chance, the same changes are torn at the same byte in each recording.
    chance = chance or random.Random(zlib.crc32(_content(kept, changes)))
    content = bytearray(kept if chance.random() < 0.5 else _zeros(kept, changes))
    for change in chance.sample(changes, len(changes)):
        if chance.random() < 0.5:
            if isinstance(change, Write):
                _into(content, change.offset, change.data[: chance.randint(0, len(change.data))])
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
