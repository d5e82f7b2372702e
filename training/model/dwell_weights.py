"""DwellWeights: how long users stayed at events -> how much each event counts in its row's history.

Shapes: B rows, N events of all rows, V ids of dwell times.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from features.dwell import weights_by_id
from features.schema import FeatureSchema
from training.model.jagged import rows_of


class DwellWeights(nn.Module):
    """log(1 + seconds) of each event, as long as the cut-off at most, by ids of dwell times; 0: not known.

    There is nothing to train: ids are looked up in a buffer, which checkpoints and artifacts have, and with it the
    cut-off that the training split had.

    Args:
        schema: the features; sequences with ``dwell_weights`` have weights.
        cut_offs: sequence -> largest id that counts; of one that is absent, and until a checkpoint says it, all do.
    """

    def __init__(self, schema: FeatureSchema, cut_offs: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self._keys = {s.name: s.dwell_column for s in schema.sequence if s.dwell_column is not None}
        for name in self._keys:
            weights_V = torch.tensor(weights_by_id((cut_offs or {}).get(name)), dtype=torch.float32)
            self.register_buffer(name, weights_V)

    def forward(self, sparse_features: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Look up the weights of a batch: sequence -> (N,), in the order of its events."""
        return {
            name: self.get_buffer(name).index_select(0, sparse_features[key].values())
            for name, key in self._keys.items()
        }


def mean_one(weights_N: Tensor, lengths_B: Tensor) -> Tensor:
    """Divide weights by their row's mean, (N, 1); one that is not known (0) becomes 1, as its row's mean does.

    Sums in float64 have no rounding, whatever the order of the events; so equal weights become 1 to the last bit.
    """
    rows_N, is_known_N = rows_of(lengths_B, len(weights_N)), weights_N > 0
    exact_N = weights_N.double()
    sums_B = exact_N.new_zeros(len(lengths_B)).index_add(0, rows_N, exact_N)
    counts_B = exact_N.new_zeros(len(lengths_B)).index_add(0, rows_N, is_known_N.double())
    means_B = sums_B / counts_B.clamp(min=1)
    divided_N = exact_N / means_B.index_select(0, rows_N)
    return torch.where(is_known_N, divided_N, 1.0).float().unsqueeze(1)
