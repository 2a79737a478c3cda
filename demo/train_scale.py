"""Runs of project demo/vision, recorded by neptune-scale offline: handwritten digits, read by a small network.

Five runs try learning rates; one has a momentum of 9.0 where 0.9 was meant, and its loss runs off to infinity and NaN;
one forks the best run and goes on with a smaller rate.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split

from demo import pictures
from demo.network import Floats, Network
from demo.tally import Tally, number

PROJECT = "demo/vision"
SEED = 20260305
BATCHES = 20  # a whole number of batches in an epoch, so that steps are multiples of 0.05
EPOCHS = 24
FORK_EPOCH = 16
MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Setup:
    """What one run tries."""

    rate: float
    momentum: float = MOMENTUM
    experiment: str = "learning-rate"


SETUPS = {
    "digits-rate-0.003": Setup(0.003),
    "digits-rate-0.01": Setup(0.01),
    "digits-rate-0.03": Setup(0.03),
    "digits-rate-0.1": Setup(0.1),
    "digits-rate-0.3": Setup(0.3),
    "digits-momentum-typo": Setup(0.1, momentum=9.0, experiment="momentum"),
}


class Recorder:
    """A run of neptune-scale, and the tally of what it was given."""

    def __init__(
        self, folder: Path, run_id: str, experiment: str, parent: str | None = None, fork_step: float | None = None
    ) -> None:
        from neptune_scale import Run

        self.tally = Tally(experiment, parent=parent, fork_step=fork_step)
        # Console capture and source tracking would record paths, the user's name and the repository's history.
        self.run = Run(
            project=PROJECT,
            run_id=run_id,
            experiment_name=experiment,
            mode="offline",
            log_directory=folder,
            fork_run_id=parent,
            fork_step=fork_step,
            inherit_configs=True,
            enable_console_log_capture=False,
            source_tracking_config=None,
        )

    def configs(self, data: Mapping[str, Any]) -> None:
        """Log single values of any type."""
        self.run.log_configs(dict(data))
        for path, value in data.items():
            self.tally.value(path, _kind(value), value)

    def metrics(self, data: Mapping[str, float], step: float) -> None:
        """Log one point of some metrics."""
        self.run.log_metrics(dict(data), step=step)
        for path, value in data.items():
            self.tally.point(path, "float_series", step, value)

    def text(self, path: str, line: str, step: float) -> None:
        """Log one line of a string series."""
        self.run.log_string_series({path: line}, step=step)
        self.tally.point(path, "string_series", step, line)

    def histogram(self, path: str, values: Floats, step: float) -> None:
        """Log a histogram of 24 bins; counts on whole epochs, densities on the others."""
        from neptune_scale.types import Histogram

        counts, edges = np.histogram(values, bins=24)
        if int(step) % 2 == 0:
            histogram = Histogram(bin_edges=edges, counts=counts)
        else:
            histogram = Histogram(bin_edges=edges, densities=counts / (counts.sum() * np.diff(edges)))
        self.run.log_histograms({path: histogram}, step=step)
        self.tally.point(path, "histogram_series", step, None)

    def picture(self, path: str, data: bytes, step: float) -> None:
        """Log one PNG of a file series, from memory: a file on disk would be recorded by its absolute path."""
        from neptune_scale.types import File

        self.run.log_files({path: File(data, mime_type="image/png")}, step=step)
        self.tally.point(path, "file_series", step, data)

    def file(self, path: str, data: bytes, mime_type: str, destination: str | None = None) -> None:
        """Attach a file, from memory."""
        from neptune_scale.types import File

        self.run.assign_files({path: File(data, mime_type=mime_type, destination=destination)})
        self.tally.value(path, "file", data)

    def tag(self, tags: list[str], group_tags: list[str]) -> None:
        """Add tags and group tags."""
        self.run.add_tags(tags)
        self.run.add_tags(group_tags, group_tags=True)
        self.tally.tags += tags
        self.tally.group_tags += group_tags


class Digits:
    """The data set, split and scaled once for all runs: 1,400 digits to train on, 397 to validate."""

    def __init__(self) -> None:
        bunch = load_digits()
        split = train_test_split(
            bunch.data / 16.0, bunch.target, train_size=1400, random_state=SEED, stratify=bunch.target
        )
        self.inputs, self.held_inputs, self.labels, self.held_labels = split
        self.names = [str(name) for name in bunch.target_names]


def record(folder: Path) -> dict[str, Tally]:
    """Train and record all runs of the project below a ``.neptune`` folder; returns a tally by run id."""
    digits = Digits()
    tallies: dict[str, Tally] = {}
    scores: dict[str, float] = {}
    forks: dict[str, Network] = {}
    for run_id, setup in SETUPS.items():
        recorder = Recorder(folder, run_id, setup.experiment)
        network = Network.seeded(64, 32, 10, SEED)
        _describe(recorder, setup)
        recorder.tag(["digits", "sweep"] if setup.momentum < 1 else ["digits", "diverged"], ["rates"])
        for epoch in range(EPOCHS):
            _train_epoch(recorder, network, digits, epoch, setup)
            if epoch + 1 == FORK_EPOCH:
                forks[run_id] = network.copy()
        scores[run_id] = _finish(recorder, network, digits)
        tallies[run_id] = recorder.tally
    best = max(forks, key=lambda run_id: scores[run_id])
    tallies["digits-fine-tuned"] = _record_fork(folder, digits, best, forks[best])
    return tallies


def _record_fork(folder: Path, digits: Digits, parent: str, network: Network) -> Tally:
    setup = Setup(SETUPS[parent].rate / 20)
    recorder = Recorder(folder, "digits-fine-tuned", setup.experiment, parent=parent, fork_step=float(FORK_EPOCH))
    note = f"goes on from epoch {FORK_EPOCH} of {parent}"
    recorder.configs({"optimizer/learning_rate": setup.rate, "training/note": note})
    recorder.tag(["digits", "fork"], ["rates", "best"])
    for epoch in range(FORK_EPOCH, EPOCHS + 6):
        _train_epoch(recorder, network, digits, epoch, setup)
    _finish(recorder, network, digits)
    return recorder.tally


def _describe(recorder: Recorder, setup: Setup) -> None:
    recorder.configs(
        {
            "optimizer/name": "gradient descent with momentum",
            "optimizer/learning_rate": setup.rate,
            "optimizer/momentum": setup.momentum,
            "optimizer/nesterov": False,
            "training/epochs": EPOCHS,
            "training/batch_size": 1400 // BATCHES,
            "training/seed": SEED,
            "training/shuffle": True,
            "training/note": "",
            "data/name": "Optical Recognition of Handwritten Digits",
            "data/collected": datetime(1998, 7, 1, tzinfo=UTC),
            "data/classes": [str(digit) for digit in range(10)],
            "model/layers": json.dumps([64, 32, 10]),
            "model/parameters": 64 * 32 + 32 + 32 * 10 + 10,
        }
    )


def _train_epoch(recorder: Recorder, network: Network, digits: Digits, epoch: int, setup: Setup) -> None:
    with np.errstate(all="ignore"):  # the run that diverges is meant to
        steps = network.epoch(
            digits.inputs,
            digits.labels,
            batch_size=1400 // BATCHES,
            rate=setup.rate,
            momentum=setup.momentum,
            seed=SEED + epoch,
        )
        for done in steps:
            recorder.metrics(
                {
                    "batch/loss": done.loss,
                    "batch/accuracy": done.accuracy,
                    "batch/gradient_norm": done.gradient_norm,
                },
                step=round(epoch + (done.batch + 1) / BATCHES, 6),
            )
        loss, accuracy = network.evaluate(digits.inputs, digits.labels)
        held_loss, held_accuracy = network.evaluate(digits.held_inputs, digits.held_labels)
    step = float(epoch + 1)
    recorder.metrics(
        {
            "train/loss": loss,
            "train/accuracy": accuracy,
            "validation/loss": held_loss,
            "validation/accuracy": held_accuracy,
        },
        step=step,
    )
    recorder.text("log", f"epoch {epoch + 1}: validation loss {held_loss:.4f}, accuracy {held_accuracy:.2%}", step)
    for name, weight in zip(("hidden", "output"), network.weights[::2], strict=True):
        if np.isfinite(weight).all() and np.abs(weight).max() < 1e6:
            recorder.histogram(f"weights/{name}", weight, step)
    if (epoch + 1) % 4 == 0:
        said = network.probabilities(digits.held_inputs).argmax(axis=1)
        counts = confusion_matrix(digits.held_labels, said)
        recorder.picture(
            "validation/confusion", pictures.confusion_matrix(counts, digits.names, f"epoch {epoch + 1}"), step
        )


def _finish(recorder: Recorder, network: Network, digits: Digits) -> float:
    loss, accuracy = network.evaluate(digits.held_inputs, digits.held_labels)
    recorder.configs({"result/loss": loss, "result/accuracy": accuracy, "result/diverged": not np.isfinite(loss)})
    card = {"layers": [64, 32, 10], "loss": number(loss), "accuracy": accuracy, "seed": SEED}
    run_id = recorder.run._run_id
    recorder.file("model/card", json.dumps(card, indent=2).encode(), "application/json")
    recorder.file("model/weights", _npz(network), "application/zip", f"vision/{run_id}/weights.npz")
    recorder.run.close()
    return accuracy


def _npz(network: Network) -> bytes:
    buffer = io.BytesIO()
    # Written entry by entry with a fixed time: numpy.savez would stamp the time of the recording.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, weight in zip(("hidden", "hidden_bias", "output", "output_bias"), network.weights, strict=True):
            entry = io.BytesIO()
            np.lib.format.write_array(entry, weight.astype(np.float32), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), entry.getvalue())
    return buffer.getvalue()


def _kind(value: Any) -> str:
    kinds = {bool: "bool", int: "int", float: "float", str: "string", datetime: "datetime", list: "string_set"}
    return kinds[type(value)]
