"""Write runs as event files for TensorBoard."""

from __future__ import annotations

from neptune_assets.plugins import TargetSpec
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.tensorboard.settings import TensorboardSettings


def _open(settings: TensorboardSettings, lake: LakeSettings, scope: Scope) -> Target:
    from neptune_assets.targets.tensorboard.load import TensorboardTarget

    return TensorboardTarget(settings, lake)


TARGET = TargetSpec(
    name="tensorboard",
    title="TensorBoard",
    settings=TensorboardSettings,
    paths=("directory",),
    requires=("google-crc32c", "pillow"),
    install="neptune-assets[tensorboard]",
    description="Runs of one project as event files for TensorBoard, each with its files and an exact copy of its "
    "series beside; every record is read back and compared with the lake.",
    open=_open,
)
