"""What an export, a folder of recordings or a server's store holds, and what is wrong with it. Nothing is written.

Every run is read as a migration would read it: rows are counted, files are opened, and whatever could not be read is
named. No project and no settings are needed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final

import click
import yaml
from pydantic import ValidationError

from neptune_assets.cli import WRONG, run
from neptune_assets.errors import FileGoneError, NeptuneAssetsError, UnsafePathError
from neptune_assets.migration_settings import Settings
from neptune_assets.progress import ShellProgress
from neptune_assets.schema import Scope
from neptune_assets.sources.protocol import Issue, RunEnd, RunInfo, RunRows, Source
from neptune_assets.sources.registry import open_source, sources_at

_SHOWN: Final = 50
"""Problems that are printed; --json has all of them."""


@dataclass
class Content:
    """What one project holds of one kind of thing."""

    project: str
    scope: Scope
    runs: int = 0
    partial: int = 0
    files: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@click.command(epilog="Exit status: 1 if anything is wrong, 10 if nothing is recognized.")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--source", help="kind of source, if several could read the path: export, offline, server, ...")
@click.option(
    "--set",
    "given",
    metavar="NAME=VALUE",
    multiple=True,
    help="setting of the source, such as project=team/name for recordings that do not name theirs; may be repeated",
)
@click.option("--project", multiple=True, help="workspace/project; may be repeated; all if left out")
@click.option("--list-only", is_flag=True, help="list runs and do not read them: faster, finds less")
@click.option("--json", "as_json", is_flag=True, help="print the report as one JSON object")
def audit(
    path: Path, source: str | None, given: tuple[str, ...], project: tuple[str, ...], list_only: bool, as_json: bool
) -> int:
    """Say what the export or recordings at PATH hold, and what is wrong with them."""
    reports = []
    more = dict(_setting(item) for item in given)
    for kind, found in sources_at(source, str(path)):
        settings = {**found, **more}
        chosen: dict[str, Any] = {"projects": {"only": list(project)}} if project else {}
        # The lake is never opened.
        values = {"source": {kind: settings}, "filters": chosen, "lake": {"root": "unused"}}
        try:
            made = Settings.model_validate(values)
        except ValidationError as error:
            raise click.UsageError(str(error)) from error
        opened = open_source(made)
        contents: list[Content] = []
        general: list[Issue] = []
        try:
            projects = opened.projects()
        except NeptuneAssetsError as error:
            projects, general = [], [Issue(str(error))]
        for project_id, scope in product(projects, [*Scope] if made.model_registry else [Scope.RUNS]):
            try:
                content = _content(opened, project_id, scope, list_only=list_only)
            except NeptuneAssetsError as error:
                # The other projects are looked at all the same.
                content = Content(project_id, scope, problems=[str(error)])
            if content.runs or content.problems or scope is Scope.RUNS:
                contents.append(content)
        general += opened.problems()
        reports.append(_report(kind, settings, contents, general))
    wrong = sum(len(report["problems"]) for report in reports)
    if as_json:
        print(json.dumps({"path": str(path), "sources": reports}, indent=2))
    else:
        for report in reports:
            _print(path, report)
    return WRONG if wrong else 0


def _setting(text: str) -> tuple[str, Any]:
    """Name and value of one ``--set``; the value is YAML, as in ``defs.yaml``."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--set {text}: give it as NAME=VALUE.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise click.UsageError(f"--set {name}: the value is not valid YAML: {error}") from error


def _content(source: Source, project_id: str, scope: Scope, *, list_only: bool) -> Content:
    found = Content(project_id, scope)
    infos = source.runs(project_id, scope)
    found.runs = len(infos)
    if not list_only:
        progress = ShellProgress(sys.stderr, f"{project_id} read")
        total, done, read = sum(info.size_hint for info in infos), 0, 0
        sizes = {info.run_id: info.size_hint for info in infos}
        for end in _read(source, found, infos):
            done, read = done + 1, read + sizes[end.run_id]
            progress.update(done, len(infos), found.rows.total(), read / total if total else None)
        progress.close()
    if scope is Scope.RUNS:
        for issue in source.problems(project_id):
            (found.notes if issue.notice else found.problems).append(issue.message)
    return found


