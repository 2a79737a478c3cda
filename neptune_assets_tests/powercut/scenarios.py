"""What is done while the power may go, and what a reader must find afterwards. Each is done as its user does it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.errors import UnknownProjectError
from neptune_assets.lake.integrity import difference
from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.parts import WriteLimits
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import SCHEMA
from neptune_assets.settings import LakeSettings, SummarySettings
from neptune_assets.summary.database import write_database, write_table
from neptune_assets.summary.tables import summarize as summarize_project
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets_tests.support.lake_factory import file, file_set, files, metric, params, table_run, texts
from neptune_assets_tests.support.table_source import TableSource

P = "ws/proj"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """``prepare`` is on the disk; ``work`` is cut; ``check`` reads what is left, given what had been said by then."""

    name: str
    prepare: Callable[[Path], None]
    work: Callable[[Path, Say], None]
    check: Callable[[Path, frozenset[str]], None]
    converge: Callable[[Path], None]
    """Does the work again after the cut, and asserts that all is well then."""

    @property
    def work_name(self) -> str:
        """Where the recorded process finds the work."""
        return f"{__name__}:{self.work.__name__}"


# -- the lake


def settings(root: Path) -> LakeSettings:
    return LakeSettings(root=str(root), part_mb=1, scratch=str(root.parent / "scratch"))


def source(version: int) -> TableSource:
    def rows(version: int, lines: int) -> list[dict[str, Any]]:
        return [
            *params({"lr": 0.1, "version": version, "sys/creation_time": datetime(2025, version, 1, tzinfo=UTC)}),
            *metric("m", [float(version)] * 5),
            *texts("log", [f"{version} {number * 7919}" for number in range(lines)]),
            file("f", f"content {version}".encode(), "f.txt"),
            file("same", b"never changes"),
            file_set("set", {"a": b"1", f"only in {version}": b"2"}),
            *files("pictures", [f"{version}".encode(), b"x"]),
        ]

    if version == 0:
        return TableSource({P: {"same": table_run(P, "same", params({"lr": 0.1}))}})
    lines = {1: {"a": 40, "b": 15, "same": 3}, 2: {"a": 15, "b": 40, "same": 3, "c": 2}}[version]
    runs = {name: table_run(P, name, rows(1 if name == "same" else version, count)) for name, count in lines.items()}
    return TableSource({P: runs})


def write(root: Path, version: int) -> None:
    LakeWriter(settings(root), source(version)).write_project(P)


def content(root: Path) -> dict[str, Any]:
    """Return what the lake holds: rows with the bytes of files in place of their paths. Nothing half is accepted."""
    found: dict[str, Any] = {}
    try:
        project = Lake(settings(root)).project(P)
    except UnknownProjectError:
        return {}
    for run in project.runs():
        values = []
        for row in pa.Table.from_batches(run.batches(), SCHEMA).to_pylist():
            value: Any = [row[name] for name in row if name.endswith("_value") and name != "file_value"]
            if row["file_value"] is not None:
                value = []
                for item in run.file_records(row["attribute_path"]):
                    with run.open_file(item.path) as stream:
                        value.append((item.member, item.step, stream.read()))
                value.sort(key=repr)
            values.append((row["attribute_path"], row["step"], value))
        assert run.record.complete
        assert run.content_digest() == run.record.digest
        found[run.run_id] = values
    return found


_expected: dict[int, dict[str, Any]] = {}


def expected(version: int) -> dict[str, Any]:
    """What the lake holds of a version, written without a cut."""
    if version not in _expected:
        with TemporaryDirectory() as place:
            write(Path(place) / "lake", version)
            _expected[version] = content(Path(place) / "lake")
    return _expected[version]


def _old_or_new(root: Path, labels: frozenset[str], old: int | None, new: int) -> None:
    found = content(root)
    before = {} if old is None else expected(old)
    after = expected(new)
    for name, values in found.items():
        assert values == before.get(name) or values == after.get(name), f"run {name} is neither the old nor the new one"
    assert before.keys() <= found.keys(), f"lost: {before.keys() - found.keys()}"
    if "done" in labels:
        assert found == after, "what was said to be done is not there"
    check_hashes(root / "statistics" / safe_name(P))
    if "done" in labels and "again" not in labels:
        statistics = root / "statistics" / safe_name(P)
        for name in ("series", "params"):
            runs = set(pq.read_table(statistics / f"{name}.parquet", columns=["run_id"])["run_id"].to_pylist())
            assert runs == after.keys(), "statistics are lost"


def check_hashes(directory: Path) -> None:
    """Assert that the hash beside each derived file is that of the old one or of the new one: nothing looks damaged."""
    for path in directory.rglob("*.parquet"):
        assert difference(str(path)) is None, f"{path.name} looks damaged"


def nothing(root: Path) -> None:
    """Begin without a lake."""


def first(root: Path, say: Say) -> None:
    write(root, 1)


def first_after_a_kill(root: Path, say: Say) -> None:
    # A process before made these and was killed before it synced anything.
    root.mkdir()
    write(root, 1)


def version_0(root: Path) -> None:
    write(root, 0)
    for name in ("statistics", "files"):
        shutil.rmtree(root / name, ignore_errors=True)


def after_killed_ones(root: Path, say: Say) -> None:
    # Each was made by a process that was killed before it synced its name.
    (root / "files").mkdir()
    (root / "statistics").mkdir()
    (root / "data" / safe_name(P) / ".staging").mkdir()
    write(root, 1)


def check_after_killed_ones(root: Path, labels: frozenset[str]) -> None:
    _old_or_new(root, labels, 0, 1)


def version_1(root: Path) -> None:
    write(root, 1)


def version_2(root: Path) -> None:
    write(root, 2)


def replace(root: Path, say: Say) -> None:
    write(root, 2)


def refresh(root: Path, say: Say) -> None:
    LakeWriter(settings(root), source(2)).write_project(P, full_refresh=True)


def promote_many_parts(root: Path, say: Say) -> None:
    # Parts roll over after kilobytes instead of megabytes, so that a run of little data has several.
    limits = WriteLimits(row_group_rows=10, part_bytes=1 << 10)
    LakeWriter(settings(root), source(2), limits=limits).write_project(P)


def check_first(root: Path, labels: frozenset[str]) -> None:
    _old_or_new(root, labels, None, 1)


def check_replace(root: Path, labels: frozenset[str]) -> None:
    _old_or_new(root, labels, 1, 2)


def converge_first(root: Path) -> None:
    write(root, 1)
    _old_or_new(root, frozenset({"done", "again"}), None, 1)


def converge_replace(root: Path) -> None:
    write(root, 2)
    _old_or_new(root, frozenset({"done", "again"}), 1, 2)


# -- the summary and its database

TABLE = "params"


def summarize(root: Path) -> None:
    lake = Lake(settings(root))
    with summarize_project(lake.project(P), SummarySettings(), settings(root)) as scanned:
        for name, reader in scanned.tables():
            write_table(reader, lake.layout.summary(name, P))
    write_database(settings(root), SummarySettings())


def summarized(root: Path) -> None:
    write(root, 1)
    summarize(root)
    write(root, 2)


def summary(root: Path, say: Say) -> None:
    summarize(root)


def first_summary(root: Path, say: Say) -> None:
    summarize(root)


def tables(root: Path) -> dict[str, pa.Table]:
    """Each table of the project's summary that is there, by its name, without what differs each time."""
    found: dict[str, pa.Table] = {}
    for path in sorted((root / "summary").glob(f"*/{safe_name(P)}.parquet")):
        table = pq.read_table(path)
        differs = [name for name in table.column_names if name == "location" or name.endswith("committed_at")]
        found[path.parent.name] = table.drop_columns(differs)
    return found


