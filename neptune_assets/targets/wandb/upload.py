"""Uploading a staged run exactly once.

``wandb sync`` appends: it asks the server how many history rows the run has and sends all of the file behind them. So
what the server has already is looked up first, and only the rows it lacks are put into the file that is synced. Hashes
of the rows that were sent are kept beside the staged run; if what W&B holds is not the beginning of the run as it is
now, uploading is refused, because W&B can neither change nor remove rows.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from neptune_assets import durable
from neptune_assets.errors import TargetError, TargetUnavailableError
from neptune_assets.targets.wandb.client import WandbClient
from neptune_assets.targets.wandb.config import Marker, StagedProject, Synced, read_synced, write_marker
from neptune_assets.targets.wandb.records import protobuf
from neptune_assets.targets.wandb.transaction_log import LogWriter, read_log

ROWS: Final = "synced.npy"
Hashes = npt.NDArray[np.uint64]


def row_hashes(log: Path) -> Hashes:
    """Return a hash for each history row of a ``.wandb`` file."""
    parse, found = protobuf().Record.FromString, bytearray()
    for payload in read_log(log):
        record = parse(payload)
        if record.WhichOneof("record_type") == "history":
            body = record.history.SerializeToString(deterministic=True)
            found += hashlib.blake2b(body, digest_size=8).digest()
    return np.frombuffer(bytes(found), dtype="<u8")


def carry_over(old: Path, new: Path) -> None:
    """Take what is known of earlier uploads along when a run is staged anew."""
    synced = read_synced(old)
    if synced is not None:
        write_marker(new, synced)
        if (old / ROWS).is_file():
            shutil.copyfile(old / ROWS, new / ROWS)


@contextmanager
def upload_lock(project: StagedProject, marker: Marker) -> Iterator[int]:
    """Hold the right to upload a run; yield the descriptor that stands for it.

    A load that is killed may leave ``wandb sync`` behind. It has inherited the descriptor, so that the next load does
    not send the same rows beside it. Raises TargetUnavailableError as long as it runs.
    """
    path = project.path / f".{marker.wandb_run}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TargetUnavailableError(
                f"An upload of run {marker.run_id} that an earlier load began still goes on.",
                hint="Load again once wandb sync has ended.",
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def upload(client: WandbClient, project: StagedProject, directory: Path, marker: Marker) -> None:
    """Make W&B hold the staged run, and remember it. Raises TargetError if it cannot without doubling rows."""
    with upload_lock(project, marker) as lock:
        _upload(client, project, directory, marker, lock)


def _upload(client: WandbClient, project: StagedProject, directory: Path, marker: Marker, lock: int) -> None:
    held = client.held(marker)
    expected = Synced.of(marker, client.base_url, confirmed=True)
    log = directory / f"run-{marker.wandb_run}.wandb"
    hashes = row_hashes(log)
    if held is None or client.differences(marker):
        _refuse_other_rows(held or 0, hashes, directory, marker, client)
        _remember_rows(directory, hashes)
        write_marker(directory, Synced.of(marker, client.base_url, confirmed=False))
        if held:
            rest = _rest(project, directory, log, held)
            try:
                client.sync(rest, marker, lock)
            finally:
                shutil.rmtree(rest.parent)
        else:
            client.sync(directory, marker, lock)
    else:
        _remember_rows(directory, hashes)
    write_marker(directory, expected)


def check_rows(client: WandbClient, directory: Path, marker: Marker) -> None:
    """Raise TargetError if W&B holds rows of the run that an upload could neither change nor remove."""
    hashes = row_hashes(directory / f"run-{marker.wandb_run}.wandb")
    _refuse_other_rows(client.held(marker) or 0, hashes, directory, marker, client)


def _refuse_other_rows(held: int, hashes: Hashes, directory: Path, marker: Marker, client: WandbClient) -> None:
    if not held:
        return
    synced = read_synced(directory)
    same_place = synced is not None and synced.place == Synced.of(marker, client.base_url, confirmed=False).place
    sent = np.load(directory / ROWS, allow_pickle=False) if same_place and (directory / ROWS).is_file() else None
    if sent is not None and held <= min(len(sent), len(hashes)) and np.array_equal(sent[:held], hashes[:held]):
        return
    raise TargetError(
        f"W&B holds {held} history rows of run {marker.run_id} that are not the first ones of what it is now "
        f"({len(hashes)} rows), and W&B can neither change nor remove rows.",
        hint="Set another targets.wandb.project_prefix to upload into a new project.",
    )


def _remember_rows(directory: Path, hashes: Hashes) -> None:
    content = io.BytesIO()
    np.save(content, hashes, allow_pickle=False)
    durable.write(directory / ROWS, content.getvalue())


def _rest(project: StagedProject, directory: Path, log: Path, held: int) -> Path:
    """Return a run directory that lacks the first ``held`` history rows and shares the files of the staged one."""
    rest = project.new() / directory.name
    rest.mkdir()
    (rest / "files").symlink_to(directory / "files", target_is_directory=True)
    parse, seen = protobuf().Record.FromString, 0
    with LogWriter(rest / log.name) as writer:
        for payload in read_log(log):
            record = parse(payload)
            if record.WhichOneof("record_type") == "history":
                seen += 1
                if seen <= held:
                    continue
            writer.append(payload)
    return rest
