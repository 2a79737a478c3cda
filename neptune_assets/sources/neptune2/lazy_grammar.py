"""Imports jsonschema without the grammar of international addresses, which is compiled when somebody first needs it.

neptune-client imports jsonschema, which imports rfc3987_syntax where that is installed, which compiles a grammar: more
than all the rest of the client takes. Neptune's documents hold no such addresses. What jsonschema can check stays the
same: the first check compiles the grammar.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final

_NAME: Final = "rfc3987_syntax"


def import_jsonschema() -> None:
    """Import jsonschema, if it is installed and nobody did so before."""
    if {"jsonschema", _NAME} & sys.modules.keys() or find_spec("jsonschema") is None or find_spec(_NAME) is None:
        return
    stand_in = ModuleType(_NAME)
    stand_in.is_valid_syntax = _is_valid_syntax  # type: ignore[attr-defined]
    sys.modules[_NAME] = stand_in
    try:
        import_module("jsonschema")
    finally:
        if sys.modules.get(_NAME) is stand_in:
            del sys.modules[_NAME]


def _is_valid_syntax(term: str, value: str) -> bool:
    return bool(import_module(_NAME).is_valid_syntax(term, value))
