"""What both backends share: runs that MLflow holds, a run on its way there, its receipt, and reading it back.

What must be there is computed anew from the lake, not taken from what the load reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any, Final

from neptune_assets.errors import TargetError
from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import AttributeType
from neptune_assets.targets.mlflow import artifacts, mapping
from neptune_assets.targets.mlflow.artifacts import MANIFEST_FILE, Artifacts
from neptune_assets.targets.mlflow.mapping import MlflowPlan
from neptune_assets.targets.mlflow.points import Latest, Points, PointStream, SeriesSum, Sums
from neptune_assets.targets.protocol import Receipt, RowCounts


@dataclass(frozen=True, slots=True)
class ExistingRun:
    """A run that a load of ours left in MLflow, finished or not."""

    uuid: str
    key: str
    run_id: str
    digest: str | None
    mapping: str | None
    parent_key: str | None
    artifact_uri: str

    @classmethod
    def from_tags(cls, uuid: str, artifact_uri: str, tags: Mapping[str, str]) -> ExistingRun:
        """Build one from the run's tags."""
        return cls(
            uuid,
            tags.get(mapping.KEY, ""),
            tags.get(mapping.RUN_ID, ""),
            tags.get(mapping.DIGEST),
            tags.get(mapping.MAPPING),
            tags.get(mapping.PARENT_KEY),
            artifact_uri,
        )


class ExistingRuns:
    """What MLflow holds of one project at a time; a load of a project has it for itself."""

    def __init__(self, runs_of: Callable[[str], list[ExistingRun]]) -> None:
        self._runs_of = runs_of
        self._project: str | None = None
        self._runs: dict[str, list[ExistingRun]] = {}
        self._forks: dict[str, set[str]] = {}
        """Key of a parent -> keys of runs that are or were its forks."""
        self._lock = Lock()

    def ask(self, project_id: str, *, again: bool = False) -> None:
        """Ask MLflow for the runs of the project, unless it was asked already."""
        with self._lock:
            if project_id == self._project and not again:
                return
            found = self._runs_of(project_id)
            self._runs, self._forks = {}, {}
            for run in found:
                self._runs.setdefault(run.key, []).append(run)
                self._remember_fork(run)
            self._project = project_id

    def of(self, key: str) -> list[ExistingRun]:
        """Return what MLflow holds under the key of a run, finished or not."""
        return self._runs.get(key, [])

    def all_keys(self) -> list[str]:
        """Return the keys of all runs, sorted."""
        with self._lock:
            return sorted(self._runs)

    def put(self, key: str, runs: Iterable[ExistingRun]) -> None:
        """Say what MLflow holds now under the key of a run."""
        with self._lock:
            self._runs[key] = [*runs]
            for run in self._runs[key]:
                self._remember_fork(run)

    def forks_of(self, key: str) -> list[str]:
        """Return the MLflow ids of runs that say they are forks of this one."""
        with self._lock:
            forks = sorted(self._forks.get(key, set()) - {key})
            return [run.uuid for fork in forks for run in self._runs.get(fork, ()) if run.parent_key == key]

    def _remember_fork(self, run: ExistingRun) -> None:
        if run.parent_key is not None:
            self._forks.setdefault(run.parent_key, set()).add(run.key)


_APART: Final = {
    "infinite": "infinite points cannot be metrics in MLflow",
    "step": "points have a step that the multiplier does not make a whole 64-bit number",
    "time": "points are dated before 1970, which MLflow refuses",
    "negative_zero": "points are -0.0, which MLflow stores as 0.0",
}


