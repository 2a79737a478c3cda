from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import dagster as dg
import pytest
from pydantic.fields import FieldInfo

from neptune_assets.migration_settings import Settings
from neptune_assets.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SETTINGS, ASSETS, CONTRIBUTING = ROOT / "docs/settings.md", ROOT / "docs/assets.md", ROOT / "CONTRIBUTING.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "demo").rglob("*.md")])
MADE_BY_USE = (
    "data/",
    "dagster_home/storage",
    "dagster_home/history",
    "neptune_assets/defs/<",
    "neptune_assets/sources/<",
    "neptune_assets/targets/<",
    "demo/__pycache__",
)

_spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)

TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@cache
def _definitions() -> dg.Definitions:
    from neptune_assets.definitions import defs

    return defs()


@cache
def _asset_keys() -> frozenset[str]:
    return frozenset(key.to_user_string() for key in _definitions().resolve_asset_graph().get_all_asset_keys())


def _make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z0-9-]*):(?!=)", makefile, re.MULTILINE))


def _slug(heading: str) -> str:
    plain = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip())
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {_slug(heading) for heading in headings}


def _spans(text: str) -> Iterator[str]:
    for block in FENCE.findall(text):
        yield from block.split()
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def _paths(text: str) -> Iterator[str]:
    """Words in code that begin with a folder of the repository and go on below it."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    folders |= {"docs", "demo", "dagster_home", "neptune_assets", "neptune_assets_tests"}
    for span in _spans(text):
        for word in re.findall(r"(?<![\w./<>$-])[\w.-]+(?:/[\w.<>*-]+)+/?", span):
            if word.partition("/")[0] in folders:
                yield word


def test_the_server_page_has_a_row_for_every_option_of_serve() -> None:
    section = TEXT[ROOT / "docs" / "server.md"].partition("\n## Start it\n")[2].partition("\n## ")[0]
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|")) for line in section.splitlines() if "`--" in line
    ]
    fields = ServerSettings.model_fields.items()
    expected = [
        (
            f"`--{name.replace('_', '-')}`",
            "required" if field.is_required() else generate.default(field),
            str(field.description),
        )
        for name, field in fields
    ]
    assert [row for row in rows if len(row) == 3] == expected


def test_the_settings_page_is_made_from_the_models() -> None:
    assert TEXT[SETTINGS] == generate.page(), "docs/settings.md is out of date: run `make docs`"


@pytest.mark.parametrize(("name", "field"), list(generate.fields(Settings)), ids=lambda item: str(item)[:40])
def test_every_setting_is_described(name: str, field: FieldInfo) -> None:
    assert field.description, f"{name} has no description"


def test_the_chart_is_of_what_the_pages_say() -> None:
    assert all(ratio > 1 for ratio in generate.ratios().values())


def test_the_page_of_assets_names_every_asset() -> None:
    names = {f"<name>/{key.partition('/')[2]}" for key in _asset_keys()}
    assert len(names) > 5
    missing = sorted(name for name in names if f"`{name}`" not in TEXT[ASSETS])
    assert not missing, f"docs/assets.md, Assets: not named: {', '.join(missing)}"


def test_every_asset_the_page_of_assets_names_is_there() -> None:
    known = {key.partition("/")[2] for key in _asset_keys()}
    named = set(re.findall(r"`<name>/([a-z_/]+)`", TEXT[ASSETS]))
    assert named
    assert not (wrong := sorted(named - known)), f"docs/assets.md: there is no asset <name>/{', <name>/'.join(wrong)}"


def test_the_page_of_assets_names_every_check() -> None:
    keys = _definitions().resolve_asset_graph().asset_check_keys
    missing = sorted({key.name for key in keys if f"`{key.name}`" not in TEXT[ASSETS]})
    assert keys
    assert not missing, f"docs/assets.md, Assets: checks not named: {', '.join(missing)}"


def test_the_page_of_assets_names_every_schedule_and_sensor() -> None:
    repository = _definitions().get_repository_def()
    names = [item.name for item in [*repository.schedule_defs, *repository.sensor_defs]]
    migrations = {key.partition("/")[0] for key in _asset_keys()}
    missing = []
    for name in names:
        migration = next(migration for migration in migrations if name.startswith(f"{migration}_"))
        general = f"<name>{name.removeprefix(migration)}"
        if f"`{general}`" not in TEXT[ASSETS]:
            missing.append(general)
    assert names
    assert not missing, f"docs/assets.md: not named: {', '.join(missing)}"


def test_contributing_names_every_make_target() -> None:
    missing = sorted(
        target for target in _make_targets() if not re.search(rf"\bmake {target}\b(?!-)", TEXT[CONTRIBUTING])
    )
    assert not missing, f"CONTRIBUTING.md: not named: make {', make '.join(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    named = {m for span in _commands(TEXT[page]) for m in re.findall(r"\bmake ([a-z][a-z0-9-]*)", span)}
    wrong = sorted(named - _make_targets())
    assert not wrong, f"{page.name}: the Makefile has no {', '.join(wrong)}"


def _commands(text: str) -> Iterator[str]:
    for block in FENCE.findall(text):
        yield from (line.partition("#")[0] for line in block.splitlines())
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(<?([^)>\s]+)>?(?: \"[^\"]*\")?\)", FENCE.sub("", TEXT[page])):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            wrong.append(f"{link} (no such file)")
        elif anchor and target.suffix == ".md" and anchor not in _anchors(target):
            wrong.append(f"{link} (no such heading)")
    assert not wrong, f"{page.name}: broken links: {', '.join(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    projects = set(json.loads((ROOT / "demo" / "recordings" / "expected.json").read_text(encoding="utf-8")))
    wrong = []
    for path in sorted(set(_paths(TEXT[page]))):
        is_file = (ROOT / path).exists() or ("*" in path and any(ROOT.glob(path)))
        is_asset = any(fnmatchcase(key, path) for key in _asset_keys())
        if not (is_file or is_asset or path in projects or path.startswith(MADE_BY_USE)):
            wrong.append(path)
    assert not wrong, f"{page.name}: there is no {', '.join(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_holds_a_placeholder(page: Path) -> None:
    assert not (found := re.findall(r"@@\w+@@|\bTODO\b|\bFIXME\b|\bXXX\b", TEXT[page])), f"{page.name}: {found}"


def test_the_changelog_names_the_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert re.search(rf"^## \[?{re.escape(version[1])}\b", TEXT[ROOT / "CHANGELOG.md"], re.MULTILINE)


def test_the_changelog_is_written_in_whole_sentences() -> None:
    blocks = re.split(r"\n\s*\n|\n(?=[-*] )", FENCE.sub("", TEXT[ROOT / "CHANGELOG.md"]))
    entries = [block.strip() for block in blocks if block.strip() and not block.lstrip().startswith("#")]
    assert entries
    wrong = [entry for entry in entries if not re.search(r"[.!?:][)*`\"]*$", entry)]
    assert not wrong, f"CHANGELOG.md: no whole sentence: {wrong}"


def test_the_readme_is_short() -> None:
    assert len(TEXT[README].encode("utf-8")) <= 10_000