_expected_tables: dict[int, dict[str, pa.Table]] = {}


def expected_tables(version: int) -> dict[str, pa.Table]:
    """The tables of a version, written without a cut."""
    if version not in _expected_tables:
        with TemporaryDirectory() as place:
            write(Path(place) / "lake", version)
            summarize(Path(place) / "lake")
            _expected_tables[version] = tables(Path(place) / "lake")
    return _expected_tables[version]


def check_summary(root: Path, labels: frozenset[str]) -> None:
    check_hashes(root / "summary")
    found = tables(root)
    for name, table in found.items():
        assert any(table.equals(expected_tables(version)[name]) for version in (1, 2)), f"{name} is neither old nor new"
    if "done" in labels:
        assert found == expected_tables(2), "the summary that was said to be done is not there"
        assert (root / "neptune.duckdb").exists()
    if (root / "neptune.duckdb").exists():
        with duckdb.connect(str(root / "neptune.duckdb"), read_only=True) as connection:
            assert connection.execute("SELECT count(*) FROM runs").fetchone() is not None


def converge_summary(root: Path) -> None:
    summarize(root)
    check_summary(root, frozenset({"done"}))


# -- loads


def load(root: Path, open_target: Callable[[], Target], name: str) -> None:
    report = load_project(Lake(settings(root)).project(P), open_target, Ledger(settings(root), name, P))
    assert not report.failed, report.failed


