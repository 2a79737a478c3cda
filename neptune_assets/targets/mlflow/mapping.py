"""What a run of the lake becomes in MLflow: names, params, tags, times, steps. Reads the lake, writes nothing.

| Neptune | MLflow |
|-|-|
| project | an experiment of that name; `naming: neptune-exporter`: one for each sys/name in it |
| run id | run name, and the tag ``neptune.run_id`` |
| int, float, string, bool | param: ``10``, ``0.1`` (shortest text of the double), as is, ``True`` |
| datetime, string_set | param: ISO 8601 in UTC with milliseconds; a sorted JSON list |
| float_series | metric; steps times a power of ten if they are not whole |
| string_series, histogram_series | one JSON-lines artifact each |
| file, file_series, file_set, artifact | artifacts |
| sys/tags, sys/group_tags | besides the param, one tag each: ``neptune.tag.<tag>``, ``neptune.group_tag.<tag>`` |
| sys/failed, sys/description, sys/owner | besides the param: status, ``mlflow.note.content``, ``mlflow.user`` |
| sys/forking/parent and step | besides the param: ``neptune.parent``, ``neptune.fork_step``, ``mlflow.parentRunId`` |
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from neptune_assets.lake.layout import format_step
from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import PARAMETER_TYPES, VALUE_COLUMN, AttributeType
from neptune_assets.targets.naming import (
    colliding_keys,
    colliding_paths,
    digest,
    distinct_keys,
    distinct_paths,
    shorten,
    split_extension,
)
from neptune_assets.targets.profile import (
    Attribute,
    Kind,
    Outcomes,
    RunProfile,
    ValueCounts,
    profile,
    unsupported_values,
)
from neptune_assets.targets.protocol import Plan, UnsupportedValues
from neptune_assets.targets.rules import wanted_name
from neptune_assets.targets.times import iso, parsed, whole_milliseconds

MAX_PARAM: Final = 6_000
MAX_TAG: Final = 5_000
"""MLflow's newer servers take 8,000 characters; older ones refuse more than 5,000."""

_WRITTEN: Final = frozenset({AttributeType.INT, AttributeType.FLOAT, AttributeType.STRING, AttributeType.BOOL})


def param_text(kind: str, value: Any) -> str:
    """Return a parameter's value as the text that MLflow keeps; a time is given in milliseconds since 1970."""
    match kind:
        case AttributeType.FLOAT:
            return repr(float(value))
        case AttributeType.DATETIME:
            return iso(value)
        case AttributeType.STRING_SET:
            return json.dumps(sorted(value), ensure_ascii=False)
        case _:
            return str(value)


def is_written(kind: str) -> bool:
    """True if a param of MLflow is what this type is; False if it is kept as text."""
    return kind in _WRITTEN


def parameters(run: LakeRun) -> Iterator[tuple[Attribute, Any]]:
    """Yield ((path, type), value) of all parameters of a run."""
    values = sorted({VALUE_COLUMN[kind] for kind in PARAMETER_TYPES})
    for batch in run.batches(PARAMETER_TYPES, ("attribute_path", "attribute_type", *values)):
        columns = {name: whole_milliseconds(batch[name]) for name in values}
        for row, (path, kind) in enumerate(
            zip(batch["attribute_path"].to_pylist(), batch["attribute_type"].to_pylist(), strict=True)
        ):
            yield (path, kind), columns[VALUE_COLUMN[AttributeType(kind)]][row].as_py()


def fits_param(text: str) -> bool:
    """True if MLflow keeps this text as it is. Some databases refuse NUL."""
    return len(text) <= MAX_PARAM and "\x00" not in text


def tag_text(text: str) -> str:
    """Return text that MLflow takes as a tag; what is longer is cut, NUL is replaced. The param has it whole."""
    text = text.replace("\x00", "\ufffd")
    return text if len(text) <= MAX_TAG else text[: MAX_TAG - 1] + "…"


VERSION: Final = 2
"""Raised whenever the same run would be loaded differently, so that runs loaded before are loaded again."""

