"""What Dagster's UI shows of a summary: a picture of the curves and a table of a sample. Names are hostile here."""

from __future__ import annotations

import base64
import io
import warnings
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.markdown import escape, shorten
from neptune_assets.summary.sql import identifier

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neptune_assets.summary.tables import Summary

MAX_URI_BYTES: Final = 60_000
"""A picture is stored with every materialization, so it stays this small."""

_POINTS: Final = 240
_COLORS: Final = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")
_Curve = tuple[list[float], list[float]]


def curves(summary: Summary, *, metrics: int = 4, runs: int = 8) -> bytes | None:
    """Return a PNG with the curves of the metrics that most runs share, or None if no metric has two steps.

    At most ``metrics`` panels with at most ``runs`` lines each: the latest runs. A line has at most 240 points, means
    over stretches of steps. Values that are not finite are left out.
    """
    chosen = _choose(summary, metrics, runs)
    if not chosen:
        return None
    data = _sampled(summary, chosen)
    for width in (960, 720, 480, 320):
        png = _draw(chosen, data, width)
        if len(png) <= _max_png():
            return png
    return None


def markdown_image(png: bytes, text: str = "metric curves") -> str:
    """Return the picture as Markdown with a data: URI. Raises ValueError if it is larger than a page should carry."""
    if len(png) > _max_png():
        raise ValueError(f"a picture of {len(png):,} bytes is too large to be stored with a materialization")
    return f"![{escape(text)}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"


def sample(summary: Summary, *, rows: int = 8) -> str:
    """Return Markdown tables of the latest runs and of some metrics."""
    runs = summary.query(
        "SELECT r.run_id, r.name, r.lake_state, count(s.run_id), coalesce(sum(s.row_count), 0) FROM run_facts r "
        "LEFT JOIN series_facts s ON s.run_id = r.run_id AND s.attribute_type = 'float_series' "
        "GROUP BY r.run_id, r.name, r.lake_state, r.created_at "
        "ORDER BY r.created_at DESC NULLS LAST, r.run_id LIMIT $1",
        [rows],
    )
    found = summary.query(
        "SELECT s.run_id, s.attribute_path, s.row_count, s.last_step, s.last_value FROM series_facts s "
        "JOIN run_facts r ON r.run_id = s.run_id WHERE s.attribute_type = 'float_series' "
        "ORDER BY starts_with(s.attribute_path, 'sys/') OR starts_with(s.attribute_path, 'monitoring/'), "
        "r.created_at DESC NULLS LAST, s.run_id, s.attribute_path LIMIT $1",
        [rows],
    )
    tables = [_table(("run", "name", "in the lake", "metrics", "points"), runs)]
    if found:
        tables.append(_table(("run", "metric", "points", "last step", "last value"), found))
    return "\n\n".join(tables)


def _max_png() -> int:
    return MAX_URI_BYTES * 3 // 4 - 256


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('-' for _ in head)}|"]
    lines.extend(f"| {' | '.join(_cell(value) for value in row)} |" for row in rows)
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return escape(value)
    return f"{value:,}" if isinstance(value, int) else f"{float(value):.6g}"


def _choose(summary: Summary, metrics: int, runs: int) -> dict[str, list[str]]:
    """Return the metrics to draw, each with its runs."""
    paths = [
        path
        for (path,) in summary.query(
            "SELECT attribute_path FROM series_facts "
            "WHERE attribute_type = 'float_series' AND first_step < last_step AND min_value IS NOT NULL "
            # What Neptune measures of the machine comes last: it is there in every run, and seldom what runs are about.
            "GROUP BY attribute_path ORDER BY starts_with(attribute_path, 'sys/') "
            "OR starts_with(attribute_path, 'monitoring/'), count(*) DESC, sum(row_count) DESC, attribute_path "
            "LIMIT $1",
            [metrics],
        )
    ]
    rows = summary.query(
        "WITH latest AS (SELECT s.run_id, row_number() OVER "
        "(ORDER BY count(*) DESC, r.created_at DESC NULLS LAST, s.run_id) AS place "
        "FROM series_facts s JOIN run_facts r ON r.run_id = s.run_id "
        "WHERE s.attribute_type = 'float_series' AND s.attribute_path IN (SELECT unnest($1::VARCHAR[])) "
        "GROUP BY s.run_id, r.created_at) "
        "SELECT s.attribute_path, s.run_id FROM series_facts s JOIN latest USING (run_id) "
        "WHERE s.attribute_type = 'float_series' AND s.attribute_path IN (SELECT unnest($1::VARCHAR[])) "
        "AND first_step < last_step AND min_value IS NOT NULL AND place <= $2 ORDER BY place",
        [paths, runs],
    )
    chosen: dict[str, list[str]] = {path: [] for path in paths}
    for path, run_id in rows:
        chosen[path].append(run_id)
    return {path: run_ids for path, run_ids in chosen.items() if run_ids}


