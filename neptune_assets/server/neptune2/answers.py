"""Answers of the 2.x protocol: JSON that may hold NaN and infinities, and bytes with a name."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import quote

from starlette.responses import Response


class Json(Response):
    """JSON, with a NaN or an infinity, which 3.x clients may log and variances may come to, as text.

    The client reads JSON with simplejson, which refuses them bare, and makes numbers of texts where numbers belong.
    """

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body."""
        try:
            text = _written(content)
        except ValueError:
            text = _written(_finite(content))
        return text.encode("utf-8", "surrogatepass")


def _written(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def disposition(name: str) -> dict[str, str]:
    """Return the header by which the client names what it downloads."""
    plain = "".join(letter if 32 <= ord(letter) < 127 and letter not in '"\\/' else "_" for letter in name)
    # The client takes everything after the last `filename=` for the name.
    exact = "" if plain == name else f"filename*=UTF-8''{quote(name, safe='')}; "
    return {"Content-Disposition": f'attachment; {exact}filename="{plain}"'}