KEY: Final = "neptune_assets.key"
PROJECT_KEY: Final = "neptune_assets.project_key"
PARENT_KEY: Final = "neptune_assets.parent_key"
DIGEST: Final = "neptune_assets.digest"
MAPPING: Final = "neptune_assets.mapping"
PROJECT: Final = "neptune.project"
RUN_ID: Final = "neptune.run_id"
PARENT_RUN: Final = "mlflow.parentRunId"

MAX_KEY: Final = 250
"""Characters of a metric, param or tag key, and of a run's name."""

_ILLEGAL: Final = re.compile(r"[^/\w.\- :]")
_PEER: Final = re.compile(r"[^a-zA-Z0-9_\-.\s/]")


@dataclass(frozen=True, slots=True)
class MlflowPlan(Plan):
    """A plan with everything that loading needs besides the rows of series and the bytes of files."""

    experiment: str = ""
    run_name: str = ""
    user: str | None = None
    failed: bool = False
    start: int = 0
    """Milliseconds since 1970, as ``end``."""
    end: int = 0
    parent: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    long_params: Mapping[Attribute, str] = field(default_factory=dict)
    """Attributes whose text is too long for a param -> artifact."""
    param_keys: Mapping[Attribute, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metric_keys: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[Attribute, str] = field(default_factory=dict)
    """String and histogram series, files -> artifact; file series and sets -> the directory of their artifacts."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows of the parameter types by type."""
    nulls: Mapping[str, int] = field(default_factory=dict)
    """How many of them have no value."""


def clean_key(path: str) -> str:
    """Return a key that MLflow accepts; the same text if it does already.

    MLflow allows word characters of any script, ``/ . - : _`` and spaces, and refuses keys that would be another path
    once normalised (``a//b``, ``/a``, ``..``).
    """
    key = "/".join("_" if part in {"", ".", ".."} else part for part in _ILLEGAL.sub("_", path).split("/"))
    # MLflow takes anything that begins with two dots for a path that leaves its directory.
    return f"_{key[1:]}" if key.startswith("..") else key


def exporter_key(path: str) -> str:
    """Return the key that neptune-exporter made of this path, as far as MLflow accepts it."""
    return clean_key(_PEER.sub("_", path)[:MAX_KEY])


def external_key(project_id: str, run_id: str) -> str:
    """Return what a run is found by: a hash, so that no character of a name is ever part of a filter."""
    return digest(f"{project_id}\0{run_id}", 16)


def project_key(project_id: str) -> str:
    """Return what the runs of a project are found by."""
    return digest(project_id, 16)


def make_plan(
    run: LakeRun,
    *,
    naming: Literal["default", "neptune-exporter"],
    prefix: str,
    step_multiplier: int | None,
    case_sensitive: bool,
) -> MlflowPlan:
    """Read the run once, series only by name, step and time, and decide on everything. Pure but for reading."""
    values: dict[Attribute, str] = {}
    sys: dict[str, Any] = {}
    long: set[Attribute] = set()
    rows: dict[str, int] = {}
    nulls: dict[str, int] = {}
    seen = profile(run)
    for attribute, value in seen.parameters:
        path, kind = attribute
        rows[kind] = rows.get(kind, 0) + 1
        if value is None:
            nulls[kind] = nulls.get(kind, 0) + 1
            continue
        if path.startswith("sys/"):
            sys[path] = value
        text = param_text(kind, value)
        if fits_param(text):
            values[attribute] = text
        else:
            long.add(attribute)

    clean = clean_key if naming == "default" else exporter_key
    fold = not case_sensitive
    wanted = wanted_name(run)
    param_names = {a: wanted(a[0]) for a in sorted({*values, *long})}
    params = distinct_keys(param_names, clean, limit=MAX_KEY, fold_case=fold)
    floats = sorted(path for path, kind in seen.series if kind == AttributeType.FLOAT_SERIES)
    metric_names = {path: wanted(path) for path in floats}
    metrics = distinct_keys(metric_names, clean, limit=MAX_KEY, fold_case=fold)
    path_names = {
        **{a: f"params/{wanted(a[0])}.txt" for a in sorted(long)},
        **{
            a: _artifact_path((wanted(a[0]), a[1]), seen.files.get(a, ""))
            for a in sorted({*seen.series, *seen.files})
            if a[1] != AttributeType.FLOAT_SERIES
        },
    }
    paths = distinct_paths(path_names)
    collisions = {
        **{name: [a[0] for a in met] for name, met in colliding_keys(param_names, clean, fold_case=fold).items()},
        **colliding_keys(metric_names, clean, fold_case=fold),
        **{name: [a[0] for a in met] for name, met in colliding_paths(path_names).items()},
    }
    long_params = {attribute: paths[attribute] for attribute in sorted(long)}
    values_of_params = {params[attribute]: text for attribute, text in values.items()}
    values_of_params.update({params[a]: f"(whole in artifact {path})" for a, path in long_params.items()})

    start, end = _times(run, sys, seen)
    multiplier = step_multiplier or seen.multiplier
    notes = [
        f"{len(long):,} params are too long for MLflow or hold NUL and are whole in artifacts under params/"
    ] * bool(long)
    if multiplier != 1:
        notes.append(f"steps are multiplied by {multiplier:,}")
    renamed = {path: key for path, key in metrics.items() if key != path}
    for (path, kind), key in params.items():
        if key != path:
            renamed[path if path not in renamed else f"{path} ({kind})"] = key
    if renamed:
        notes.append(f"{len(renamed):,} names are not legal in MLflow and were changed; neptune/names.json has them")
    run_name = str(sys.get("sys/custom_run_id") or run.run_id) if naming == "neptune-exporter" else run.run_id
    run_name = run_name.replace("\x00", "\ufffd")
    return MlflowPlan(
        run_id=run.run_id,
        names=renamed,
        step_multiplier=multiplier,
        notes=notes,
        collisions=collisions,
        experiment=_experiment(run.project_id, sys.get("sys/name"), naming, prefix),
        run_name=run_name if len(run_name) <= MAX_KEY else shorten(run_name, run.run_id, MAX_KEY),
        user=str(sys["sys/owner"])[:250].replace("\x00", "\ufffd") if sys.get("sys/owner") else None,
        failed=sys.get("sys/failed") is True,
        start=start,
        end=end,
        parent=run.record.parent,
        params=values_of_params,
        long_params=long_params,
        param_keys=params,
        tags=_tags(run, sys, multiplier),
        metric_keys=metrics,
        artifacts={a: path for a, path in paths.items() if a not in long},
        rows=rows,
        nulls=nulls,
    )


def names_json(plan: MlflowPlan) -> bytes:
    """Return the whole reversible map of names: every attribute, its type, and its place in MLflow."""
    entries: list[dict[str, str]] = []
    for (path, kind), key in sorted(plan.param_keys.items()):
        entry = {"attribute": path, "type": kind, "param": key}
        if (path, kind) in plan.long_params:
            entry["artifact"] = plan.long_params[(path, kind)]
        entries.append(entry)
    entries += [
        {"attribute": path, "type": AttributeType.FLOAT_SERIES.value, "metric": key}
        for path, key in sorted(plan.metric_keys.items())
    ]
    entries += [
        {"attribute": path, "type": kind, "artifact": artifact}
        for (path, kind), artifact in sorted(plan.artifacts.items())
    ]
    return json.dumps({"step_multiplier": plan.step_multiplier, "attributes": entries}, ensure_ascii=False).encode()


def _artifact_path(attribute: Attribute, extension: str = "") -> str:
    path, kind = attribute
    if extension and split_extension(path)[1].lower() != f".{extension.lower()}":
        path_with = f"{path}.{extension}"
    else:
        path_with = path
    match kind:
        case AttributeType.STRING_SERIES:
            return f"series/{path}.jsonl"
        case AttributeType.HISTOGRAM_SERIES:
            return f"histograms/{path}.jsonl"
        case AttributeType.FILE:
            return f"files/{path_with}"
        case AttributeType.FILE_SERIES:
            return f"file_series/{path}"
        case AttributeType.FILE_SET:
            return f"file_sets/{path}"
        case _:
            return f"artifacts/{path_with}"


def _times(run: LakeRun, sys: Mapping[str, Any], seen: RunProfile) -> tuple[int, int]:
    """Return start and end: creation, and the last point or else the last change."""
    created, modified = sys.get("sys/creation_time"), sys.get("sys/modification_time")
    start: int | None = created if isinstance(created, int) else None
    if start is None and run.record.created_at is not None:
        start = parsed(run.record.created_at)
    if start is None:
        start = seen.earliest if seen.earliest is not None else parsed(run.record.committed_at) or 0
    end = seen.latest
    if end is None and isinstance(modified, int):
        end = modified
    # MLflow takes no times before 1970, and its client takes 0 for now.
    return max(start, 1), max(start, 1, end if end is not None else start)


def _experiment(project_id: str, name: Any, naming: str, prefix: str) -> str:
    if naming == "neptune-exporter":
        if not name:
            # The exporter leaves the choice to MLflow, which takes its first experiment.
            return "Default"
        whole = f"{project_id}/{name}"
        whole = f"{prefix}/{whole}" if prefix else whole
    else:
        whole = f"{prefix}{project_id}"
    whole = whole.replace("\x00", "\ufffd")
    return whole if len(whole) <= MAX_KEY else shorten(whole, whole, MAX_KEY)


def _tags(run: LakeRun, sys: Mapping[str, Any], multiplier: int) -> dict[str, str]:
    tags = {
        KEY: external_key(run.project_id, run.run_id),
        PROJECT_KEY: project_key(run.project_id),
        PROJECT: tag_text(run.project_id),
        RUN_ID: tag_text(run.run_id),
        "neptune.step_multiplier": str(multiplier),
    }
    for tag, path in (
        ("neptune.id", "sys/id"),
        ("neptune.name", "sys/name"),
        ("neptune.custom_run_id", "sys/custom_run_id"),
    ):
        if sys.get(path):
            tags[tag] = tag_text(str(sys[path]))
    if sys.get("sys/description"):
        tags["mlflow.note.content"] = tag_text(str(sys["sys/description"]))
    if not run.record.complete:
        tags["neptune.partial"] = "True"
    if run.record.parent is not None:
        tags["neptune.parent"] = tag_text(run.record.parent)
        tags[PARENT_KEY] = external_key(run.project_id, run.record.parent)
        if run.record.fork_step is not None:
            step = format_step(run.record.fork_step)
            tags["neptune.fork_step"] = step.rstrip("0").rstrip(".")
    wanted: dict[tuple[str, str], str] = {}
    for prefix, path in (("neptune.tag.", "sys/tags"), ("neptune.group_tag.", "sys/group_tags")):
        wanted.update({(path, value): prefix + value for value in sys.get(path) or ()})
    for (_, value), key in distinct_keys(wanted, clean_key, limit=MAX_KEY, fold_case=True).items():
        tags[key] = tag_text(value)
    return tags


_SIDECAR: Final = "not a metric; exact in artifact neptune/points_apart.parquet"
_POINTS: Final = frozenset({AttributeType.FLOAT_SERIES})
_OUTCOMES: Final[Outcomes] = (
    (Kind.INFINITE, _POINTS, _SIDECAR),
    (Kind.UNEVEN_STEP, _POINTS, _SIDECAR),
    (Kind.BEFORE_1970, _POINTS, _SIDECAR),
    (Kind.NEGATIVE_ZERO, _POINTS, "a metric of 0.0; exact in artifact neptune/points_apart.parquet"),
    (Kind.NO_TIME, _POINTS, "a metric with the run's start time"),
    (Kind.NO_FILE, None, "dropped: the file is missing"),
)


def unsupported(values: ValueCounts, plan: MlflowPlan) -> list[UnsupportedValues]:
    """Return what MLflow cannot hold of a run whose values were counted."""
    long = Counter(kind for _, kind in plan.long_params)
    return [
        *unsupported_values(values, _OUTCOMES),
        *(
            UnsupportedValues(kind, "too long for a param, or with NUL", rows, "whole in an artifact under params/")
            for kind, rows in sorted(long.items())
        ),
        *(
            UnsupportedValues(kind, Kind.NULL.value, rows, "dropped: the source had no value")
            for kind, rows in sorted(plan.nulls.items())
        ),
    ]
