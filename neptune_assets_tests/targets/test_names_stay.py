"""Runs that were loaded before keep their names: what hostile names become in MLflow and W&B is the same as ever.

Names of runs, experiments and projects, keys of params, metrics, tags and config, artifact paths and registry entries
are read by readers that are not ours (sqlite3, wandb's protobuf classes, names of files) and compared with
`golden/names.json`. Run this module to write the file anew, and only when a change of names is wanted.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from neptune_assets.lake.reader import Lake
from neptune_assets.migration_settings import Settings
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings, NameRules
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.registry import loads
from neptune_assets.targets.rules import Rules
from neptune_assets.testing.lakes import file, file_set, files, histograms, make_lake, metric, param, texts
from neptune_assets.testing.places import born
from neptune_assets_tests.support.mlflow_server import mlflow_server
from neptune_assets_tests.support.model_rows import MODEL, version
from neptune_assets_tests.support.wandb_files import read_wandb
from neptune_assets_tests.targets.mlflow.place import MlflowPlace

GOLDEN = Path(__file__).parent / "golden" / "names.json"
PROJECTS = ("ws/proj", "ws/Proj", "w s/ü ? 'p'")
NAMINGS = ("default", "neptune-exporter")
PATHS = (
    *("a//b", "/lead", "trail/", "..", "../up", "a/../b", ".", "./c", "a b", " a", "a ", "a.", "a'b", 'a"b', "a%sb"),
    *("a:b", "a\\b", "a_b", "a?b", "a*b", "a/b", "ü/ß", "日本", "😀", "e\u0301", "\u00e9", "nul\x00", "line\nbreak"),
    *("Loss", "loss", "LOSS", "1st", "_step", "_timestamp", "_wandb", "neptune_step", "CON", "x.tar.gz", "x", "x/y"),
    *("k" * 250, "k" * 251, "k" * 250 + "l", "m" * 513, "m" * 512 + "n", "d/" * 220 + "z", "ü" * 130, "é" * 127 + "x"),
    *("monitoring/cpu", "monitoring/1/cpu", "source_code/diff", "f.PNG", "f.png", "params/x", "v" * 126 + ".jpeg"),
)


def _identity(name: str) -> list[dict[str, Any]]:
    """What Neptune says of a run, with texts that no target takes as they are."""
    return [
        param("sys/name", name),
        param("sys/custom_run_id", f"{name}-custom"),
        param("sys/id", "PRO-1"),
        param("sys/owner", "Ada\x00 Lovelace"),
        param("sys/description", "d" * 6_000),
        param("sys/tags", ["x", "X", "a b", "a/b", "t" * 300, "😀"]),
        param("sys/group_tags", ["g", "G"]),
    ]


def _forked(parent: str) -> list[dict[str, Any]]:
    """Rows of a fork."""
    return [
        param("sys/forking/parent", parent),
        param("sys/forking/step", 1.5),
        *metric("loss", [1.0, 0.5], steps=["2", "3.25"]),
    ]


def _runs() -> dict[str, list[dict[str, Any]]]:
    """One run for each kind of attribute with every path, one with all of them, and hostile ids."""
    kinds: dict[str, Callable[[str], list[dict[str, Any]]]] = {
        "params": lambda path: [param(path, f"value of {path}")],
        "metrics": lambda path: metric(path, [1.0, 2.0], steps=["0", "0.5"]),
        "texts": lambda path: texts(path, ["first", "second"]),
        "histograms": lambda path: histograms(path, [([0.0, 1.0], [2.0])]),
        "files": lambda path: [file(path, path.encode(), "content.txt")],
        "file_series": lambda path: files(path, [b"0", b"1"], steps=["0", "1.5"]),
        "file_sets": lambda path: [file_set(path, {"in/A.txt": b"A", "in/a.txt": b"a", "in": b"i", "ü?": b"u"})],
    }
    runs = {f"RUN-{kind}": [row for path in PATHS for row in make(path)] for kind, make in kinds.items()}
    mixed = {path: list(kinds.values())[number % len(kinds)] for number, path in enumerate(PATHS)}
    runs["RUN-mixed"] = [row for path, make in mixed.items() for row in make(path)] + _identity("named")
    runs["RUN-long"] = [param(path, "w" * 7_000) for path in ("long", "Long", "a/b", "a//b", "nul\x00")]
    runs["loss"] = metric("loss", [3.0, 2.0], steps=[0, 1])
    runs["fork's"] = _forked("loss")
    runs["fork of fork"] = _forked("fork's")
    runs["orphan"] = _forked("nobody")
    runs = {run_id: born(*rows) for run_id, rows in runs.items()}
    for run_id in ("..", "r" * 300, "r" * 299 + "s", "ü ' % \\ /", "😀", "nul\x00", "R", "r"):
        runs[run_id] = [param("lr", 0.1), *metric("m", [1.0])]  # born when its first point was
    return runs


def _models() -> tuple[dict[str, Any], dict[str, Any]]:
    models = {"PRO-CLS": MODEL, "PRO-Cls": MODEL, "M " + "o" * 300: [*MODEL, param("a//b", 1), param("A//b", 2)]}
    versions = {f"PRO-CLS-{n}": version(n, stage) for n, stage in ((1, "archived"), (2, "production"), (10, "none"))}
    versions["PRO-CLS-2"] += [param("run/id", "RUN-mixed"), file("weights", b"w", "w.pt"), param("a//b", 1)]
    return models, versions


def _load(root: Path, naming: str, target: str, options: dict[str, Any] | None = None) -> None:
    """Load runs of all projects, and models and versions of the first, into one target."""
    lake = LakeSettings(root=str(root / "lake"))
    rules = {"rename": [{"prefix": "monitoring/1/", "to": "monitoring/"}], "drop": ["^source_code/"]}
    targets = {target: {"naming": naming, **(options or {})}, "names": rules}
    settings = Settings.model_validate(
        {"source": {"export": {"data": str(root)}}, "lake": lake.model_dump(), "targets": targets}
    )
    models, versions = _models()
    make_lake(lake.root, {PROJECTS[0]: _runs(), **{name: {"loss": metric("loss", [1.0])} for name in PROJECTS[1:]}})
    make_lake(lake.root, {PROJECTS[0]: models}, scope=Scope.MODELS)
    make_lake(lake.root, {PROJECTS[0]: versions}, scope=Scope.MODEL_VERSIONS)
    for scope, opener in [pair for load in loads(settings) for pair in load.openers.items()]:
        for project_id in PROJECTS if scope is Scope.RUNS else PROJECTS[:1]:
            project = Lake(lake).project(project_id, scope)
            ledger = Ledger(lake, f"{target}_{scope.value}", project_id)
            report = load_project(project, opener, ledger, rules=Rules(NameRules.model_validate(rules)))
            assert not report.failed, report.failed
            assert report.loaded


def _sha256(value: Any) -> str:
    return hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()[:16]


def _content(path: Path) -> str:
    """A hash of a file whose bytes are content and no encoding."""
    if path.name == "neptune_assets.json":
        marker = json.loads(path.read_bytes())
        marker["receipt"].pop("bytes_written")  # grows with the name of this directory
        return _sha256(sorted(marker.items()))
    return "" if path.suffix in {".wandb", ".parquet"} else _sha256(path.read_bytes())


def _below(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path


def mlflow_names(database: Path, artifacts: Path) -> dict[str, Any]:
    """Everything by which somebody finds what was loaded into MLflow."""
    own = {"mlflow.runName", "mlflow.user", "neptune_assets.attempt", "mlflow.parentRunId", "neptune.run"}
    with closing(sqlite3.connect(database)) as store:

        def rows(sql: str) -> list[list[Any]]:
            return [list(row) for row in store.execute(sql)]

        runs = {
            uuid: f"{project} | {run_id}"
            for uuid, project, run_id in rows(
                "SELECT r.run_uuid, p.value, i.value FROM runs r JOIN tags p ON p.run_uuid = r.run_uuid "
                "AND p.key = 'neptune.project' JOIN tags i ON i.run_uuid = r.run_uuid AND i.key = 'neptune.run_id' "
                "WHERE r.lifecycle_stage = 'active'"
            )
        }
        found: dict[str, Any] = {name: {} for name in runs.values()}
        for uuid, name, user, status, start, end, experiment, uri in rows(
            "SELECT r.run_uuid, r.name, r.user_id, r.status, r.start_time, r.end_time, e.name, r.artifact_uri "
            "FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id"
        ):
            if uuid not in runs:
                continue
            folder = artifacts / uri.removeprefix("mlflow-artifacts:/").removeprefix("file://").lstrip("/")
            folder = folder if folder.exists() else Path(uri)
            files = {path: _content(place) for path, place in _below(folder) if path != "neptune/artifacts.json"}
            found[runs[uuid]] |= {
                "run": [name, user, status, start, end, experiment],
                "artifacts": files,
                "params": [],
                "tags": [],
                "metrics": [],
            }
        for uuid, key, value in rows("SELECT run_uuid, key, value FROM params ORDER BY 1, 2"):
            found[runs[uuid]]["params"].append([key, value])
        for uuid, key, value in rows("SELECT run_uuid, key, value FROM tags ORDER BY 1, 2"):
            if uuid in runs and key not in own:
                found[runs[uuid]]["tags"].append([key, value if len(value) < 100 else _sha256(value)])
            elif uuid in runs and key in {"mlflow.parentRunId", "neptune.run"}:
                found[runs[uuid]]["tags"].append([key, runs[value]])
        for uuid, key, *points in rows(
            "SELECT run_uuid, key, count(*), min(step), max(step), sum(value) FROM metrics GROUP BY 1, 2 ORDER BY 1, 2"
        ):
            found[runs[uuid]]["metrics"].append([key, *points])
        registry: dict[str, Any] = {
            name: {"description": text and _sha256(text), "tags": [], "versions": [], "aliases": []}
            for name, text in rows("SELECT name, description FROM registered_models ORDER BY 1")
        }
        for name, key, value in rows("SELECT name, key, value FROM registered_model_tags ORDER BY 1, 2"):
            registry[name]["tags"].append([key, runs.get(value, value)])
        for name, alias, number in rows("SELECT name, alias, version FROM registered_model_aliases ORDER BY 1, 2"):
            registry[name]["aliases"].append([alias, number])
        for name, number, source, run_id in rows(
            "SELECT name, version, source, run_id FROM model_versions ORDER BY 1, 2"
        ):
            assert source == f"runs:/{run_id}"
            tags = store.execute(
                "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ? ORDER BY 1", (name, number)
            )
            texts = [[key, runs.get(value, value)] for key, value in tags]
            registry[name]["versions"].append([number, runs[run_id], texts])
    return {"runs": found, "registry": registry}


def _item(artifact: Any) -> dict[str, Any]:
    """An artifact of W&B without what names a place on this disk."""
    found = MessageToDict(artifact, preserving_proto_field_name=True)
    kept = ("entity", "project", "type", "name", "run_id", "description", "tags", "aliases", "metadata", "digest")
    contents = found.get("artifact", found).get("manifest", {}).get("contents", [])
    inner = found.get("artifact", found)
    files = sorted([item["path"], item.get("digest", "")] for item in contents)
    return {key: inner[key] for key in kept if key in inner} | {"files": files}


def wandb_names(staging: Path) -> dict[str, Any]:
    """Everything by which somebody finds what was staged for W&B."""
    found: dict[str, Any] = {}
    for log in sorted(staging.rglob("*.wandb")):
        content = read_wandb(log)
        run = content.run
        config = {key: value for key, value in content.config.items() if key != "_wandb"}
        rows = [sorted(row.items(), key=lambda item: item[0]) for row in content.texts]
        found[log.parent.relative_to(staging).as_posix()] = {
            "run": [run.run_id, run.display_name, run.project, run.entity, run.run_group, run.job_type],
            "notes": run.notes if len(run.notes) < 100 else _sha256(run.notes),
            "tags": list(run.tags),
            "start": run.start_time.ToJsonString(),
            "config": {
                key: value if len(repr(value)) < 200 else _sha256(value) for key, value in sorted(config.items())
            },
            "history": sorted({key for row in content.history for key in row}),
            "rows": [len(rows), _sha256(rows)],
            "summary": sorted(content.summary),
            "metrics": sorted(content.metrics.items()),
            "system": sorted({key for _, row in content.system for key in row}),
            "files": sorted(content.files),
            "on disk": {path: _content(place) for path, place in _below(log.parent)},
            "artifacts": [_item(item) for item in content.artifacts],
            "exit": content.exit_code,
        }
    return found


def mlflow(root: Path, naming: str) -> dict[str, Any]:
    place = MlflowPlace(root)  # puts a migrated database there: MLflow's migrations take long
    _load(root, naming, "mlflow")
    return mlflow_names(place.file, root)


def served(root: Path, naming: str) -> dict[str, Any]:
    (root / "server").mkdir()
    with mlflow_server(root / "server") as server:
        _load(root, naming, "mlflow", {"tracking_uri": server.url})
        found = mlflow_names(server.database, server.artifacts)
    for run in found["runs"].values():
        del run["artifacts"]["neptune/names.json"]  # its keys are those of a server
    return found


def wandb(root: Path, naming: str) -> dict[str, Any]:
    _load(root, naming, "wandb", {"entity": "team"})
    return wandb_names(root / "lake" / "wandb")


def _plain(found: Any) -> Any:
    """JSON without long texts: a text of more than 120 characters is its beginning, its length and a hash."""
    if isinstance(found, dict):
        return {_plain(str(key)): _plain(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_plain(item) for item in found]
    if isinstance(found, str) and len(found) > 120:
        return f"{found[:40]}... {len(found)} characters {_sha256(found)}"
    return found


def _compare(found: Any, golden: Any, where: str) -> None:
    if isinstance(golden, dict) and isinstance(found, dict):
        assert sorted(found) == sorted(golden), where
        for key, wanted in golden.items():
            _compare(found[key], wanted, f"{where} > {key[:80]}")
    else:
        assert found == golden, where


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("target", ["mlflow", "wandb"])
def test_names_are_the_same_as_ever(target: str, naming: str, tmp_path: Path) -> None:
    found = {"mlflow": mlflow, "wandb": wandb}[target](tmp_path, naming)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[target][naming]
    _compare(_plain(found), golden, target)


@pytest.mark.slow
@pytest.mark.parametrize("naming", NAMINGS)
def test_names_on_a_server_are_the_same_as_ever(naming: str, tmp_path: Path) -> None:
    everything = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found, golden, of_database = (
        _plain(served(tmp_path, naming)),
        everything["served"][naming],
        everything["mlflow"][naming],
    )
    for name, run in of_database["runs"].items():
        del run["artifacts"]["neptune/names.json"]
        golden["runs"][name]["artifacts"] = run["artifacts"]
    _compare(found, golden, "server")


if __name__ == "__main__":
    everything: dict[str, Any] = {}
    for made in (mlflow, served, wandb):
        for chosen in NAMINGS:
            with tempfile.TemporaryDirectory() as folder:
                everything.setdefault(made.__name__, {})[chosen] = _plain(made(Path(folder), chosen))
    for run in (run for one in everything["served"].values() for run in one["runs"].values()):
        del run["artifacts"]  # those that a database has
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(everything, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(f"wrote {GOLDEN}\n")
