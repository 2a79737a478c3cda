"""The lake as a Dagster IO manager: a project is written run by run, a handle on it is loaded.

Belongs here: Dagster's view of the lake (data version, metadata). Writing itself is
:class:`~neptune_assets.lake.writer.LakeWriter`, reading
:class:`~neptune_assets.lake.reader.Lake`; both know no Dagster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from neptune_assets.failures import clear_failures
from neptune_assets.lake.reader import Lake, LakeProject
from neptune_assets.lake.writer import LakeWriter, Progress, WriteReport
from neptune_assets.progress import ProgressLog
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import Source


@dataclass
class ProjectStream:
    """What a lake asset hands to its IO manager: where a project's runs come from, read only while they are written.

    After the output was handled, ``report`` lists what was written.
    """

    source: Source
    project_id: str
    scope: Scope = Scope.RUNS
    full_refresh: bool = False
    report: WriteReport | None = None


class LakeIOManager(dg.IOManager):
    """Stream a project into the lake, commit run by run; load a handle on it, never a whole table."""

    def __init__(
        self, settings: LakeSettings, describe: Callable[[WriteReport, LakeProject], Mapping[str, Any]] | None = None
    ) -> None:
        self._settings = settings
        self._describe = describe

    def handle_output(self, context: dg.OutputContext, obj: ProjectStream) -> None:
        """Write the runs that are new, changed or partial; the project's digest becomes the data version."""
        log = ProgressLog(context.log.info, f"{obj.project_id} {obj.scope}")

        def progress(now: Progress) -> None:
            share = now.size_done / now.size_total if now.size_total else None
            log.update(now.runs_done, now.runs_total, now.rows, share)

        with clear_failures():
            writer = LakeWriter(self._settings, obj.source, obj.scope)
            obj.report = writer.write_project(obj.project_id, full_refresh=obj.full_refresh, progress=progress)
            if self._describe is not None:
                # Metadata must be there before the output counts as handled: the materialization event carries it.
                project = Lake(self._settings).project(obj.project_id, obj.scope)
                context.add_output_metadata(dict(self._describe(obj.report, project)))
        version = dg.DataVersion(obj.report.digest)
        context.step_context.set_data_version(context.asset_key, version)

    def load_input(self, context: dg.InputContext) -> LakeProject:
        """Open the partition's project for reading; data is read only when asked for."""
        scope = Scope(context.asset_key.path[-1])
        with clear_failures():
            return Lake(self._settings).project(context.partition_key, scope)
