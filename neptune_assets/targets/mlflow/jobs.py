"""One run on its way into MLflow: what both ways of writing need, and the receipt that both hand back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import AttributeType
from neptune_assets.targets.mlflow import artifacts, mapping, texts
from neptune_assets.targets.mlflow.artifact_store import Artifacts
from neptune_assets.targets.mlflow.database import HeldRun
from neptune_assets.targets.mlflow.mapping import MlflowPlan
from neptune_assets.targets.mlflow.points import PointStream, SeriesSum
from neptune_assets.targets.protocol import Receipt

_APART: Final = {
    "infinite": "infinite points cannot be metrics in MLflow",
    "step": "points have a step that the multiplier does not make a whole 64-bit number",
    "time": "points are dated before 1970, which MLflow refuses",
    "negative_zero": "points are -0.0 and stand in MLflow as 0.0",
}


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
    old: list[HeldRun] = field(default_factory=list)
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
        self.counts = artifacts.Counts()
        self.notes: list[str] = list(job.plan.notes)
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
            if texts.is_written(kind):
                counts.take(kind, written=rows - long.count(kind) - plan.nulls.get(kind, 0), mapped=long.count(kind))
            else:
                counts.take(kind, mapped=rows - plan.nulls.get(kind, 0))
            if plan.nulls.get(kind):
                counts.take(kind, dropped=plan.nulls[kind], reason="the source had no value")
        self.notes += [
            f"{count:,} {_APART[reason]}; they are exact in {artifacts.SIDECAR_FILE}"
            for reason, count in sorted(stream.apart.items())
        ]
        if stream.filled:
            self.notes.append(f"{stream.filled:,} points had no time and got the run's start time")

    def receipt(self, uuid: str) -> Receipt:
        """Return the receipt of the run, which MLflow knows as ``uuid``."""
        run, counts = self._job.run, self.counts
        return Receipt(
            project_id=run.project_id,
            run_id=run.run_id,
            target_id=uuid,
            digest=run.record.digest,
            rows_in=counts.rows_in,
            written=counts.written,
            mapped=counts.mapped,
            dropped=counts.drops(),
            notes=self.notes,
            bytes_written=sum(size for size, _ in self._store.written.values()),
            checks=self._checks,
        )
