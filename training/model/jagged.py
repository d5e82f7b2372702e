"""Rows of any number of values, laid end to end without padding.

Shapes: B rows, N values of all rows, E width of a value.
"""

import torch
from torch import Tensor


def rows_of(lengths_B: Tensor, num_values: int) -> Tensor:
    """Number the row of each value, (N,)."""
    rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
    return torch.repeat_interleave(rows_B, lengths_B, output_size=num_values)


def sum_by(keys_N: Tensor, values_NE: Tensor, num_sums: int) -> Tensor:
    """Add up the values of each key in their order, (num_sums, E); a key without values has zeros."""
    return values_NE.new_zeros(num_sums, values_NE.shape[1]).index_add(0, keys_N, values_NE)
