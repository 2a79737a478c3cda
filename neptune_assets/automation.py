"""When things run by themselves: on changed data, on a schedule, on runs that are new or grew.

Downstream assets run when the *content* of what they read changed (its data version), not at every tick or
rematerialization: a nightly run that finds nothing new loads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.settings import AutomationSettings


def on_changed_data() -> dg.AutomationCondition[Any]:
    """Run once after an upstream's data version changed, when nothing upstream is missing or still running."""
    changed = dg.AutomationCondition.any_deps_match(
        dg.AutomationCondition.data_version_changed() | dg.AutomationCondition.newly_missing()
    )
    return (
        (changed | dg.AutomationCondition.missing())
        .since(dg.AutomationCondition.newly_requested() | dg.AutomationCondition.newly_updated())
        .with_label("data changed since last run")
        & ~dg.AutomationCondition.any_deps_missing()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    ).with_label("on changed data")


def project_schedule(
    name: str,
    job: dg.JobDefinition | dg.UnresolvedAssetJobDefinition,
    keys: Sequence[str],
    cron: str,
    settings: AutomationSettings,
    description: str,
) -> dg.ScheduleDefinition:
    """Build a schedule that runs a job for every project; runs queue behind the instance's limits."""

    def requests(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        if not keys:
            yield dg.SkipReason("No projects known yet: run `dg utils refresh-defs-state`.")
        for key in keys:
            yield dg.RunRequest(partition_key=key, run_key=f"{context.scheduled_execution_time.isoformat()} {key}")

    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=cron,
        execution_timezone=settings.time_zone,
        execution_fn=requests,
        default_status=dg.DefaultScheduleStatus.RUNNING if settings.enabled else dg.DefaultScheduleStatus.STOPPED,
        description=description,
    )


def growth_sensor(
    name: str,
    job: dg.JobDefinition | dg.UnresolvedAssetJobDefinition,
    keys: Sequence[str],
    settings: AutomationSettings,
    watch: Callable[[], Mapping[str, str]],
) -> dg.SensorDefinition:
    """Build the sensor that runs the job for projects whose source grew; the cursor holds what was seen last."""

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            now = dict(watch())
        except NeptuneAssetsError as error:
            return dg.SkipReason(str(error))
        seen: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
        changed = [key for key in sorted(now) if seen.get(key) != now[key]]
        unknown = [key for key in changed if key not in keys]
        if unknown:
            context.log.warning(
                "New projects %s have no partition: run `dg utils refresh-defs-state`, reload the code location.",
                ", ".join(unknown),
            )
        if not changed:
            return dg.SkipReason(f"Nothing new in {len(now)} projects.")
        return dg.SensorResult(
            run_requests=[
                # The mark in the run key keeps a restarted daemon from asking for the same state twice.
                dg.RunRequest(partition_key=key, run_key=f"{key}:{now[key]}")
                for key in changed
                if key in keys
            ],
            # Unknown projects stay out of the cursor, so that they are asked for once they have a partition.
            cursor=json.dumps({key: mark for key, mark in now.items() if key in keys}, sort_keys=True),
        )

    return dg.SensorDefinition(
        name=name,
        job=job,
        evaluation_fn=evaluate,
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if settings.enabled else dg.DefaultSensorStatus.STOPPED,
        description="Look for runs that are new or grew in the source, and materialize their projects.",
    )
