"""The Weights & Biases target: stage a run offline, verify it, and upload it where a key is configured."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from neptune_assets.errors import TargetError, UnknownProjectError
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.lineage import ancestors, chain
from neptune_assets.targets.profile import ValueCounts, unsupported_values
from neptune_assets.targets.protocol import Plan, Receipt, TargetRun, UnsupportedValues, Verdict
from neptune_assets.targets.rules import wanted_name
from neptune_assets.targets.wandb.client import WandbClient, carry_over, upload
from neptune_assets.targets.wandb.codec import history_fields
from neptune_assets.targets.wandb.mapping import OUTCOMES, Layout, layout, plan_of, run_key, survey
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets.targets.wandb.staged_runs import (
    Marker,
    ProjectNames,
    StagedProject,
    Synced,
    choices,
    directory_name,
    read_marker,
    read_synced,
    staging_root,
    write_marker,
)
from neptune_assets.targets.wandb.staging import Destination, RunStage, start_of
from neptune_assets.targets.wandb.verify import Content, differences

if TYPE_CHECKING:
    from neptune_assets.lake.manifest import RunRecord
    from neptune_assets.lake.reader import LakeRun


class WandbTarget:
    """W&B as a :class:`~neptune_assets.targets.protocol.Target`.

    A run is staged as a directory that ``wandb sync`` accepts and put in its place as a whole. Without an API key that
    is all; with one it is then uploaded, and the run has its digest only once W&B has confirmed it.
    """

    name = "wandb"

    @property
    def runs_at_once(self) -> int:
        """Two where nothing is uploaded: while one run is staged another is read back. Uploads go one by one."""
        return 2 if self._client is None else 1

    def __init__(self, settings: WandbSettings, lake: LakeSettings) -> None:
        self._settings, self._lake = settings, lake
        self._root = staging_root(settings, lake)
        self._client = WandbClient(settings) if settings.api_key_env is not None else None
        self._choices = choices(settings)
        self._lock = threading.Lock()
        self._names = ProjectNames(settings, lake, self._root)
        self._swept: set[str] = set()
        self._records: dict[str, dict[str, RunRecord]] = {}

    def check(self) -> None:
        """Raise TargetError if runs cannot be staged (disk, wandb's version) or the server refuses the key."""
        history_fields()
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(
                f"Runs cannot be staged in {self._root}: {error.strerror}.",
                hint="Set targets.wandb.staging to a directory that can be written.",
            ) from error
        if self._client is not None:
            self._client.check()

    def plan(self, run: LakeRun) -> Plan:
        """Say what loading the run will do. Writes nothing."""
        return plan_of(run.run_id, self._layout(run))

    def is_new(self) -> bool:
        """True if nothing was ever staged and nothing will be uploaded."""
        return self._client is None and not self._root.exists()

    def unsupported_values(self, values: ValueCounts, plan: Plan) -> Sequence[UnsupportedValues]:
        """Say which of a run's values W&B cannot hold, and what becomes of them."""
        return unsupported_values(values, OUTCOMES)

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        """Find a run by its key; its digest is None if staging or upload did not finish. Raises if there are two."""
        wandb_run = run_key(project_id, run_id)
        found = StagedProject(self._root, project_id).directories(wandb_run)
        if len(found) > 1:
            raise TargetError(
                f"Run {run_id} is staged twice: {', '.join(str(path) for path in found)}.",
                hint="Delete one of the two directories.",
            )
        return None if not found else self._target_run(project_id, run_id, found[0])

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        """Stage exactly this run, and upload it where a key is configured."""
        if plan.run_id != run.run_id:
            raise TargetError(f"The plan is for run {plan.run_id}, not {run.run_id}.", hint="Make a plan for this run.")
        directory, marker = self._staged(run)
        if directory is None or marker is None:
            directory, marker = self._stage(run, plan)
        if self._client is not None and not self._is_synced(directory, marker):
            self._upload(run, directory, marker)
        return marker.as_receipt()

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        """Read the staged run back and compare every value with the lake; ask W&B too where runs are uploaded."""
        found = StagedProject(self._root, run.project_id).directories(receipt.target_id)
        if len(found) != 1:
            return Verdict(run.run_id, (f"{len(found)} staged runs where there should be one",))
        marker = read_marker(found[0])
        if marker is None or marker.digest != receipt.digest or receipt.digest != run.record.digest:
            return Verdict(run.run_id, ("the staged run is not of the digest that was loaded",))
        said, content = self._staged_differences(run, found[0], marker)
        if content.rows != marker.history_rows:
            said.append(f"{content.rows} history rows where {marker.history_rows} were staged")
        if content.system_rows != marker.system_rows:
            said.append(f"{content.system_rows} rows of system metrics where {marker.system_rows} were staged")
        if self._client is not None and not said:
            said.extend(self._client.differences(marker))
        return Verdict(run.run_id, tuple(said))

    def remove(self, project_id: str, run_id: str) -> None:
        """Remove the staged run. Raises TargetError if it was uploaded: W&B never lets its id be used again."""
        project = StagedProject(self._root, project_id)
        for directory in project.directories(run_key(project_id, run_id)):
            if read_synced(directory) is not None:
                raise TargetError(
                    f"Run {run_id} is uploaded to W&B, which never takes a deleted run's id again.",
                    hint=f"Delete it in W&B's page if that is meant, then the directory {directory}.",
                )
            project.discard(directory)

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        """Yield every staged run of the project."""
        for directory in StagedProject(self._root, project_id).all():
            marker = read_marker(directory)
            if marker is not None and marker.project_id == project_id:
                yield self._target_run(project_id, marker.run_id, directory)

    def sweep(self, project_id: str) -> None:
        """Remove the directories that killed loads of this project staged runs in."""
        StagedProject(self._root, project_id).sweep()
        self._swept.add(project_id)

    def close(self) -> None:
        """Forget what was read of runs."""
        self._records.clear()

    # -- what stands where

    def _layout(self, run: LakeRun) -> Layout:
        """The layout of a run, made once for each state of the lake that an opened run is."""
        key = (Layout, run.project_id, self._settings.forks, str(self._choices))
        known: Layout | None = run.derived.get(key)
        if known is None:
            lineage = ancestors(run) if self._settings.forks == "stitched" else ()
            section = self._choices["system_metrics"] == "section"
            known = layout(survey(run), self._settings.naming, wanted_name(run), lineage, section=section)
            run.derived[key] = known
        return known

    def _current(self, marker: Marker | None) -> bool:
        """True if a staged run is whole and named as it would be named now."""
        return (
            marker is not None
            and marker.choices == self._choices
            and marker.entity == (self._settings.entity or "")
            and marker.wandb_project == self._names.name(marker.project_id)
            and marker.lineage == self._lineage(marker.project_id, marker.run_id)
        )

    def _lineage(self, project_id: str, run_id: str) -> dict[str, str]:
        """Return the digests of the runs whose points belong in front of this one, as the lake has them now."""
        if self._settings.forks != "stitched":
            return {}
        if project_id not in self._records:
            from neptune_assets.lake.reader import Lake

            try:
                self._records[project_id] = Lake(self._lake).project(project_id).records()
            except UnknownProjectError:  # a target outlives its lake; what is staged is then as good as it gets
                self._records[project_id] = {}
        records = self._records[project_id]
        return {ancestor: records[ancestor].digest for ancestor, _ in chain(records, run_id)}

    def _target_run(self, project_id: str, run_id: str, directory: Path) -> TargetRun:
        marker = read_marker(directory)
        whole = marker is not None and self._current(marker)
        if whole and marker is not None and self._client is not None:
            whole = self._is_synced(directory, marker)
        digest = marker.digest if whole and marker is not None else None
        return TargetRun(project_id, run_id, run_key(project_id, run_id), digest)

    def _is_synced(self, directory: Path, marker: Marker) -> bool:
        synced = read_synced(directory)
        return synced is not None and synced == self._synced(marker)

    def _synced(self, marker: Marker) -> Synced:
        assert self._client is not None  # noqa: S101 (only asked where a key is configured)
        return Synced.of(marker, self._client.base_url, confirmed=True)

    # -- writing

    def _staged(self, run: LakeRun) -> tuple[Path | None, Marker | None]:
        """Return the run as staged before, if it only has yet to be uploaded."""
        if self._client is None:
            return None, None
        found = StagedProject(self._root, run.project_id).directories(run_key(run.project_id, run.run_id))
        marker = read_marker(found[0]) if len(found) == 1 else None
        if marker is None or not self._current(marker) or marker.digest != run.record.digest:
            return None, None
        if self._is_synced(found[0], marker):
            return None, None
        return found[0], marker

    def _stage(self, run: LakeRun, plan: Plan) -> tuple[Path, Marker]:
        project = StagedProject(self._root, run.project_id)
        wandb_run = run_key(run.project_id, run.run_id)
        name = directory_name(wandb_run, self._named_after(run))
        place = self._place(run, project.path / name)
        with self._lock:
            self._names.keep(run.project_id)
            if run.project_id not in self._swept:
                self.sweep(run.project_id)
            directory = project.new()
        try:
            account = RunStage(run, self._layout(run), place, directory, self._lake).build()
            account.notes[:0] = plan.notes
            checks = {"history_rows": str(account.history_rows), "wandb_project": place.project}
            receipt = account.receipt(run, wandb_run, bytes_written=account.bytes, checks=checks)
            marker = Marker(
                project_id=run.project_id,
                run_id=run.run_id,
                digest=run.record.digest,
                wandb_run=wandb_run,
                wandb_project=place.project,
                entity=place.entity,
                choices=self._choices,
                history_rows=account.history_rows,
                system_rows=account.system_rows,
                artifacts=account.artifacts,
                version={**account.version, **self._version_facts(place)},
                lineage={
                    ancestor.run.run_id: run.project.records()[ancestor.run.run_id].digest
                    for ancestor in self._layout(run).lineage
                },
                receipt=asdict(receipt),
            )
            for earlier in project.directories(wandb_run):
                carry_over(earlier, directory)
            write_marker(directory, marker)
            return project.publish(directory, name, project.directories(wandb_run)), marker
        finally:
            if directory.exists():
                shutil.rmtree(directory)

    def _place(self, run: LakeRun, directory: Path) -> Destination:
        """Return which W&B run this becomes; ``directory`` is where it will be staged."""
        return Destination(
            entity=self._settings.entity or "",
            project=self._names.name(run.project_id),
            run=run_key(run.project_id, run.run_id),
            exporter_names=self._settings.naming == "neptune-exporter",
            artifacts_from=directory if self._settings.file_sets == "artifacts" else None,
            job_type=self._settings.job_type,
            job_type_attribute=self._settings.job_type_attribute,
        )

    def _named_after(self, run: LakeRun) -> int | None:
        """Return the moment, in milliseconds, that a staged run's directory is named after."""
        return start_of(run, {})

    def _version_facts(self, place: Destination) -> dict[str, str]:
        """Return what the marker keeps of a model version; runs are none."""
        return {}

    def _staged_differences(self, run: LakeRun, directory: Path, marker: Marker) -> tuple[list[str], Content]:
        return differences(run, self._layout(run), directory, marker.wandb_run)

    def _upload(self, run: LakeRun, directory: Path, marker: Marker) -> None:
        assert self._client is not None  # noqa: S101 (only called where a key is configured)
        said, _ = self._staged_differences(run, directory, marker)
        if said:
            raise TargetError(f"Run {run.run_id} is not staged as the lake has it: {said[0]}.", hint="Load it again.")
        self._send(run, directory, marker)

    def _send(self, run: LakeRun, directory: Path, marker: Marker) -> None:
        assert self._client is not None  # noqa: S101 (only called where a key is configured)
        upload(self._client, StagedProject(self._root, run.project_id), directory, marker)
