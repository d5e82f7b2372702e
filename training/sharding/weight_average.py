"""WeightAverage: an exponential moving average of weights over training steps.

It stands in for lowering the learning rate: the noise of single steps cancels out (docs/results.md says by how much).
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class WeightAverage:
    """Average of some tensors over training steps; integers (counters) are copied.

    Attributes:
        values: name -> average, what a checkpoint keeps.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        """Start at the tensors as they are; ``tensors`` share their memory with the live model."""
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.decay = decay
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self._floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]

    @torch.no_grad()
    def restart(self) -> None:
        """Forget the past: the average is of the tensors as they are now."""
        for name, average in self.values.items():
            average.copy_(self._tensors[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after ``step`` steps: average = d * average + (1 - d) * weights.

        d = min(decay, (1 + step) / (10 + step)), so that the start is forgotten soon.
        """
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        averages = [self.values[name] for name in self._floats]
        torch._foreach_lerp_(averages, [self._tensors[name] for name in self._floats], share)
        for name in self.values.keys() - set(self._floats):
            self.values[name].copy_(self._tensors[name])

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Swap the averaged weights into the live model within this context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.values.items():
            live = self._tensors[name].clone()
            self._tensors[name].copy_(average)
            average.copy_(live)
