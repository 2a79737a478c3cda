"""Write what the docs make from other things: ``make docs``. A test fails if the settings page is out of date.

``settings.md`` is made from the models of the settings, ``images/speed.png`` from the tables of ``benchmarks.md`` and
``server.md``.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from neptune_assets.migration_settings import Settings

DOCS = Path(__file__).parent
PAGE = DOCS / "settings.md"
CHART = DOCS / "images" / "speed.png"
MEASURED = {
    "Load into W&B, offline": ("benchmarks.md", "W&B, offline, points/s"),
    "Load into MLflow, SQLite": ("benchmarks.md", "MLflow, into SQLite, points/s"),
    "Export a 3.x server, disjoint steps": ("server.md", "3.x, disjoint steps: 8 runs"),
    "Load into MLflow, PostgreSQL": ("benchmarks.md", "MLflow, into PostgreSQL, points/s"),
    "Summary tables": ("benchmarks.md", "summary, imports not counted"),
    "Export a 3.x server, dense": ("server.md", "3.x, dense"),
    "Export a 2.x server, small runs": ("server.md", "2.x, 500 runs"),
}
"""What the chart shows: the page and the beginning of the table row, whose fourth cell is the ratio."""
HEAD = """# Settings

Every setting of a migration's `defs.yaml`, below `attributes:`. This page is made from the models by `make docs`.

Relative paths are taken from the project's root. Secrets are never values: settings ending in `_env`, and
`secrets_env`, name environment variables (see `.env.example`). `{{ env.NAME }}` fills in other variables. Invalid
settings are reported with file and line.
"""


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Each field of a model and of the models below it, with its dotted name."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        inner = inner_model(field.annotation)
        if inner is not None:
            yield from fields(inner, f"{prefix}{name}.")


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation names, also as one of several options."""
    options = typing.get_args(annotation) if typing.get_origin(annotation) in {typing.Union, types.UnionType} else ()
    for option in options or (annotation,):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def default(field: FieldInfo) -> str:
    """The default as the page shows it; empty where there is none to name."""
    if field.is_required():
        return "" if inner_model(field.annotation) else "required"
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`{', '.join(map(str, value))}`"
    return "" if field.default_factory is not None or value in {None, ""} else f"`{value}`"


def page() -> str:
    """The whole page: a table for each first level of the settings."""
    text = HEAD
    section = None
    for name, field in fields(Settings):
        first = name.partition(".")[0]
        if first != section:
            section = first
            text += f"\n## {first}\n\n| setting | default | meaning |\n|-|-|-|\n"
        text += f"| `{name}` | {default(field)} | {field.description} |\n".replace("|  |", "| |")
    return text


def ratios() -> dict[str, float]:
    """How many times faster than neptune-exporter each kind of work is, as the pages say."""
    found = {}
    for title, (name, row) in MEASURED.items():
        lines = [line for line in (DOCS / name).read_text(encoding="utf-8").splitlines() if line.startswith(f"| {row}")]
        number = re.match(r"[\d.]+", lines[0].split("|")[4].strip())
        assert number, f"{name}: no ratio in the row of {row}"
        found[title] = float(number[0])
    return found


def draw(path: Path) -> None:
    """Draw the ratios as bars."""
    from matplotlib.figure import Figure

    measured = sorted(ratios().items(), key=lambda item: item[1])
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([title for title, _ in measured], [ratio for _, ratio in measured], color="#3b6ea5")
    axes.bar_label(bars, [f"{ratio:g} ×" for _, ratio in measured], padding=3)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_title("Times faster than neptune-exporter 0.1.0, reading back included", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    figure.savefig(path, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    draw(CHART)
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
