"""What every asset of one migration shares: settings, key prefix, partitions, names of its resources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from neptune_assets.migration_settings import Settings


@dataclass(frozen=True)
class Migration:
    """One migration as the asset modules see it."""

    settings: Settings
    prefix: str
    keys: Sequence[str]

    @property
    def partitions(self) -> dg.StaticPartitionsDefinition:
        """One partition a project, known when the code location loads."""
        return dg.StaticPartitionsDefinition(list(self.keys))

    def key(self, stage: str, name: str) -> dg.AssetKey:
        """Asset key: migration, stage, name."""
        return dg.AssetKey([self.prefix, stage, name])

    @property
    def source(self) -> str:
        """Resource key of the source."""
        return f"{self.prefix}_source"

    @property
    def lake_io(self) -> str:
        """Resource key of the lake's IO manager."""
        return f"{self.prefix}_lake_io"

    @property
    def table_io(self) -> str:
        """Resource key of the IO manager for small tables."""
        return f"{self.prefix}_table_io"

    def pool(self, name: str) -> str:
        """Name of a concurrency pool; migrations side by side do not share theirs."""
        return f"{self.prefix}_{name}"

    def check(self, asset: dg.AssetKey, name: str, description: str, *, blocking: bool = False) -> dg.AssetCheckSpec:
        """Declare a check that an asset evaluates itself, for each project."""
        return dg.AssetCheckSpec(
            name, asset=asset, partitions_def=self.partitions, description=description, blocking=blocking
        )


class RefreshConfig(dg.Config):
    """Run config of assets that skip what is already there."""

    full_refresh: bool = False
    """Read or load everything again, whatever the fingerprints and digests say."""
