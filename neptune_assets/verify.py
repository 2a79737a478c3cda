"""Read a lake again and compare every byte with what was recorded when it was written.

Exit status, as of ``restic check``: 0 all is as recorded; 1 something is damaged,
or an error; 2 wrong usage; 10 there is no lake or no such project; 11 the project is being written by somebody else
(with --repair or --upgrade); 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

import click

from neptune_assets.cli import INTERRUPTED, WRONG, run
from neptune_assets.derived import report_derived
from neptune_assets.errors import (
    LakeBusyError,
    NeptuneAssetsError,
    SettingsError,
    UnknownProjectError,
)
from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.verification import (
    Damage,
    Subset,
    Verification,
    VerifyReport,
    projects_of,
    save_manifest,
    upgrade_project,
)
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.migration_settings import Settings
from neptune_assets.plan import migration_settings
from neptune_assets.progress import ShellProgress, duration
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings, SummarySettings
from neptune_assets.sources.registry import open_source

_SHOWN: Final = 50
_READ_ANEW: Final = frozenset({"manifest", "part", "file", "stray"})
_GIB: Final = 1 << 30


@click.command(epilog=__doc__.split("\n\n")[1].replace("``", ""))
@click.argument("lake")
@click.option("--project", multiple=True, help="workspace/project; may be repeated; all if left out")
@click.option(
    "--read-data-subset",
    metavar="PART",
    help="read 1/30 (a fixed thirtieth), 5% or 10G (those read longest ago); all if left out",
)
@click.option("--rows", is_flag=True, help="also decode all rows and compare their content digests")
@click.option("--json", "as_json", is_flag=True, help="print the report as one JSON object")
@click.option("--repair", is_flag=True, help="read what is damaged anew from the migration's source, then verify it")
@click.option("--upgrade", is_flag=True, help="first add hashes to runs that were written before there were any")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path(),
    help="directory that holds pyproject.toml; this one if left out",
)
def verify(
    lake: str,
    project: tuple[str, ...],
    read_data_subset: str | None,
    rows: bool,
    as_json: bool,
    repair: bool,
    upgrade: bool,
    root: Path,
) -> int:
    """Read a lake again and compare every byte with what was recorded when it was written.

    LAKE is a lake's directory or URL, or the name of a migration's folder below defs/.
    """
    progress = ShellProgress(sys.stderr, "verified")
    try:
        subset = None if read_data_subset is None else Subset.parse(read_data_subset)
        settings = _settings(lake, root)
        if repair and isinstance(settings, LakeSettings):
            raise SettingsError(
                "A lake alone cannot be repaired: its runs are read anew from their source.",
                hint="Give the migration, the name of its folder below defs/, instead of the lake's directory.",
            )
        lake_settings = settings if isinstance(settings, LakeSettings) else settings.lake
        opened = Lake(lake_settings)
        projects, damaged = _projects(opened, project or None)
        if not projects and not damaged:
            raise UnknownProjectError(
                f"There is no lake with such a project at {opened.storage.url(opened.storage.root)}.",
                hint="Check the path, or materialize the lake first.",
            )
        notes = []
        if upgrade:
            for project_id, scope in projects:
                count, _ = upgrade_project(opened, project_id, scope)
                notes.append(f"{project_id} ({scope}): {count:,} runs gained hashes.")
        report = Verification(opened, rows=rows, progress=_shown(progress)).run(projects, subset)
        progress.close()
        summary = settings.summary if isinstance(settings, Settings) else SummarySettings()
        report_derived(report, lake_settings, summary, sorted({project_id for project_id, _ in projects}))
        report.damaged[:0] = damaged
        report.notes[:0] = notes
        left = report.damaged
        if repair and report.damaged and isinstance(settings, Settings):
            left = _repair(settings, report)
        _print(opened, report, left, repaired=repair, as_json=as_json)
    except KeyboardInterrupt:
        print("Interrupted. Call it again with --read-data-subset to go on with what was not read.", file=sys.stderr)
        return INTERRUPTED
    return WRONG if left else 0


def _shown(progress: ShellProgress) -> Callable[[VerifyReport], None]:
    def show(report: VerifyReport) -> None:
        if report.seconds and report.bytes:
            more = f"{report.bytes / _GIB:,.2f} GiB, {report.bytes / report.seconds / 1e6:,.0f} MB/s, "
            share = report.bytes / max(1, report.bytes_total)
            progress.update(report.runs, report.runs_total, report.rows, share, more)

    return show


def _settings(lake: str, root: Path) -> LakeSettings | Settings:
    if "://" in lake or Path(lake).is_dir():
        return LakeSettings(root=lake)
    if "/" in lake or not (root / "pyproject.toml").is_file():
        raise UnknownProjectError(f"There is no lake at {lake}.", hint="Check the path.")
    return migration_settings(root, lake)


def _projects(lake: Lake, only: Collection[str] | None) -> tuple[list[tuple[str, Scope]], list[Damage]]:
    """Return the projects that were asked for, and manifests that do not say whose they are."""
    projects: list[tuple[str, Scope]] = []
    damaged: list[Damage] = []
    directories = None if only is None else {safe_name(project_id) for project_id in only}
    for item in projects_of(lake):
        if isinstance(item, Damage):
            if directories is None or item.project_id in directories:
                damaged.append(item)
        elif only is None or item[0] in only:
            projects.append(item)
    known = {project_id for project_id, _ in projects} | {item.project_id for item in damaged}
    missing = [project_id for project_id in only or () if not {project_id, safe_name(project_id)} & known]
    if missing:
        raise UnknownProjectError(f"The lake holds no project {missing[0]!r}.", hint="Check the project's name.")
    return projects, damaged


def _repair(settings: Settings, report: VerifyReport) -> list[Damage]:
    """Read damaged runs anew from the source; return what is damaged still."""
    lake, source = Lake(settings.lake), open_source(settings)
    of_directory = {safe_name(project_id): project_id for project_id in source.projects()}
    places: dict[tuple[str, Scope], list[Damage]] = {}
    left: list[Damage] = []
    for item in report.damaged:
        if item.kind not in _READ_ANEW:
            # Derived from the lake: its message names the asset that makes it again.
            left.append(item)
            continue
        project_id = of_directory.get(item.project_id, item.project_id)
        places.setdefault((project_id, item.scope), []).append(item)
    for (project_id, scope), found in places.items():
        runs = {item.run_id for item in found if item.run_id is not None}
        try:
            if any(item.kind == "manifest" for item in found):
                kept, lost = save_manifest(lake, project_id, scope)
                report.notes.append(f"{project_id} ({scope}): {kept:,} records of the manifest kept, {lost:,} lost.")
            if project_id not in of_directory.values():
                report.notes.append(f"{project_id} ({scope}) cannot be repaired: the source does not have it.")
                left.extend(found)
                continue
            lake.project(project_id, scope).damaged.add(dict.fromkeys(runs, "to be read anew"))
            written = LakeWriter(settings.lake, source, scope).write_project(project_id)
        except LakeBusyError:
            raise
        except NeptuneAssetsError as error:
            report.notes.append(f"{project_id} ({scope}) cannot be repaired: {error}")
            left.extend(found)
            continue
        gone = sorted(runs & set(written.deleted_in_source))
        if gone:
            report.notes.append(
                f"{project_id} ({scope}): the source no longer has {len(gone):,} damaged runs, such as {gone[0]}; "
                "restore their parts and files from a backup of the lake."
            )
        for run_id, message in written.failed.items():
            report.notes.append(f"{project_id} ({scope}): run {run_id} could not be read: {message}")
        # After a manifest was saved any run may be of another commit than its record.
        again = None if any(item.run_id is None for item in found) else runs
        left.extend(Verification(Lake(settings.lake)).run([(project_id, scope)], only=again).damaged)
    return left


def _print(lake: Lake, report: VerifyReport, left: Sequence[Damage], *, repaired: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_json(lake, report, left, repaired=repaired), indent=2))
        return
    for title, found in (("damaged", report.damaged), ("still damaged", left if repaired else ())):
        for item in found[:_SHOWN]:
            print(
                f"{title}: {item.project_id} ({item.scope}){f' {item.run_id}' if item.run_id else ''}: {item.message}"
            )
        if len(found) > _SHOWN:
            print(f"{title}: {len(found) - _SHOWN:,} more; --json lists all")
    for note in report.notes:
        print(f"note: {note}")
    words = "all of it as recorded" if not report.damaged else f"{len(report.damaged):,} damaged"
    if repaired and report.damaged:
        words += f", {len(left):,} of it could not be repaired"
    print(
        f"{report.runs:,} of {report.runs_total:,} runs, {report.rows:,} rows, {report.files:,} files, "
        f"{report.bytes / _GIB:,.2f} GiB in {duration(report.seconds)}: {words}."
    )


def _as_json(lake: Lake, report: VerifyReport, left: Sequence[Damage], *, repaired: bool) -> dict[str, Any]:
    def item(damage: Damage) -> dict[str, str | None]:
        return {
            "project": damage.project_id,
            "scope": damage.scope.value,
            "run": damage.run_id,
            "kind": damage.kind,
            "message": damage.message,
        }

    return {
        "lake": lake.storage.url(lake.storage.root),
        "projects": report.projects,
        "runs": report.runs,
        "rows": report.rows,
        "parts": report.parts,
        "files": report.files,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "damaged": [item(damage) for damage in report.damaged],
        **({"still_damaged": [item(damage) for damage in left]} if repaired else {}),
        "notes": report.notes,
        "verified_through": {
            f"{project_id} ({scope})": moment for (project_id, scope), moment in report.verified_through.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify a lake, print what was found, and return the exit status."""
    return run(verify, arguments, "python -m neptune_assets.verify")


if __name__ == "__main__":
    sys.exit(main())
