"""Small PNG pictures for the demo's runs. The same input gives the same bytes, and nothing names the machine."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def confusion_matrix(counts: ArrayLike, names: Sequence[str], title: str) -> bytes:
    """Return a PNG of a confusion matrix: rows are true classes, columns what the model said."""
    from matplotlib.figure import Figure

    matrix = np.asarray(counts)
    figure = Figure(figsize=(2.6, 2.6), dpi=70, layout="tight")
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues")
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            dark = count > matrix.max() / 2
            axes.text(column, row, str(count), ha="center", va="center", fontsize=5, color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names, fontsize=5)
    axes.set_yticks(range(len(names)), names, fontsize=5)
    axes.set_title(title, fontsize=7)
    return _png(figure)


def curve(x: ArrayLike, y: ArrayLike, title: str, x_label: str, y_label: str) -> bytes:
    """Return a PNG of one line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.8, 2.2), dpi=70, layout="tight")
    axes = figure.subplots()
    axes.plot(np.asarray(x), np.asarray(y), linewidth=1)
    axes.set_xlabel(x_label, fontsize=6)
    axes.set_ylabel(y_label, fontsize=6)
    axes.tick_params(labelsize=5)
    axes.set_title(title, fontsize=7)
    return _png(figure)


def _png(figure: object) -> bytes:
    buffer = io.BytesIO()
    # Without this, the picture names the version of matplotlib that drew it.
    figure.savefig(buffer, format="png", metadata={"Software": None})  # type: ignore[attr-defined]
    return buffer.getvalue()
