"""The file format: what is written is read back, by us and by a decoder that is not ours."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from neptune_assets.errors import TargetError
from neptune_assets.targets.wandb.codec import BLOCK, LogWriter, read_log
from neptune_assets_tests.support.wandb_files import payloads


@pytest.mark.parametrize("near", [0, BLOCK, 2 * BLOCK])
def test_records_of_every_length_around_a_block(tmp_path: Path, near: int) -> None:
    for number, delta in enumerate(range(-30, 31)):
        size = max(near + delta, 0)
        records = [b"a" * size, b"", b"b" * size, b"c" * 5]
        path = tmp_path / f"{number}.wandb"
        with LogWriter(path) as log:
            for record in records:
                log.append(record)
        assert log.size == path.stat().st_size
        assert list(read_log(path)) == records
        assert payloads(path.read_bytes()) == records


def test_many_records(tmp_path: Path) -> None:
    source = random.Random(5)
    records = [source.randbytes(source.choice([3, 100, 9_000, 100_000])) for _ in range(300)]
    with LogWriter(tmp_path / "x.wandb") as log:
        for record in records:
            log.append(record)
    assert list(read_log(tmp_path / "x.wandb")) == records
    assert payloads((tmp_path / "x.wandb").read_bytes()) == records


def test_any_flipped_or_missing_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.wandb"
    with LogWriter(path) as log:
        for number in range(40):
            log.append(bytes([number]) * 1_500)
    whole = path.read_bytes()
    source = random.Random(1)
    for position in source.sample(range(len(whole)), 200):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(TargetError):
            list(read_log(path))
    for length in source.sample(range(len(whole)), 50):
        path.write_bytes(whole[:length])
        try:
            found = list(read_log(path))
        except TargetError:
            continue
        assert len(found) < 40


def test_an_existing_file_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "x.wandb").write_bytes(b"")
    with pytest.raises(FileExistsError):
        LogWriter(tmp_path / "x.wandb")
