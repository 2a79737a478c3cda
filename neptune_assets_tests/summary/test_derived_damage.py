"""One changed bit in what is derived from the lake: statistics, tables, receipts, the database. None is accepted."""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.derived import damaged_database, damaged_files
from neptune_assets.errors import LakeDamagedError
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings, SummarySettings
from neptune_assets.summary.database import write_database, write_table
from neptune_assets.summary.tables import summarize
from neptune_assets.targets.ledger import Entry, Ledger
from neptune_assets.targets.protocol import Receipt
from neptune_assets_tests.support import lake_factory as make

P = "ws/p"
SETTINGS = SummarySettings(memory_mb=128)
RUNS = {
    name: [*make.params({"lr": 0.5, "sys/name": name}), *make.metric("loss", [1.0 / (k + 1) for k in range(300)])]
    for name in ("a", "b")
}


def tables(settings: LakeSettings) -> dict[str, list[Any]]:
    """Return all tables of the summary, but for the moment of the commit."""
    found = {}
    with summarize(Lake(settings).project(P), SETTINGS, settings) as summary:
        for name, reader in summary.tables():
            found[name] = reader.read_all().to_pylist()
    return found


def flips(path: Path, count: int) -> list[tuple[int, int]]:
    seed = random.Random(path.name)
    return [(seed.randrange(path.stat().st_size), seed.randrange(8)) for _ in range(count)]


def flip(path: Path, place: int, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make.make_lake(tmp_path / "lake", {P: RUNS})


@pytest.mark.parametrize("way", ["statistics"], indirect=True)
def test_damaged_statistics_are_named_and_made_again(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    directory = Path(lake.layout.statistics(P))
    right, kept = tables(lake.settings), {path: path.read_bytes() for path in directory.iterdir()}
    accepted = warned = 0
    for path in sorted(kept):
        for place, bit in flips(path, 12):
            flip(path, place, bit)
            named = bool(list(damaged_files(lake.settings, P)))
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                assert tables(lake.settings) == right, f"bit {bit} of byte {place} of {path.name} changed the summary"
            warned += "damaged" in caplog.text
            # A note that still begins with the right hash says the same.
            accepted += not named and path.suffix == ".parquet"
            assert not list(damaged_files(lake.settings, P)), "the next summary did not make them again"
            for file, content in kept.items():
                file.write_bytes(content)
    assert accepted == 0
    assert warned >= 24


def test_statistics_lost_in_a_kill_are_made_again_to_the_last_bit(lake: Lake, way: str) -> None:
    directory = Path(lake.layout.statistics(P))
    right = tables(lake.settings)
    written = {path.name: path.read_bytes() for path in directory.glob("*.parquet")}
    shutil.rmtree(directory)
    assert tables(lake.settings) == right
    assert {path.name for path in directory.glob("*.parquet")} == set(written)
    if way == "statistics":
        # The parts are not needed any more for what is known: the second summary reads none of them.
        for (part,) in lake.project(P).parts().values():
            flip(Path(part), Path(part).stat().st_size // 2, 1)
        assert tables(lake.settings) == right


def test_a_summary_of_damaged_parts_fails_by_name_and_is_never_wrong(lake: Lake, way: str) -> None:
    shutil.rmtree(lake.layout.statistics(P))
    ((part,), _) = lake.project(P).parts().values()
    content = Path(part).read_bytes()
    for place, bit in flips(Path(part), 40):
        flip(Path(part), place, bit)
        with pytest.raises(LakeDamagedError, match=r"run 'a' of 'ws/p'"):
            tables(lake.settings)
        Path(part).write_bytes(content)
    make.forget_hashes(Path(lake.storage.root))
    right = tables(lake.settings)
    for place, bit in flips(Path(part), 40):
        shutil.rmtree(lake.layout.statistics(P), ignore_errors=True)
        flip(Path(part), place, bit)
        with contextlib.suppress(LakeDamagedError):
            assert tables(lake.settings) == right
        Path(part).write_bytes(content)


def test_damaged_tables_are_named(lake: Lake) -> None:
    with summarize(lake.project(P), SETTINGS, lake.settings) as summary:
        for name, reader in summary.tables():
            write_table(reader, lake.layout.summary(name, P))
    assert list(damaged_files(lake.settings, P)) == []
    write_database(lake.settings, SETTINGS)
    for name in ("metrics", "runs"):
        path = Path(lake.layout.summary(name, P))
        content = path.read_bytes()
        for place, bit in flips(path, 20):
            flip(path, place, bit)
            (damage,) = damaged_files(lake.settings, P)
            assert (damage.kind, damage.path) == ("table", str(path))
            with pytest.raises(LakeDamagedError, match=rf"{path.name} is damaged"):
                write_database(lake.settings, SETTINGS)
            path.write_bytes(content)


def test_a_damaged_database_is_named(lake: Lake) -> None:
    path = write_database(lake.settings, SETTINGS)
    assert damaged_database(lake.settings, SETTINGS) is None
    path.write_bytes(path.read_bytes()[:5000])
    damage = damaged_database(lake.settings, SETTINGS)
    assert damage is not None
    assert damage.path == str(path)


def test_no_flipped_bit_of_receipts_is_accepted(lake: Lake) -> None:
    ledger = Ledger(lake.settings, "mlflow", P)
    counts = {"float_series": 300}
    for name in ("a", "b", "c"):
        receipt = Receipt(P, name, f"id-{name}", "d" * 32, counts, counts, {}, checks={"artifacts": "f" * 64})
        ledger.record(Entry(name, f"id-{name}", "d" * 32, receipt, verified=True, seconds=0.25))
    ledger.save()
    path = Path(ledger.path)
    content, right = path.read_bytes(), Ledger(lake.settings, "mlflow", P).entries()
    assert right is not None
    last = len(content.splitlines()[-1]) + 1
    for place, bit in flips(path, 300):
        flip(path, place, bit)
        found = Ledger(lake.settings, "mlflow", P).entries()
        if found is not None:
            # The last line may look torn, as a kill leaves it: then that run is looked at again.
            assert found.items() <= right.items(), f"bit {bit} of byte {place} was accepted"
            assert place >= len(content) - last
        path.write_bytes(content)
    flip(path, 10, 0)
    (damage,) = damaged_files(lake.settings, P)
    assert damage.kind == "receipts"
