"""Damage of every kind to every kind of file that holds what a lake says: none is read or verified as good.

``pytest -m slow -s`` prints how many of each kind were tried; docs/integrity.md has the counts.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from neptune_assets.errors import LakeError
from neptune_assets.lake.layout import parse_part_name, run_prefixes
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.verification import Verification
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.testing.lakes import as_table
from neptune_assets_tests.support.lake_factory import Rows, file, file_set, histograms, make_lake, metric, params, texts

P = "ws/proj"
ODD = random.Random(7)


def rows(number: int, version: int) -> Rows:
    return [
        *params({"n": version, "name": f"run {number}", "lr": 0.1}),
        *metric("m/loss", [ODD.random() for _ in range(800)]),
        *texts("log", [f"line {line} of {version}" for line in range(120)]),
        *histograms("h", [([0.0, 1.0, 2.0], [float(number), 4.0])]),
        file("weights", ODD.randbytes(700 + 50 * number), "w.bin"),
        file_set("set", {"a.txt": ODD.randbytes(90), "deep/b.bin": ODD.randbytes(200)}),
    ]


class Damaged:
    """A lake with all its files at hand, as they are and as they were one version ago."""

    def __init__(self, root: Path) -> None:
        self.settings = LakeSettings(root=str(root), part_mb=1)
        large = as_table(P, "large", metric("m", [ODD.random() for _ in range(300_000)]))
        first = {f"R-{number}": rows(number, 1) for number in range(4)}
        make_lake(root, {P: {**first, "large": large}}, settings=self.settings)
        self.old = self._contents(root)
        second = {**first, "R-0": rows(0, 2), "R-1": rows(1, 2), "new": rows(5, 1)}
        make_lake(root, {P: {**second, "large": large}}, settings=self.settings)
        third = {**second, "newer": rows(6, 1)}
        make_lake(root, {P: {**third, "large": large}}, settings=self.settings)
        # Now the manifest is a checkpoint and a delta on it.
        make_lake(root, {P: {**third, "newest": rows(7, 1), "large": large}}, settings=self.settings)
        self.now = self._contents(root)
        self.manifests = [path for path in self.now if path.suffix == ".jsonl"]
        self.parts = [path for path in self.now if path.suffix == ".parquet"]
        self.files = [path for path in self.now if path not in {*self.manifests, *self.parts}]
        assert len(self.manifests) == 2
        assert len([path for path in self.parts if path.name.startswith("large")]) > 1
        assert Verification(Lake(self.settings)).run([(P, Scope.RUNS)]).damaged == []

    @staticmethod
    def _contents(root: Path) -> dict[Path, bytes]:
        places = [*(root / "data").rglob("*_part_*.parquet"), *(root / "data").rglob(".manifest/*.jsonl")]
        places += [path for path in (root / "files").rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in sorted(places)}

    def kind(self, path: Path) -> str:
        return "manifest" if path in self.manifests else "part" if path in self.parts else "file"

    def is_found(self, paths: list[Path]) -> tuple[bool, bool]:
        """Whether reading the runs whose files these are fails, and whether verifying the project does."""
        lake = Lake(self.settings)
        try:
            project = lake.project(P)
        except LakeError:
            return True, bool(Verification(lake).run([(P, Scope.RUNS)]).damaged)
        runs = run_prefixes(project.records())
        refused = False
        for path in paths:
            parsed = parse_part_name(path.name)
            prefix = parsed[0] if parsed else next((part for part in path.parts if part in runs), None)
            for run in [project.run(runs[prefix])] if prefix in runs else list(project.runs()):
                try:
                    for _ in run.batches():
                        pass
                    for item in run.record.files:
                        with run.open_file(item.path) as stream:
                            stream.read()
                except LakeError:
                    refused = True
        return refused, bool(Verification(lake).run([(P, Scope.RUNS)]).damaged)


def flip(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    place = rng.randrange(8 * len(raw))
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def overwrite(raw: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(raw))
    length = min(rng.choice([2, 8, 64, 512]), len(raw) - place)
    return raw[:place] + rng.randbytes(length) + raw[place + length :]


def truncate(raw: bytes, rng: random.Random) -> bytes:
    ends = [place + 1 for place, byte in enumerate(raw) if byte == ord("\n")] if raw.startswith(b"{") else []
    return raw[: rng.choice(ends)] if ends and rng.random() < 0.5 else raw[: rng.randrange(len(raw))]


def zero(raw: bytes, rng: random.Random) -> bytes:
    block = rng.choice([16, 512, 4096])
    place = rng.randrange(0, len(raw), block)
    return raw[:place] + bytes(min(block, len(raw) - place)) + raw[place + block :]


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped bit": flip,
    "run of bytes": overwrite,
    "truncated": truncate,
    "zeroed block": zero,
}


def damage(lake: Damaged, what: str, rng: random.Random) -> dict[Path, bytes | None]:
    """Return what files become: other bytes, or None for a file that goes."""
    group = rng.choice([lake.parts, lake.files, lake.manifests])
    path = rng.choice(group)
    if what in CHANGES:
        return {path: CHANGES[what](lake.now[path], rng)}
    if what == "swapped files":
        other = rng.choice(group)
        return {path: lake.now[other], other: lake.now[path]}
    if group is lake.manifests:
        # The manifest as it was one version ago, and none of the newer files.
        old = {item: raw for item, raw in lake.old.items() if item.suffix == ".jsonl"}
        return {**dict.fromkeys(lake.manifests), **old}
    if path in lake.old:
        return {path: lake.old[path]}
    # A file of the old version that is gone by now, in the place of a new one.
    gone = [item for item in lake.old if item not in lake.now and lake.kind(path) == "file" and item.suffix != ".jsonl"]
    return {path: lake.old[rng.choice(gone)]} if gone else {}


def try_damages(root: Path, count: int, seed: int) -> Counter[tuple[str, str]]:
    """Damage a lake so many times, each time from whole; return how many of each kind were tried. All were found."""
    lake, rng = Damaged(root), random.Random(seed)
    whats = [*CHANGES, "swapped files", "old version put back"]
    tried: Counter[tuple[str, str]] = Counter()
    while tried.total() < count:
        what = whats[tried.total() % len(whats)]
        changes = damage(lake, what, rng)
        if all(raw == lake.now.get(path) for path, raw in changes.items()):
            continue
        for path, raw in changes.items():
            if raw is None:
                path.unlink()
            else:
                path.write_bytes(raw)
        touched = [path for path in changes if changes[path] != lake.now.get(path)]
        refused, reported = lake.is_found(touched)
        assert refused, f"{what} was read as good: {touched}"
        assert reported, f"{what} was verified as good: {touched}"
        for path in changes:
            if path in lake.now:
                path.write_bytes(lake.now[path])
            else:
                path.unlink()
        tried[lake.kind(touched[0]), what] += 1
    return tried


def test_no_damage_is_read_or_verified_as_good(tmp_path: Path) -> None:
    tried = try_damages(tmp_path / "lake", 200, seed=1)
    assert len(tried) == 18, "a kind of file or of damage was not tried"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_none_of_ten_thousand_damages_is_read_or_verified_as_good(tmp_path: Path) -> None:
    tried = try_damages(tmp_path / "lake", 10_000, seed=2)
    for (kind, what), number in sorted(tried.items()):
        print(f"{kind:10} {what:22} {number:6,}")
    assert tried.total() == 10_000


FLIPS = """
import sys
from pathlib import Path

from neptune_assets.errors import LakeError
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.lake_factory import file, make_lake, metric, params

root = Path(sys.argv[1])
make_lake(root, {"ws/p": {"r": [*params({"n": 1}), *metric("m", [0.5, 0.25]), file("f", b"x", "a.bin")]}})
(part,) = root.glob("data/*/*.parquet")
content = part.read_bytes()
length = int.from_bytes(content[-8:-4], "little")
refused = 0
for place in range(len(content) - 8 - length, len(content) - 8):
    damaged = bytearray(content)
    damaged[place] ^= 0x41
    part.write_bytes(damaged)
    run = Lake(LakeSettings(root=str(root))).project("ws/p").run("r")
    try:
        for _ in run.batches(["float_series"], ["float_value"]):
            pass
    except LakeError:
        refused += 1
print(length, refused)
"""


def test_no_damaged_byte_of_a_footer_ends_the_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    length, refused = map(int, done.stdout.split())
    assert refused == length > 100
