from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from neptune_assets.errors import LakeBusyError, LakeError
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.manifest import (
    FORMAT,
    FileRecord,
    IssueRecord,
    Manifest,
    ManifestStore,
    PartRecord,
    RunRecord,
    manifest_bytes,
    parse_manifest,
    salvage_manifest,
)
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import Scope
from neptune_assets_tests.support.lake_factory import forget_hashes


def record(run_id: str, **changes: object) -> RunRecord:
    base = RunRecord(run_id, "complete", "d", "f", "g", "2025-01-01T00:00:00+00:00")
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> ManifestStore:
    storage = Storage(str(tmp_path))
    return ManifestStore(storage, Layout(storage.root), "ws/p", Scope.RUNS)


def paths(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.rglob("*.jsonl"))


def test_no_manifest_is_none(store: ManifestStore) -> None:
    assert store.read() is None


def test_records_come_back_equal_and_sorted(store: ManifestStore) -> None:
    full = record(
        "b\0\n\ud800ü",
        state="partial",
        rows={"float": 2**60},
        promised={"float": 1},
        parts=(PartRecord("p", 1, 2),),
        files=(FileRecord("a", "file", "p", 1, "ff", step=-5, member="m"),),
        errors=(IssueRecord("e", "a", "file"),),
        notes=(IssueRecord("n"),),
        repairs={"timezone_shift_ms": -3_600_000},
        fork_step=10**17,
        in_place="/x",
        vanished_at="then",
    )
    manifest = Manifest("ws/p")
    store.commit(manifest, [full, record("a")], written_at="now")
    read = store.read()
    assert read is not None
    assert read.records == {"a": record("a"), full.run_id: full}
    assert list(read.records) == ["a", full.run_id]


def test_later_deltas_win_and_a_checkpoint_replaces_all(store: ManifestStore, tmp_path: Path) -> None:
    manifest = Manifest("ws/p")
    for number in range(4):
        store.commit(manifest, [record("a", digest=str(number)), record(f"r{number}")], written_at="now")
    assert len(paths(tmp_path)) == 4
    before = store.read()
    store.compact(manifest, written_at="now")
    assert [path.name for path in paths(tmp_path)] == ["0000000005.jsonl"]
    after = store.read()
    assert before is not None
    assert after is not None
    assert after.records == before.records
    assert after.records["a"].digest == "3"
    store.commit(after, [record("a", digest="new")], written_at="now")
    assert store.read().records["a"].digest == "new"  # type: ignore[union-attr]


def test_a_checkpoint_whose_clean_up_was_cut_short_still_rules(store: ManifestStore, tmp_path: Path) -> None:
    manifest = Manifest("ws/p")
    store.commit(manifest, [record("a", digest="1")], written_at="now")
    left = paths(tmp_path)[0].read_bytes()
    store.commit(manifest, [record("a", digest="2")], written_at="now")
    store.compact(manifest, written_at="now")
    (paths(tmp_path)[0].parent / "0000000001.jsonl").write_bytes(left)
    read = store.read()
    assert read is not None
    assert read.records["a"].digest == "2"


def test_two_writers_cannot_both_commit(store: ManifestStore) -> None:
    one, two = Manifest("ws/p"), Manifest("ws/p")
    store.commit(one, [record("a")], written_at="now")
    with pytest.raises(LakeBusyError, match="another writer"):
        store.commit(two, [record("b")], written_at="now")
    assert list(store.read().records) == ["a"]  # type: ignore[union-attr]


def rewritten(raw: bytes, **changes: object) -> bytes:
    header, records = parse_manifest(raw, "x")
    return manifest_bytes({**header, **changes}, records)


def test_a_number_that_a_checkpoint_made_free_commits_nothing(store: ManifestStore, tmp_path: Path) -> None:
    late = Manifest("ws/p")
    store.commit(late, [record("a")], written_at="now")
    other = store.read()
    assert other is not None
    store.commit(other, [record("b")], written_at="now")
    store.compact(other, written_at="now")
    assert [path.name for path in paths(tmp_path)] == ["0000000003.jsonl"]
    with pytest.raises(LakeBusyError, match="another writer"):
        store.commit(late, [record("late")], written_at="now")
    with pytest.raises(LakeBusyError, match="another writer"):
        store.compact(late, written_at="now")
    assert list(store.read().records) == ["a", "b"]  # type: ignore[union-attr]
    store.compact(other, written_at="now")
    assert [path.name for path in paths(tmp_path)] == ["0000000004.jsonl"]