def _read(source: Source, found: Content, infos: list[RunInfo]) -> Iterator[RunEnd]:
    """Read all runs, and yield the end of each; what is found is added to the content."""
    for chunk in source.read(found.project, [info.run_id for info in infos], found.scope):
        if isinstance(chunk, RunRows):
            for kind, rows in zip(*(column.to_pylist() for column in _counted(chunk)), strict=True):
                found.rows[kind] += rows
            _open_files(source, found, chunk)
            continue
        found.partial += bool(chunk.errors)
        found.repairs.update(chunk.repairs)
        for issues, messages in ((chunk.errors, found.problems), (chunk.notes, found.notes)):
            for issue in issues:
                where = f"{chunk.run_id}: {issue.attribute_path}" if issue.attribute_path else chunk.run_id
                messages.append(f"{where}: {issue.message}")
        yield chunk


def _counted(chunk: RunRows) -> list[Any]:
    counts = chunk.batch["attribute_type"].value_counts()
    return [counts.field("values"), counts.field("counts")]


def _open_files(source: Source, found: Content, chunk: RunRows) -> None:
    values = chunk.batch["file_value"]
    if values.null_count == len(values):
        return
    rows = zip(chunk.batch["attribute_path"].to_pylist(), values.to_pylist(), strict=True)
    for attribute, value in rows:
        if value is None or value["path"] is None:
            continue
        try:
            for member in source.files(found.project, chunk.run_id, value["path"], found.scope):
                member.open().close()
                found.files += 1
        except (FileGoneError, UnsafePathError, OSError) as error:
            found.problems.append(f"{chunk.run_id}: {attribute}: {error}")


def _report(kind: str, settings: Any, contents: list[Content], general: list[Issue]) -> dict[str, Any]:
    # What belongs to no project is among every project's problems as well.
    of_all = {issue.message for issue in general}
    problems: list[dict[str, str | None]] = []
    notes: list[dict[str, str | None]] = []
    for content in contents:
        for messages, kept in ((content.problems, problems), (content.notes, notes)):
            kept += [{"project": content.project, "message": text} for text in messages if text not in of_all]
    for issue in general:
        (notes if issue.notice else problems).append({"project": None, "message": issue.message})
    return {
        "source": kind,
        "settings": settings,
        "content": [
            {
                "project": item.project,
                "scope": item.scope.value,
                "runs": item.runs,
                "partial": item.partial,
                "files": item.files,
                "rows": dict(sorted(item.rows.items())),
                "repairs": dict(sorted(item.repairs.items())),
            }
            for item in contents
        ],
        "problems": problems,
        "notes": notes,
    }


def _print(path: Path, report: dict[str, Any]) -> None:
    print(f"{path}: read as source.{report['source']}")
    for item in report["content"]:
        rows = ", ".join(f"{kind} {count:,}" for kind, count in item["rows"].items())
        print(
            f"  {item['project']}: {item['runs']:,} {item['scope'].replace('_', ' ')}"
            + (f", {item['partial']:,} of them partial" if item["partial"] else "")
            + (f", {item['files']:,} files" if item["files"] else "")
            + (f"; rows: {rows}" if rows else "")
        )
        for name, count in item["repairs"].items():
            print(f"    repaired on reading: {name}, {count:,} rows")
    for title, found in (("problem", report["problems"]), ("note", report["notes"])):
        for item in found[:_SHOWN]:
            print(f"{title}: {item['project'] + ': ' if item['project'] else ''}{item['message']}")
        if len(found) > _SHOWN:
            print(f"{title}: {len(found) - _SHOWN:,} more; --json lists all")
    print(f"{len(report['problems']):,} problems, {len(report['notes']):,} notes.")


if __name__ == "__main__":
    sys.exit(run(audit))
