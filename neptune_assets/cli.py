"""The command ``neptune-assets``."""


def main() -> None:
    """Run it."""