def _sampled(summary: Summary, chosen: dict[str, list[str]]) -> dict[tuple[str, str], _Curve]:
    """Return steps and values of each (metric, run), thinned out by DuckDB while it reads."""
    data: dict[tuple[str, str], _Curve] = {}
    run_ids = {run_id for some in chosen.values() for run_id in some}
    for rows in summary.rows(run_ids):
        found = summary.query(
            "SELECT f.attribute_path, f.run_id, avg(p.step::DOUBLE), avg(p.float_value) "  # noqa: S608
            f"FROM ({rows}) AS p JOIN series_facts f "
            "ON f.run_id = p.run_id AND f.attribute_path = p.attribute_path AND f.attribute_type = p.attribute_type "
            "WHERE p.attribute_type = 'float_series' AND f.attribute_path IN (SELECT unnest($1::VARCHAR[])) "
            # Axes are computed in doubles, too: what is near their end cannot be drawn.
            "AND f.first_step < f.last_step AND abs(p.float_value) < 1e150 "
            f"GROUP BY f.attribute_path, f.run_id, {_bucket()} ORDER BY 1, 2, 3",
            [list(chosen)],
        )
        for path, run_id, step, value in found:
            steps, values = data.setdefault((path, run_id), ([], []))
            steps.append(step)
            values.append(value)
    return data


def _bucket() -> str:
    first, last = (f"f.{identifier(name)}::DOUBLE" for name in ("first_step", "last_step"))
    return f"floor((p.step::DOUBLE - {first}) / ({last} - {first}) * {_POINTS - 1})"


def _draw(chosen: dict[str, list[str]], data: dict[tuple[str, str], _Curve], width: int) -> bytes:
    from matplotlib.figure import Figure
    from PIL import Image

    across = min(2, len(chosen))
    down = -(-len(chosen) // across)
    run_ids = list(dict.fromkeys(run_id for some in chosen.values() for run_id in some))
    colors = dict(zip(run_ids, (_COLORS[i % len(_COLORS)] for i in range(len(run_ids))), strict=True))
    # A figure of our own, never pyplot: pyplot keeps figures in a global list, and runs share this process.
    figure = Figure(figsize=(4.8 * across, 2.7 * down + 0.5), dpi=width / 9.6, layout="constrained", facecolor="white")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel in panels[len(chosen) :]:
        panel.set_axis_off()
    for panel, (path, of_path) in zip(panels, chosen.items(), strict=False):
        _draw_panel(panel, path, {run_id: data[path, run_id] for run_id in of_path if (path, run_id) in data}, colors)
    lines = [panels[0].plot([], [], color=colors[run_id], linewidth=2)[0] for run_id in run_ids]
    legend = figure.legend(
        lines, [""] * len(lines), loc="outside lower center", ncols=4, frameon=False, fontsize=8, handlelength=1.2
    )
    for label, run_id in zip(legend.get_texts(), run_ids, strict=True):
        label.set_parse_math(False)
        label.set_text(shorten(run_id, 24))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names may be in a script that the font lacks: they show as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png")
    small = io.BytesIO()
    # A few colours are enough for lines on white, and a third of the bytes.
    Image.open(buffer).convert("RGB").quantize(64).save(small, format="PNG", optimize=True)
    return small.getvalue()


def _draw_panel(panel: Axes, path: str, lines: dict[str, _Curve], colors: dict[str, str]) -> None:
    for run_id, (steps, values) in lines.items():
        panel.plot(steps, values, color=colors[run_id], linewidth=1.3, marker="." if len(steps) < 3 else None)
    # Dollar signs in a name do not begin a formula.
    panel.set_title(shorten(path, 48), fontsize=9, loc="left", parse_math=False)
    panel.tick_params(labelsize=7, color="#999999", labelcolor="#444444")
    panel.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#bbbbbb")
