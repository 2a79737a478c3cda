"""How values stand in MLflow, which keeps parameters and tags as text of bounded length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import PARAMETER_TYPES, VALUE_COLUMN, AttributeType
from neptune_assets.targets.mlflow.overview import Attribute
from neptune_assets.targets.times import iso, whole_milliseconds

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
    """True if a param of MLflow is what this type is; False if it becomes text that stands for it."""
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
