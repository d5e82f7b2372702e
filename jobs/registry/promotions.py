"""Promotion history of a model, kept in its tags, because MLflow's alias has the current champion alone."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.registry.model_versions import read_champion, to_iso

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROMOTION_TAG = "promotion."
"""Prefix of a tag of a model: one promotion. Each has its own tag, so that none overwrites another."""


@dataclass(frozen=True)
class Promotion:
    """Promotion of a version to champion."""

    number: int
    version: int
    at: str
    undone: bool = False
    """Whether it was rolled back, or never carried out."""
    key: str = field(default="", repr=False)


def read_promotions(model: Any) -> list[Promotion]:
    """Read the promotions in a model's tags, in the order of their numbers."""
    found = sorted((key, json.loads(value)) for key, value in model.tags.items() if key.startswith(PROMOTION_TAG))
    return [
        Promotion(int(key.split(".")[1]), value["version"], value["at"], value["undone"], key) for key, value in found
    ]


def settle(client: "MlflowClient", model: Any) -> Sequence[Promotion]:
    """Reconcile the promotions with the champion alias; return those in force, the oldest first, the champion's last.

    A promotion killed before it set the alias, and a rollback killed after it, leave promotions newer than the
    champion's: these are marked undone. A champion that another tool made gets a promotion.
    """
    promotions = [promotion for promotion in read_promotions(model) if not promotion.undone]
    serving = read_champion(model)
    if serving is None:
        return promotions
    places = [i for i, promotion in enumerate(promotions) if promotion.version == serving]
    if not places:
        return [*promotions, record(client, model.name, serving)]
    for promotion in promotions[places[-1] + 1 :]:
        undo(client, model.name, promotion)
    return promotions[: places[-1] + 1]


def record(client: "MlflowClient", name: str, version: int) -> Promotion:
    """Record the promotion of a version."""
    # Numbers and not times: clocks of several machines differ. The rest of the key keeps two at once apart.
    number = max((promotion.number for promotion in read_promotions(client.get_registered_model(name))), default=0) + 1
    made = Promotion(number, version, to_iso(time.time()), key=f"{PROMOTION_TAG}{number:06d}.{uuid.uuid4().hex[:8]}")
    _write(client, name, made, undone=False)
    return made


def undo(client: "MlflowClient", name: str, promotion: Promotion) -> None:
    """Mark a promotion as undone."""
    _write(client, name, promotion, undone=True)


def _write(client: "MlflowClient", name: str, promotion: Promotion, undone: bool) -> None:
    value = {"version": promotion.version, "at": promotion.at, "undone": undone}
    client.set_registered_model_tag(name, promotion.key, json.dumps(value))