def test_after_a_fence_no_older_snapshot_can_be_committed(store: ManifestStore) -> None:
    first = store.fence(written_at="now")
    assert (first.sequence, first.records) == (1, {})
    store.commit(first, [record("a")], written_at="now")
    fenced = store.fence(written_at="now")
    assert list(fenced.records) == ["a"]
    with pytest.raises(LakeBusyError, match="another writer"):
        store.commit(first, [record("b")], written_at="now")
    store.commit(fenced, [record("c")], written_at="now")
    assert list(store.read().records) == ["a", "c"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-5], "cut off"),
        (lambda raw: b"\x00\xff garbage\n", "no header"),
        (lambda raw: b"[]\n", "no header"),
        (lambda raw: rewritten(raw, format="neptune_assets.manifest/99"), "manifest/99"),
        (lambda raw: raw.replace(FORMAT.encode(), b"neptune_assets.manifest/3"), "its header is not as it was written"),
        (lambda raw: raw.replace(b'"state"', b'"stale"'), "0 of its records are as they were written, 1 lines are not"),
        (lambda raw: b"".join(raw.splitlines(keepends=True)[:-1]), "is damaged"),
        (lambda raw: rewritten(raw, project_id="ws/q"), "is of 'ws/q'"),
        (lambda raw: rewritten(raw, seq=7), "number 7"),
    ],
)
def test_damage_is_named_with_a_next_step(store: ManifestStore, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    store.commit(Manifest("ws/p"), [record("a")], written_at="now")
    (path,) = paths(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LakeError, match=message) as error:
        store.read()
    assert error.value.hint


def test_a_missing_delta_is_damage(store: ManifestStore, tmp_path: Path) -> None:
    manifest = Manifest("ws/p")
    for number in range(3):
        store.commit(manifest, [record(f"r{number}")], written_at="now")
    paths(tmp_path)[1].unlink()
    with pytest.raises(LakeError, match="missing between 1 and 3"):
        store.read()


def test_files_are_plain_json_without_nan(store: ManifestStore, tmp_path: Path) -> None:
    store.commit(Manifest("ws/p"), [record("ü\0")], written_at="now")
    header, line, last = [json.loads(text) for text in paths(tmp_path)[0].read_text("ascii").splitlines()]
    assert list(last) == ["sha256"]
    assert len(header.pop("sum")) == len(line.pop("sum")) == 16
    assert len(header.pop("token")) == 32
    assert header == {
        "format": FORMAT,
        "seq": 1,
        "kind": "delta",
        "project_id": "ws/p",
        "scope": "runs",
        "written_at": "now",
    }
    assert line["run_id"] == "ü\0"
    with pytest.raises(ValueError, match="JSON"):
        store.commit(Manifest("ws/p"), [record("x", rows={"a": float("nan")})], written_at="now")


def test_every_flipped_bit_of_a_manifest_is_found_and_the_other_records_can_be_saved(
    store: ManifestStore, tmp_path: Path
) -> None:
    records = [record("a", parts=(PartRecord("p", 1, 2, "ff"),)), record("b")]
    store.commit(Manifest("ws/p"), records, written_at="now")
    (path,) = paths(tmp_path)
    raw = path.read_bytes()
    lines = [len(line) for line in raw.splitlines(keepends=True)]
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LakeError):
            parse_manifest(bytes(damaged), "x")
        if bit // 8 >= len(raw) - lines[-1] - 1:
            continue
        header, saved, lost = salvage_manifest(bytes(damaged))
        # Two, if it is the end of a line.
        assert 1 <= (header is None) + len(records) - len(saved) <= 2
        assert lost
        assert all(item in records for item in saved)


def test_manifests_written_before_there_were_checksums_are_read(store: ManifestStore, tmp_path: Path) -> None:
    store.commit(Manifest("ws/p"), [record("a", parts=(PartRecord("p", 1, 2, "ff"),))], written_at="now")
    forget_hashes(tmp_path)
    read = store.read()
    assert read is not None
    assert read.records == {"a": record("a", parts=(PartRecord("p", 1, 2),))}
