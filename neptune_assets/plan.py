"""Dry run from a shell: what loading would do, printed as Markdown or JSON, with nothing written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from neptune_assets.cli import USAGE, WRONG, run
from neptune_assets.errors import NeptuneAssetsError, SettingsError
from neptune_assets.lake.reader import Lake
from neptune_assets.markdown import plain
from neptune_assets.migration_settings import Settings
from neptune_assets.schema import Scope
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.plan import ProjectPlan, plan_page, plan_project
from neptune_assets.targets.registry import loads
from neptune_assets.targets.rules import read_rules


@click.command(epilog="Exit status: 1 if a run would be refused, 2 if the question cannot be answered.")
@click.argument("migration")
@click.option("--project", multiple=True, help="workspace/project; may be repeated; all if left out")
@click.option("--target", multiple=True, help="a target, or <target>_models; may be repeated; all if left out")
@click.option("--full-refresh", is_flag=True, help="plan for a load that replaces every run")
@click.option("--names-only", is_flag=True, help="do not read values: faster, says nothing of them")
@click.option("--json", "as_json", is_flag=True, help="print the plans as one JSON array")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path(),
    help="directory that holds pyproject.toml; this one if left out",
)
def plan(
    migration: str,
    project: tuple[str, ...],
    target: tuple[str, ...],
    full_refresh: bool,
    names_only: bool,
    as_json: bool,
    root: Path,
) -> int:
    """Say what loads of MIGRATION, a folder below defs/, would do; nothing is written."""
    try:
        settings = migration_settings(root, migration)
        choices: dict[str, Any] = {"projects": project, "targets": target, "full_refresh": full_refresh}
        plans = plans_of(settings, values=not names_only, **choices)
        refused = print_json(plans) if as_json else print_pages(plans)
    except NeptuneAssetsError as error:
        print(error, file=sys.stderr)
        return USAGE
    return WRONG if refused else 0


def migration_settings(root: Path, name: str) -> Settings:
    """Return the settings of one migration, templates filled in. Raises SettingsError if there is none."""
    import dagster as dg

    from neptune_assets.components import NeptuneMigration

    try:
        tree = dg.ComponentTree.for_project(root.resolve())
    except dg.DagsterError as error:
        raise SettingsError(
            f"{root.resolve()} is not a Dagster project: {error}", hint="Give its directory as --root."
        ) from error
    if not (Path(tree.defs_module_path) / name / "defs.yaml").is_file():
        raise SettingsError(
            f"There is no migration {name!r} below {tree.defs_module_path}.",
            hint="Give the name of a folder that holds a defs.yaml.",
        )
    return tree.load_component(name, NeptuneMigration).settings


def plans_of(
    settings: Settings,
    *,
    projects: Sequence[str] = (),
    targets: Sequence[str] = (),
    full_refresh: bool = False,
    values: bool = True,
) -> Iterator[ProjectPlan]:
    """Plan each project and target that is asked for, all if none is. Raises SettingsError for unknown targets."""
    found = {load.name: load for load in loads(settings)}
    unknown = sorted({*targets} - {*found})
    if unknown or not found:
        raise SettingsError(
            f"No target {', '.join(unknown) or 'at all'} is configured.",
            hint=f"Configured are: {', '.join(sorted(found)) or 'none; add one under targets'}.",
        )
    lake = Lake(settings.lake)
    held = {scope: lake.projects(scope) for load in found.values() for scope in load.openers}
    for project_id in projects or lake.projects():
        for name in targets or found:
            for scope, open_target in found[name].openers.items():
                if scope is not Scope.RUNS and project_id not in held[scope]:
                    continue
                yield plan_project(
                    lake.project(project_id, scope),
                    open_target,
                    Ledger(settings.lake, found[name].ledger_name(scope), project_id),
                    partial_runs=settings.targets.partial_runs,
                    rules=read_rules(settings.targets.names),
                    full_refresh=full_refresh,
                    values=values,
                )


def print_pages(plans: Iterable[ProjectPlan]) -> int:
    """Print plans as Markdown, each as soon as it is made; return how many runs would be refused."""
    refused = 0
    for item in plans:
        refused += len(item.refuse)
        print(plan_page(item, plain), end="\n\n")
    return refused


def print_json(plans: Iterable[ProjectPlan]) -> int:
    """Print plans as one JSON array; return how many runs would be refused."""
    made = [*plans]
    print(json.dumps([_as_json(item) for item in made], indent=2))
    return sum(len(item.refuse) for item in made)


def _as_json(item: ProjectPlan) -> dict[str, Any]:
    return {
        "target": item.target,
        "project": item.project_id,
        **{fate: getattr(item, fate) for fate in ("create", "replace", "skip", "withhold", "refuse")},
        "rows": item.rows,
        "lake_bytes": item.lake_bytes,
        "file_bytes": item.file_bytes,
        "seconds": item.seconds,
        "dropped": [{"type": kind, "reason": reason, "rows": n} for (kind, reason), n in item.dropped.items()],
        "unsupported": None
        if not item.values_counted
        else [
            {"type": kind, "what": what, "outcome": then, "rows": n}
            for (kind, what, then), n in item.unsupported.items()
        ],
        "renamed": item.renamed,
        "names": item.names,
        "collided": item.collided,
        "collisions": item.collisions,
        "step_multipliers": item.multipliers,
        "notes": item.notes,
        "warnings": item.warnings,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan of each project and target that was asked for; return the exit status."""
    return run(plan, arguments, "python -m neptune_assets.plan")


if __name__ == "__main__":
    sys.exit(main())
