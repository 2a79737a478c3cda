"""Removes what the demo and the tools left, and names each thing: ``python demo/clean.py [--demo-only]``.

A lake or a server's store is never removed: only the directory that ``make demo`` marked as its own, as long as it
holds the demo's projects and no others, and the caches of Python and of the checks. Exits with 1 if it refused.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

MARKER = ".made-by-make-demo"
CACHES = (".mypy_cache", ".ruff_cache", ".pytest_cache")
OF_OTHERS = {".venv", ".tools", ".git", "data"}


def main() -> int:
    """Remove and list; returns the exit status."""
    parser = argparse.ArgumentParser(description="Remove what the demo and the tools left. Lakes and stores are kept.")
    parser.add_argument("--demo-only", action="store_true", help="leave the caches, and make the demo's directory anew")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the repository")
    arguments = parser.parse_args()
    demo = arguments.root / "data" / "demo"
    if demo.exists():
        reason = kept_because(demo)
        if reason is not None:
            print(f"Not removed: {demo} {reason}. Move it away, or remove it yourself if you no longer need it.")
            return 1
        remove(demo)
    if arguments.demo_only:
        demo.mkdir(parents=True)
        (demo / MARKER).touch()
        return 0
    for cache in caches(arguments.root):
        remove(cache)
    return 0


def kept_because(demo: Path) -> str | None:
    """Return why this directory may be somebody's lake, or None if it is only the demo's."""
    if demo.is_symlink():
        return "is a link to somewhere else"
    if not (demo / MARKER).is_file():
        return "was not made by `make demo`"
    projects = sorted(path.name for data in ("data", "model_data") for path in (demo / data).glob("[!.]*"))
    others = [name for name in projects if not name.startswith("demo_")]
    return f"holds other projects than the demo's ({', '.join(others[:3])})" if others else None


def caches(root: Path) -> Iterator[Path]:
    """Caches of the checks, and compiled Python outside of environments and data."""
    yield from (root / name for name in CACHES if (root / name).is_dir())
    for top in sorted(root.iterdir()):
        if top.is_dir() and not top.is_symlink() and top.name not in OF_OTHERS:
            yield from sorted(top.rglob("__pycache__"))


def remove(path: Path) -> None:
    """Remove a directory and say so."""
    shutil.rmtree(path)
    print(f"removed {path}")


if __name__ == "__main__":
    sys.exit(main())
