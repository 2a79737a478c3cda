"""A small neural network in numpy, trained step by step, so that the demo's runs are real training.

It is written out here because the recordings need what scikit-learn hides: the loss of every batch, the weights of
every layer, a state to fork from, and a loss that is allowed to run off to infinity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """One batch: its number within the epoch, and the loss, accuracy and gradient norm met on it."""

    batch: int
    loss: float
    accuracy: float
    gradient_norm: float


@dataclass
class Network:
    """One hidden layer of ReLU units and a softmax, trained by gradient descent with momentum.

    ``weights`` holds [hidden matrix, hidden bias, output matrix, output bias] and ``speeds`` the momentum of each.
    """

    weights: list[Floats]
    speeds: list[Floats] = field(default_factory=list)

    @classmethod
    def seeded(cls, inputs: int, hidden: int, classes: int, seed: int) -> Network:
        """Return a network with weights drawn from the seed: He's scheme, biases zero."""
        generator = np.random.default_rng(seed)
        weights = [
            generator.normal(0.0, np.sqrt(2.0 / inputs), (inputs, hidden)),
            np.zeros(hidden),
            generator.normal(0.0, np.sqrt(2.0 / hidden), (hidden, classes)),
            np.zeros(classes),
        ]
        return cls(weights, [np.zeros_like(weight) for weight in weights])

    def copy(self) -> Network:
        """Return an independent network in the same state, for a fork to go on from."""
        return Network([weight.copy() for weight in self.weights], [speed.copy() for speed in self.speeds])

    def probabilities(self, inputs: Floats) -> Floats:
        """Return the probability of every class: (samples, classes)."""
        hidden = np.maximum(inputs @ self.weights[0] + self.weights[1], 0.0)
        return _softmax(hidden @ self.weights[2] + self.weights[3])

    def evaluate(self, inputs: Floats, labels: Labels) -> tuple[float, float]:
        """Return mean cross-entropy (inf or NaN once the weights have run off) and accuracy."""
        probabilities = self.probabilities(inputs)
        return _cross_entropy(probabilities, labels), float((probabilities.argmax(axis=1) == labels).mean())

    def epoch(
        self, inputs: Floats, labels: Labels, *, batch_size: int, rate: float, momentum: float, seed: int
    ) -> Iterator[Step]:
        """Train on all samples once, in an order drawn from the seed, and yield what happened on every batch."""
        order = np.random.default_rng(seed).permutation(len(labels))
        for batch, start in enumerate(range(0, len(order), batch_size)):
            chosen = order[start : start + batch_size]
            yield self._descend(batch, inputs[chosen], labels[chosen], rate, momentum)

    def _descend(self, batch: int, inputs: Floats, labels: Labels, rate: float, momentum: float) -> Step:
        before = inputs @ self.weights[0] + self.weights[1]
        hidden = np.maximum(before, 0.0)
        probabilities = _softmax(hidden @ self.weights[2] + self.weights[3])
        loss = _cross_entropy(probabilities, labels)
        accuracy = float((probabilities.argmax(axis=1) == labels).mean())
        error = probabilities.copy()
        error[np.arange(len(labels)), labels] -= 1.0
        error /= len(labels)
        back = (error @ self.weights[2].T) * (before > 0.0)
        gradients = [inputs.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
        for weight, speed, gradient in zip(self.weights, self.speeds, gradients, strict=True):
            speed *= momentum
            speed -= rate * gradient
            weight += speed
        norm = float(np.sqrt(sum(float((gradient**2).sum()) for gradient in gradients)))
        return Step(batch, loss, accuracy, norm)


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def _cross_entropy(probabilities: Floats, labels: Labels) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())
