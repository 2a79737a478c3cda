"""neptune_assets: every Neptune.ai run brought home, as Dagster assets. Start at :mod:`neptune_assets.build`.

``neptune_assets.NeptuneMigration`` is the component that ``dg`` lists; Dagster is imported only when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neptune_assets.components.migration import NeptuneMigration

__all__ = ["NeptuneMigration"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from neptune_assets.components import migration

        return getattr(migration, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # `dg` finds components by what it sees here.
    return sorted({*globals(), *__all__})
