"""Drift of a generated world: each day brings new users and ads, moves places, and shifts tastes and effects.

A model of yesterday is therefore worse today, by an amount that is known as exactly as everything else of the world.
"""

import numpy as np

from pipeline.synthetic.world import FloatArray, World

ARROWS = ("category_appeal", "interest_taste", "place_taste", "age_taste", "gender_taste")
"""Tastes and appeals: they turn and keep their length."""

EFFECTS = (
    "device_creative", "daypart_place", "category_effect", "place_category_effect", "device_effect", "slot_effect",
    "country_effect", "advertiser_effect", "campaign_effect", "profile_effect", "ad_effect", "place_effect",
)  # fmt: skip
"""Terms of the logit that are added up; they wander and keep their spread."""


def let_a_day_pass(world: World, drift: float, rng: np.random.Generator) -> None:
    """Advance the world by one day.

    Args:
        drift: from 0 to 1: this share of users and ads is replaced by new ones, every arrow turns by about so many
            radians, and an effect a day later has a correlation of sqrt(1 - drift ** 2) with what it was.
    """
    world.renewals += drift
    popularity = np.log(np.arange(1, world.num_places + 1)) + drift * rng.normal(size=world.num_places)
    world.place_of_rank = world.place_of_rank[np.argsort(popularity, kind="stable")]
    for name in ARROWS:
        setattr(world, name, _turn(getattr(world, name), drift, rng))
    for name in EFFECTS:
        setattr(world, name, _wander(getattr(world, name), drift, rng))


def _turn(arrows: FloatArray, drift: float, rng: np.random.Generator) -> FloatArray:
    """Vectors (n, 2), each turned by a random angle."""
    angles = drift * rng.normal(size=len(arrows))
    cos, sin = np.cos(angles), np.sin(angles)
    x, y = arrows.T
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)


def _wander(effects: FloatArray, drift: float, rng: np.random.Generator) -> FloatArray:
    """Values a step on, with the mean and the spread that they had."""
    steps = rng.normal(size=effects.shape)
    moved = np.sqrt(1 - drift**2) * (effects - effects.mean()) + drift * effects.std() * steps
    moved -= moved.mean()
    return effects.mean() + moved * (effects.std() / moved.std())