class Experiments:
    """Experiments by name, each looked for once and created if it is missing; shared by the threads of a load.

    ``find`` returns (id, artifact location, lifecycle stage) or None; ``create`` makes one that keeps artifacts at a
    location, or where MLflow chooses, and raises nothing if another load made it at the same moment.
    """

    def __init__(
        self,
        artifact_root: str | None,
        find: Callable[[str], tuple[str, str, str] | None],
        create: Callable[[str, str | None], None],
    ) -> None:
        self._root = artifact_root
        self._find, self._create = find, create
        self._known: dict[str, tuple[str, str]] = {}
        self._lock = Lock()

    def get(self, name: str) -> tuple[str, str]:
        """Return (id, artifact location). Raises TargetError if the experiment is deleted."""
        with self._lock:
            if name not in self._known:
                found = self._find(name)
                if found is None:
                    self._create(name, f"{self._root.rstrip('/')}/{safe_name(name)}" if self._root else None)
                    found = self._find(name)
                if found is None or found[2] != "active":
                    raise TargetError(
                        f"MLflow experiment {name!r} is deleted.",
                        hint=f"Restore it (`mlflow experiments restore -x {found and found[0]}`) or set "
                        "experiment_prefix.",
                    )
                self._known[name] = found[:2]
            return self._known[name]


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be loaded."""

    run: LakeRun
    plan: MlflowPlan
    tags: Mapping[str, str]
    """In the order they are written, the digest last."""
    experiment_id: str
    location: str
    """Where the experiment keeps artifacts."""
    old: list[ExistingRun] = field(default_factory=list)
    """What MLflow holds of the run, finished or not."""
    children: list[str] = field(default_factory=list)
    """MLflow ids of forks that were loaded before this run."""

    @property
    def key(self) -> str:
        """The hash that the run is found by."""
        return mapping.external_key(self.run.project_id, self.run.run_id)

    def stream(self) -> PointStream:
        """Return the points of the run as MLflow holds them."""
        return PointStream(self.run, self.plan.metric_keys, self.plan.step_multiplier, self.plan.start)


@dataclass(frozen=True, slots=True)
class Content:
    """What MLflow holds of one run, read back. ``latest`` is None where MLflow does not tell it."""

    info: Mapping[str, Any]
    """Columns of the run: name, status, start_time, end_time, lifecycle_stage, artifact_uri."""
    points: Mapping[str, SeriesSum]
    latest: Mapping[str, tuple[int, int, float, bool]] | None
    params: Mapping[str, str]
    tags: Mapping[str, str]


class Accounts:
    """What became of the rows of one run while it was written."""

    def __init__(self, job: Job, store: Artifacts) -> None:
        self._job = job
        self._store = store
        self.counts = RowCounts(notes=[*job.plan.notes])
        self._checks: dict[str, str] = {}

    def settle(self, stream: PointStream) -> None:
        """Write what the points left over and the list of artifacts, when everything else has been written."""
        plan, counts = self._job.plan, self.counts
        artifacts.write_sidecar(self._store, stream.sidecar)
        self._checks = {"artifacts": artifacts.write_manifest(self._store), "points": str(stream.logged)}
        if stream.rows:
            counts.take(AttributeType.FLOAT_SERIES, written=stream.logged, mapped=stream.rows - stream.logged)
        long = [kind for _, kind in plan.long_params]
        for kind, rows in plan.rows.items():
            if mapping.is_written(kind):
                counts.take(kind, written=rows - long.count(kind) - plan.nulls.get(kind, 0), mapped=long.count(kind))
            else:
                counts.take(kind, mapped=rows - plan.nulls.get(kind, 0))
            if plan.nulls.get(kind):
                counts.take(kind, dropped=plan.nulls[kind], reason="the source had no value")
        counts.notes += [
            f"{count:,} {_APART[reason]}; they are exact in {artifacts.SIDECAR_FILE}"
            for reason, count in sorted(stream.apart.items())
        ]
        if stream.filled:
            counts.notes.append(f"{stream.filled:,} points had no time and got the run's start time")

    def receipt(self, uuid: str) -> Receipt:
        """Return the receipt of the run, which MLflow knows as ``uuid``."""
        size = sum(size for size, _ in self._store.written.values())
        return self.counts.receipt(self._job.run, uuid, bytes_written=size, checks=self._checks)


MAX_DIFFERENCES = 100


def expected_points(
    run: LakeRun, plan: MlflowPlan
) -> tuple[dict[str, SeriesSum], dict[str, tuple[int, int, float, bool]]]:
    """Return the sums and the latest point that every metric must have."""
    sums, latest = Sums(), Latest()
    for points in PointStream(run, plan.metric_keys, plan.step_multiplier, plan.start):
        sums.add(points)
        latest.add(points)
    return sums.result(), {key: (step, time, value, nan) for key, step, time, value, nan in latest.rows()}


def sum_points(portions: Iterable[Points]) -> dict[str, SeriesSum]:
    """Return the sums of what MLflow holds."""
    sums = Sums()
    for points in portions:
        sums.add(points)
    return sums.result()


def compare_points(expected: Mapping[str, SeriesSum], held: Mapping[str, SeriesSum]) -> list[str]:
    """Name every metric that is not as it must be, and what differs first."""
    differences = []
    for key in sorted({*expected, *held}):
        want, have = expected.get(key), held.get(key)
        if want == have:
            continue
        if want is None:
            differences.append(f"metric {key!r} is not in the lake")
        elif have is None:
            differences.append(f"metric {key!r} is missing ({want.points:,} points)")
        else:
            name = next(name for name, value in asdict(want).items() if value != getattr(have, name))
            differences.append(f"metric {key!r}: {name} is {getattr(have, name)} instead of {getattr(want, name)}")
    return differences


def compare_texts(what: str, expected: Mapping[str, object], held: Mapping[str, object], *, subset: bool) -> list[str]:
    """Name every key whose value differs; ``subset`` allows more to be held than expected."""
    differences = []
    for key in sorted({*expected} if subset else {*expected, *held}):
        if key not in held:
            differences.append(f"{what} {key!r} is missing")
        elif key not in expected:
            differences.append(f"{what} {key!r} is not in the lake")
        elif held[key] != expected[key]:
            differences.append(f"{what} {key!r} is {str(held[key])[:100]!r} instead of {str(expected[key])[:100]!r}")
    return differences


def compare_artifacts(store: Artifacts, receipt: Receipt, *, content: bool) -> list[str]:
    """Compare what the artifact store holds with the manifest that the load wrote, and that with the receipt.

    ``content`` False leaves it at names and sizes, and reads nothing but the manifest.
    """
    sizes = store.sizes()
    if MANIFEST_FILE not in sizes:
        return [f"artifact {MANIFEST_FILE!r} is missing"]
    data = store.read(MANIFEST_FILE)
    # A receipt that was lost with the ledger checks nothing; the list itself still does.
    if store.digest(data) != receipt.checks.get("artifacts", store.digest(data)):
        return [f"artifact {MANIFEST_FILE!r} is not the one that was written"]
    differences = []
    manifest = json.loads(data)
    for path, entry in manifest.items():
        if path not in sizes:
            differences.append(f"artifact {path!r} is missing")
        elif sizes[path] != entry["size"]:
            differences.append(f"artifact {path!r} has {sizes[path]:,} bytes instead of {entry['size']:,}")
        elif content and store.sha256(path) != entry["sha256"]:
            differences.append(f"artifact {path!r} has other content than was written")
    differences += [f"artifact {path!r} was not written" for path in sorted({*sizes} - {*manifest, MANIFEST_FILE})]
    return differences
