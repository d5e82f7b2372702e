"""WeightAverage against its formula, written out."""

import pytest
import torch
from torch import nn

from training.sharding.weight_average import WeightAverage


def test_the_average_is_its_formula_and_counters_are_copied() -> None:
    model = nn.BatchNorm1d(3)
    average = WeightAverage(model.state_dict(), decay=0.6)
    expected = torch.ones(3)
    for step in range(1, 9):
        with torch.no_grad():
            model.weight.copy_(torch.full((3,), float(step**2)))
            model.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess]
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step**2
        torch.testing.assert_close(average.values["weight"], expected)
    assert int(average.values["num_batches_tracked"]) == 8
    assert (1 + 8) / (10 + 8) < 0.6 < (1 + 16) / (10 + 16)  # the first steps are the warm-up's


def test_swapping_is_undone_even_after_an_error() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    average = WeightAverage(model.state_dict(), decay=0.9)
    with torch.no_grad():
        model.weight.add_(1)
    after = model.weight.detach().clone()
    with pytest.raises(RuntimeError), average.swapped():
        assert torch.equal(model.weight, before) and torch.equal(average.values["weight"], after)
        raise RuntimeError
    assert torch.equal(model.weight, after) and torch.equal(average.values["weight"], before)
