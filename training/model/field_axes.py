"""Labels along the axes of weights that have a place for each field, so that a model with other fields finds its own.

Shapes: F fields.
"""

from collections.abc import Hashable, Sequence

from torch import nn


def field_major(size: int, fields: Sequence[Hashable]) -> list[Hashable]:
    """Label the places of an axis on which each field has neighbouring ones: (field, place in it).

    An axis whose size is no multiple of F is one of hidden units, which have no field: they are labelled by number.

    Args:
        size: places of the axis.
        fields: names of the fields, in the model's order.
    """
    width, rest = divmod(size, len(fields))
    return list(range(size)) if rest else [(field, place) for field in fields for place in range(width)]


class FieldAxes(nn.Module):
    """FieldAxes: base class of blocks with weights that grow with the fields."""

    def axis_labels(self, parameter: str, axis: int, size: int, fields: Sequence[Hashable]) -> list[Hashable]:
        """Label the places of a weight's axis that grows with the fields; see ``field_major``.

        A warm start with other features takes over the places whose labels the old model has too; none: nothing.
        """
        return field_major(size, fields)
