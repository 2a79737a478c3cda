"""Rows of a model and of its versions, as the lake holds them: what tests load into every target's registry."""

from __future__ import annotations

from typing import Any

from neptune_assets_tests.conformance.targets import Rows, born, param
from neptune_assets_tests.support.lake_factory import file

MODEL = born(
    param("sys/id", "string", "PRO-CLS"),
    param("sys/name", "string", "Classifier of it's"),
    param("sys/description", "string", "tells cats from dogs"),
    param("threshold", "float", 0.5),
    file("card", b"# card", "card.md"),
)


def version(number: int, stage: str = "none", *more: Any) -> Rows:
    return born(
        param("sys/id", "string", f"PRO-CLS-{number}"),
        param("sys/model_id", "string", "PRO-CLS"),
        param("sys/stage", "string", stage),
        param("number", "int", number),
        *more,
    )
