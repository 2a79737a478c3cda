"""The layers that docs/architecture.md draws hold, and no module imports itself by way of others, lazily or not."""

from __future__ import annotations

from functools import cache

import grimp

PACKAGE = "neptune_assets"
LAYERS = [
    {
        "assets",
        "audit",
        "automation",
        "build",
        "checks",
        "components",
        "definitions",
        "defs",
        "plan",
        "run_launcher",
        "verify",
    },
    {"summary", "targets", "server", "derived", "testing"},
    {"lake", "sources", "failures", "migration_settings", "plugins"},
]
"""From the top. A layer imports nothing of those above it; what is not named here is below all of them."""
EXCEPTIONS = {
    ("sources.server", "server"),  # reads the server's store with the server's own code
    ("plugins", "targets.protocol"),  # a spec opens what the protocol describes
}


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(PACKAGE, cache_dir=None)


def layer_of(module: str) -> int:
    first = module.split(".")[1] if "." in module else ""
    return next((number for number, names in enumerate(LAYERS) if first in names), len(LAYERS))


def imports() -> list[tuple[str, str]]:
    return [
        (module, imported)
        for module in sorted(graph().modules)
        for imported in sorted(graph().find_modules_directly_imported_by(module))
    ]


def test_no_import_cycle() -> None:
    left = {module: set(graph().find_modules_directly_imported_by(module)) for module in graph().modules}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    while free := [m for m in left if not any(m in imported for other, imported in left.items() if other != m)]:
        for module in free:
            del left[module]
    assert not left, f"these modules import each other: {sorted(left)}"


def test_layers_import_only_what_is_below_them() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imported in imports()
        if module != PACKAGE
        and layer_of(imported) < layer_of(module)
        and not any(f"{PACKAGE}.{a}" in module and f"{PACKAGE}.{b}" in imported for a, b in EXCEPTIONS)
    ]
    assert not wrong, "\n".join(wrong)
