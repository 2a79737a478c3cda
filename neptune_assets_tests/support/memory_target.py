"""A target in memory, and small lakes for it: what the loop of a load is tested with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from neptune_assets.lake.manifest import RunRecord
from neptune_assets.lake.reader import LakeProject, LakeRun
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.profile import ValueCounts
from neptune_assets.targets.protocol import Plan, Receipt, TargetRun, UnsupportedValues, Verdict
from neptune_assets.testing.lakes import make_lake, metric

PROJECT = "ws/p"


class Memory:
    """A target that keeps digests in a dictionary: the loop is tested here, real targets have their own suite."""

    name = "memory"

    def __init__(self, store: dict[str, str], trouble: Callable[[str, str], None] = lambda *_: None) -> None:
        self.store = store
        self.trouble = trouble

    def check(self) -> None:
        self.trouble("check", "")

    def plan(self, run: LakeRun) -> Plan:
        return Plan(run.run_id)

    def is_new(self) -> bool:
        return False

    def unsupported_values(self, values: ValueCounts, plan: Plan) -> list[UnsupportedValues]:
        return []

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        self.trouble("find", run_id)
        digest = self.store.get(run_id)
        return TargetRun(project_id, run_id, f"id-{run_id}", digest) if digest else None

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        self.trouble("replace", run.run_id)
        self.store[run.run_id] = run.record.digest
        rows = dict(run.record.rows)
        if run.run_id == "unbalanced":
            return Receipt(PROJECT, run.run_id, "x", run.record.digest, rows, {}, {})
        return Receipt(PROJECT, run.run_id, f"id-{run.run_id}", run.record.digest, rows, rows, {}, notes=["n"])

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        self.trouble("verify", run.run_id)
        return Verdict(run.run_id, ("something is gone",) if run.run_id == "torn" else ())

    def remove(self, project_id: str, run_id: str) -> None:
        self.store.pop(run_id, None)

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        for run_id, digest in self.store.items():
            yield TargetRun(project_id, run_id, f"id-{run_id}", digest)

    def close(self) -> None:
        return


def project(tmp_path: Path, *run_ids: str) -> LakeProject:
    return make_lake(tmp_path, {PROJECT: {run_id: metric("m", [1.0]) for run_id in run_ids}}).project(PROJECT)


def ledger(tmp_path: Path) -> Ledger:
    return Ledger(LakeSettings(root=str(tmp_path)), "memory", PROJECT)


def record(run_id: str, parent: str | None = None) -> RunRecord:
    return RunRecord(run_id, "complete", "d", "f", "g", "2024-01-01T00:00:00+00:00", parent=parent)
