"""Dry run from a shell: what loading would do, printed as Markdown, with nothing written.

``python -m neptune_assets.plan demo --project demo/vision --target mlflow``: the migration is the name of its folder
below ``defs/``. The exit status is 1 if a run would be refused, 2 if the question cannot be answered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neptune_assets.errors import NeptuneAssetsError, SettingsError
from neptune_assets.lake.reader import Lake
from neptune_assets.markdown import plain
from neptune_assets.migration_settings import Settings
from neptune_assets.schema import Scope
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.pages import plan_page
from neptune_assets.targets.plan import plan_project
from neptune_assets.targets.registry import loads
from neptune_assets.targets.rules import read_rules


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan of each project and target that was asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m neptune_assets.plan", description=__doc__.split("\n\n")[0])
    parser.add_argument("migration", help="folder below defs/ that holds the migration's defs.yaml")
    parser.add_argument("--project", action="append", help="workspace/project; may be repeated; all if left out")
    parser.add_argument(
        "--target",
        action="append",
        help="a target of the migration, or <target>_models; may be repeated; all if left out",
    )
    parser.add_argument("--full-refresh", action="store_true", help="plan for a load that replaces every run")
    parser.add_argument("--names-only", action="store_true", help="do not read values: faster, tells nothing of them")
    parser.add_argument(
        "--root", type=Path, default=Path.cwd(), help="directory that holds pyproject.toml; this one if left out"
    )
    options = parser.parse_args(arguments)
    try:
        refused = print_plans(
            migration_settings(options.root, options.migration),
            projects=options.project,
            targets=options.target,
            full_refresh=options.full_refresh,
            values=not options.names_only,
        )
    except NeptuneAssetsError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if refused else 0


def migration_settings(root: Path, name: str) -> Settings:
    """Return the settings of one migration, templates filled in. Raises SettingsError if there is none."""
    import dagster as dg

    from neptune_assets.components import NeptuneMigration

    tree = dg.ComponentTree.for_project(root.resolve())
    if not (Path(tree.defs_module_path) / name / "defs.yaml").is_file():
        raise SettingsError(
            f"There is no migration {name!r} below {tree.defs_module_path}.",
            hint="Give the name of a folder that holds a defs.yaml.",
        )
    return tree.load_component(name, NeptuneMigration).settings


def print_plans(
    settings: Settings,
    *,
    projects: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    full_refresh: bool = False,
    values: bool = True,
) -> int:
    """Print plans and return how many runs would be refused."""
    found = {load.name: load for load in loads(settings)}
    unknown = sorted({*(targets or ())} - {*found})
    if unknown or not found:
        raise SettingsError(
            f"No target {', '.join(unknown) or 'at all'} is configured.",
            hint=f"Configured are: {', '.join(sorted(found)) or 'none; add one under targets'}.",
        )
    lake = Lake(settings.lake)
    held = {scope: lake.projects(scope) for load in found.values() for scope in load.openers}
    refused = 0
    for project_id in projects or lake.projects():
        for name in targets or found:
            for scope, open_target in found[name].openers.items():
                if scope is not Scope.RUNS and project_id not in held[scope]:
                    continue
                plan = plan_project(
                    lake.project(project_id, scope),
                    open_target,
                    Ledger(settings.lake, found[name].ledger_name(scope), project_id),
                    partial_runs=settings.targets.partial_runs,
                    rules=read_rules(settings.targets.names),
                    full_refresh=full_refresh,
                    values=values,
                )
                refused += len(plan.refuse)
                print(plan_page(plan, plain), end="\n\n")
    return refused


if __name__ == "__main__":
    sys.exit(main())
