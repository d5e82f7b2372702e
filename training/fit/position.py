"""Check that a checkpoint's position means the rows that would be read next."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from training.data.row_order import RowOrder
from training.sharding.checkpoint import Checkpoint
from training.sharding.checkpoint_reader import CheckpointError


class PositionError(ValueError):
    """A checkpoint's position is in another row order; the message names what differs and the cure."""


def check_position(last: Checkpoint, order: RowOrder) -> str | None:
    """Check that training may go on from a checkpoint in a row order.

    Inside an epoch the order must be the checkpoint's own: "step 20 of this epoch" means nothing in another. At the end
    of an epoch a new order is allowed, since the next epoch begins at its first row.

    Args:
        last: the checkpoint to go on from.
        order: of the dataset and the config that training would go on with.

    Returns:
        A warning, where training goes on in another order or the checkpoint (of an earlier version) does not say which
        it had; else None.

    Raises:
        PositionError: the position is inside an epoch of another order.
        CheckpointError: what the checkpoint says of its order is damaged.
    """
    position, is_inside = last.progress, bool(last.progress.get("step_in_epoch"))
    if position.get("order") is None:
        return _unknown(last, position) if is_inside else None
    try:
        before = RowOrder.from_json(position["order"])
    except ValidationError as error:
        raise CheckpointError(
            f"checkpoint {last.path} is damaged (its row order is not understood): delete the folder to go on from the "
            "one before it"
        ) from error
    differences = before.differences(order)
    if not differences:
        return None
    if is_inside:
        raise PositionError(
            f"--resume cannot go on inside an epoch with other rows or another order: since step {last.step:,} (step "
            f"{position['step_in_epoch']:,} of epoch {position['epoch'] + 1}) {'; '.join(differences)}. Set that back "
            f"to go on, or start a new --run"
        )
    return f"from epoch {position['epoch'] + 1} on, training reads another order of rows: {'; '.join(differences)}"


def _unknown(last: Checkpoint, position: Mapping[str, Any]) -> str:
    return (
        f"checkpoint {last.path}, of an earlier version, does not say which rows in which order it has seen "
        f"{position['step_in_epoch']:,} steps of: that they are this dataset's, read as now, cannot be checked"
    )
