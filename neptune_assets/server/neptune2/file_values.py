"""Files as clients see them: name, extension, and what kind of content it is."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from typing import Any, Final

_EXTENSIONS: Final = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/svg+xml": "svg",
    "text/html": "html",
    "application/octet-stream": "bin",
}


def mime_of_content(content: bytes) -> str | None:
    """Return what the first bytes say that the content is; None if they say nothing."""
    import filetype

    return filetype.guess_mime(content[:262]) if content else None


def mime_of_extension(extension: str) -> str:
    """Return the type of files with this extension; that of unknown bytes where there is none."""
    return mimetypes.guess_type(f"x.{extension}")[0] or "application/octet-stream"


def extension_of_mime(mime: str) -> str:
    """Return the extension for a type of content."""
    return _EXTENSIONS.get(mime) or (mimetypes.guess_extension(mime) or ".bin").lstrip(".")


def extension_of(value: Mapping[str, Any]) -> str:
    """Return the extension of a file's value: as the client gave it, else what its place ends in."""
    if isinstance(value.get("ext"), str):
        return str(value["ext"])
    name = str(value.get("path") or "").rpartition("/")[2]
    return name.rpartition(".")[2] if "." in name else ""


def download_name(attribute: str, extension: str) -> str:
    """Return the name that a file is saved under if the client is not told another: the attribute's own name."""
    name = attribute.rpartition("/")[2]
    return f"{name}.{extension}" if extension else name