def check_receipts(root: Path, name: str) -> None:
    """Assert that the ledger holds a verified receipt of every run as the lake has it."""
    entries = Ledger(settings(root), name, P).entries()
    assert entries is not None
    records = Lake(settings(root)).project(P).records()
    assert {run: entry.digest for run, entry in entries.items() if entry.verified} == {
        run: record.digest for run, record in records.items()
    }, "receipts are lost"


def mlflow(root: Path) -> Target:
    from neptune_assets.targets.mlflow.load import MlflowTarget

    return MlflowTarget(MlflowSettings(), settings(root))


def loaded_into_mlflow(root: Path) -> None:
    from neptune_assets_tests.support.mlflow_server import migrated_database

    write(root, 1)
    shutil.copy(migrated_database(), root / "mlflow.db")
    load(root, lambda: mlflow(root), "mlflow")
    write(root, 2)


def load_into_mlflow(root: Path, say: Say) -> None:
    load(root, lambda: mlflow(root), "mlflow")


def check_mlflow(root: Path, labels: frozenset[str]) -> None:
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        rows = database.execute(
            "SELECT tags.value, artifact_uri, (SELECT value FROM tags AS other WHERE other.run_uuid = runs.run_uuid"
            " AND other.key = 'neptune_assets.digest') FROM runs JOIN tags USING (run_uuid)"
            " WHERE tags.key = 'neptune.run_id'"
        ).fetchall()
    assert {run for run, _, _ in rows} >= {"a", "b", "same"}
    assert len({run for run, _, _ in rows}) == len(rows)
    for run, uri, digest in rows:
        folder = Path(uri.removeprefix("file://"))
        assert digest is not None
        listing = json.loads((folder / "neptune" / "artifacts.json").read_bytes())
        for path, fact in listing.items():
            data = (folder / path).read_bytes()
            assert (len(data), sha256(data).hexdigest()) == (fact["size"], fact["sha256"]), (
                f"{path} of {run} is damaged"
            )
    if "done" in labels:
        records = Lake(settings(root)).project(P).records()
        assert {run: digest for run, _, digest in rows} == {run: record.digest for run, record in records.items()}
        check_receipts(root, "mlflow")


def converge_mlflow(root: Path) -> None:
    load(root, lambda: mlflow(root), "mlflow")
    check_mlflow(root, frozenset({"done"}))


def wandb(root: Path) -> Target:
    from neptune_assets.targets.wandb.load import WandbTarget

    return WandbTarget(WandbSettings(), settings(root))


def lake_of_1(root: Path) -> None:
    write(root, 1)


def loaded_into_wandb(root: Path) -> None:
    write(root, 1)
    load(root, lambda: wandb(root), "wandb")
    write(root, 2)


def load_into_wandb(root: Path, say: Say) -> None:
    from neptune_assets.targets.wandb.staged_runs import Synced, read_marker, write_marker

    load(root, lambda: wandb(root), "wandb")
    say("loaded")
    # What an upload notes of a run that arrived; to upload it needs W&B's server.
    for directory in sorted((root / "wandb").glob("*/offline-run-*")):
        marker = read_marker(directory)
        assert marker is not None
        write_marker(directory, Synced.of(marker, "https://wandb.test", confirmed=True))
        say(f"synced {directory.name}")


def check_wandb(root: Path, labels: frozenset[str]) -> None:
    from neptune_assets.targets.wandb.staged_runs import read_synced
    from neptune_assets_tests.support.wandb_files import read_wandb

    target = wandb(root)
    records = Lake(settings(root)).project(P).records()
    found = {run: target.find(P, run) for run in records}
    for directory in (root / "wandb").glob("*/offline-run-*"):
        (log,) = directory.glob("*.wandb")
        read_wandb(log)
        index = json.loads((directory / "files" / "neptune_assets" / "index.json").read_bytes())
        for fact in index["files"]:
            data = (directory / "files" / fact["path"]).read_bytes()
            assert (len(data), sha256(data).hexdigest()) == (fact["size"], fact["sha256"]), f"{fact['path']} is damaged"
        assert (directory / "neptune_assets.json").exists()
    for name in (label.removeprefix("synced ") for label in labels if label.startswith("synced ")):
        (directory,) = (root / "wandb").glob(f"*/{name}")
        assert read_synced(directory) is not None, "what was uploaded is forgotten"
    if labels & {"loaded", "done"}:
        assert {run: held and held.digest for run, held in found.items()} == {
            run: record.digest for run, record in records.items()
        }
        assert json.loads((root / "wandb" / safe_name(P) / "project.json").read_text())["wandb_project"]
        check_receipts(root, "wandb")


