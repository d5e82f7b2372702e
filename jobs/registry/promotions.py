"""Promotions: a model's tags that remember which versions were champion; MLflow's alias tells of the last one alone."""

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
"""Of a model, followed by a number: a promotion. Each has a tag of its own, so that none overwrites another."""


@dataclass(frozen=True)
class Promotion:
    """One time that a version became champion."""

    number: int
    version: int
    at: str
    undone: bool = False
    """Rolled back, or never carried out."""
    key: str = field(default="", repr=False)


def read_promotions(model: Any) -> list[Promotion]:
    """What a model's tags say, in the order of their keys, which is that of their numbers."""
    found = sorted((key, json.loads(value)) for key, value in model.tags.items() if key.startswith(PROMOTION_TAG))
    return [
        Promotion(int(key.split(".")[1]), value["version"], value["at"], value["undone"], key) for key, value in found
    ]


def settle(client: "MlflowClient", model: Any) -> Sequence[Promotion]:
    """The promotions that hold, the oldest first and the champion's last.

    A promotion that was killed before the alias changed, or a rollback after it did, left newer ones: they end. A
    champion that another tool made gets a promotion.
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
    """Remember that a version becomes champion."""
    # Numbers and not times: clocks of several machines differ. The rest of the key keeps two at once apart.
    number = max((promotion.number for promotion in read_promotions(client.get_registered_model(name))), default=0) + 1
    made = Promotion(number, version, to_iso(time.time()), key=f"{PROMOTION_TAG}{number:06d}.{uuid.uuid4().hex[:8]}")
    _write(client, name, made, undone=False)
    return made


def undo(client: "MlflowClient", name: str, promotion: Promotion) -> None:
    """Remember that a promotion holds no more."""
    _write(client, name, promotion, undone=True)


def _write(client: "MlflowClient", name: str, promotion: Promotion, undone: bool) -> None:
    value = {"version": promotion.version, "at": promotion.at, "undone": undone}
    client.set_registered_model_tag(name, promotion.key, json.dumps(value))
