"""neptune_assets: every Neptune.ai run brought home, as Dagster assets. Start at :mod:`neptune_assets.build`."""
