"""Answers of the 2.x protocol: JSON that may hold NaN and infinities, and bytes with a name."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from starlette.responses import Response


class Json(Response):
    """JSON as Python writes it: a NaN or an infinity, which 3.x clients may log, is read as such by the 2.x client."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def disposition(name: str) -> dict[str, str]:
    """Return the header by which the client names what it downloads."""
    plain = "".join(letter if 32 <= ord(letter) < 127 and letter not in '"\\/' else "_" for letter in name)
    # The client takes everything after the last `filename=` for the name.
    exact = "" if plain == name else f"filename*=UTF-8''{quote(name, safe='')}; "
    return {"Content-Disposition": f'attachment; {exact}filename="{plain}"'}
