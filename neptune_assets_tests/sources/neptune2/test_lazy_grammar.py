from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from neptune_assets.sources.neptune2.connection import import_jsonschema_lazily

import_jsonschema_lazily()
assert "jsonschema" in sys.modules
assert "rfc3987_syntax" not in sys.modules
import jsonschema

checker = jsonschema.Draft7Validator.FORMAT_CHECKER
checker.check("https://example.org/straße", "iri")
try:
    checker.check("no address at all", "iri")
except jsonschema.FormatError:
    print("refused")
assert sys.modules["rfc3987_syntax"].__file__
import_jsonschema_lazily()
import neptune
"""


def test_the_grammar_is_compiled_by_the_first_check_and_checks_as_before() -> None:
    pytest.importorskip("rfc3987_syntax", reason="only with it there is something to put off")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[0] == "refused"