def converge_wandb(root: Path) -> None:
    load(root, lambda: wandb(root), "wandb")
    check_wandb(root, frozenset({"done"}))


# -- the server

CHUNK = bytes(range(256)) * 1024


def answer(root: Path, say: Say) -> None:
    from neptune_assets_tests.support.ingest import Ingest, points
    from neptune_assets_tests.support.server import server_in_thread

    with server_in_thread(root, access_log=root.parent / "access.log") as served:
        say(f"token {served.token}")
        with served.client() as http:
            ingest = Ingest(http, P)
            ingest.create("r")
            say("run")
            for step in range(2):
                ingest.update("r", points(step, {"loss": float(step)}))
                say(f"points {step + 1}")
            http.put(sign(http, "small", 5), content=b"small").raise_for_status()
            say("file small")
            begun = http.post(sign(http, "big", len(CHUNK)), headers={"X-goog-resumable": "start"}).raise_for_status()
            say("begun")
            for first in (0, len(CHUNK) // 2):
                part = CHUNK[first : first + len(CHUNK) // 2]
                where = f"bytes {first}-{first + len(part) - 1}/{len(CHUNK)}"
                http.put(begun.headers["location"], content=part, headers={"Content-Range": where})
                say("file big" if first else "chunk")


def sign(http: Any, key: str, size: int) -> str:
    wanted = {"path": key, "permission": "write", "project_identifier": P, "size": size}
    signed = http.post("/api/storagebridge/v1/signedUrl", json={"files": [wanted]}).raise_for_status()
    return str(signed.json()["files"][0]["url"])


def check_server(root: Path, labels: frozenset[str]) -> None:
    from neptune_assets.server.tokens import api_key_of, load_secrets
    from neptune_assets_tests.support.ingest import stored, stored_points

    for label in labels:
        if label.startswith("token "):
            secret = load_secrets(root, None).api_key
            assert api_key_of(label.removeprefix("token ")) == secret, "tokens that were given out are no longer valid"
    if "run" in labels:
        assert stored(root).execute("SELECT run_id FROM runs").fetchall() == [("r",)], "the run is lost"
    for count in (1, 2):
        if f"points {count}" in labels:
            found = stored_points(root, "r")["loss"][:count]
            assert found == [(step * 1_000_000, float(step)) for step in range(count)], "points are lost"
    for key, data in (("small", b"small"), ("big", CHUNK)):
        if f"file {key}" in labels:
            row = stored(root).execute("SELECT sha256 FROM files WHERE key = ?", (key,)).fetchone()
            (path,) = root.glob(f"projects/*/objects/*/{row[0]}")
            assert path.read_bytes() == data, f"file {key} is damaged"
    if "begun" in labels and "file big" not in labels:
        (key_file,) = root.glob("projects/*/uploads/*/key")
        assert key_file.read_text() == "big", "the upload is lost"
    if "chunk" in labels and "file big" not in labels:
        kept = [*root.glob("projects/*/uploads/*/data"), *root.glob("projects/*/objects/*/*")]
        assert any(path.read_bytes().startswith(CHUNK[: len(CHUNK) // 2]) for path in kept), "the chunk is lost"


def converge_server(root: Path) -> None:
    from neptune_assets.server.store.projects import Store
    from neptune_assets.server.store.runs import NewRun
    from neptune_assets.server.tokens import load_secrets

    load_secrets(root, None)
    store = Store(root)
    try:
        with store.project(P, create=True).write() as writing:
            if writing.run("r2") is None:
                writing.create_run(NewRun("r2"))
    finally:
        store.close()


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("first write after a killed one", nothing, first_after_a_kill, check_first, converge_first),
        Scenario("first write, all runs in one commit", nothing, first, check_first, converge_first),
        Scenario("write after killed ones", version_0, after_killed_ones, check_after_killed_ones, converge_first),
        Scenario("replace of runs in one commit", version_1, replace, check_replace, converge_replace),
        Scenario("full refresh", version_1, refresh, check_replace, converge_replace),
        Scenario("promotion of runs of many parts", version_1, promote_many_parts, check_replace, converge_replace),
        Scenario("first summary", version_2, first_summary, check_summary, converge_summary),
        Scenario("summary over an older one", summarized, summary, check_summary, converge_summary),
        Scenario("load into MLflow, its receipts", loaded_into_mlflow, load_into_mlflow, check_mlflow, converge_mlflow),
        Scenario("first load into W&B", lake_of_1, load_into_wandb, check_wandb, converge_wandb),
        Scenario("load into W&B, its receipts", loaded_into_wandb, load_into_wandb, check_wandb, converge_wandb),
        Scenario("answers of the server", nothing, answer, check_server, converge_server),
    )
}
