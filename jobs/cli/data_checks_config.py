"""The config section ``[retrain.checks]``: limits that a new dataset must keep to be trained on."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from features.profile.profile import Fraction
from features.schema import STRICT

Action = Literal["stop", "warn"]
Ratio = Annotated[float, Field(gt=0)]


@checked(frozen=True, config=STRICT)
class RowLimits:
    """Limits on the number of rows over the mean of the reference's datasets; None: no limit."""

    min_ratio: Ratio | None = 0.3
    max_ratio: Ratio | None = 3.0
    action: Action = "stop"


@checked(frozen=True, config=STRICT)
class LabelLimits:
    """Limits on the label rate over the reference's; None: no limit."""

    min_ratio: Ratio | None = 0.5
    max_ratio: Ratio | None = 2.0
    both_classes: bool = True
    """Whether there must be rows of both classes: on others no two models can be compared."""
    action: Action = "stop"


@checked(frozen=True, config=STRICT)
class NullLimits:
    """Limit on the rise of the share of missing values over the reference's; None: no limit."""

    max_rise: Fraction | None = 0.1
    action: Action = "stop"


@checked(frozen=True, config=STRICT)
class OovLimits:
    """Limit on the share of non-missing values that are out of the vocabulary; None: no limit."""

    max_rate: Fraction | None = 0.9
    """Highest rate. Renamed keys exceed it; rare values alone do not."""
    action: Action = "stop"


@checked(frozen=True, config=STRICT)
class CategoryLimits:
    """Limits on new categories, among those with at least ``min_count`` values; None: no limit."""

    max_value_share: Fraction | None = 0.5
    """Share of values that belong to new categories."""
    max_share: Fraction | None = None
    """Share of categories that are new, each counted once."""
    min_count: Annotated[int, Field(ge=1)] = 10
    """Count below which a category is not considered: most of a long tail is new every day."""
    action: Action = "stop"


@checked(frozen=True, config=STRICT)
class DriftLimits:
    """Limit on the distance between a feature's distribution and the reference's; None: no limit."""

    distance: Literal["psi", "js"] = "psi"
    """Distance to use. psi: population stability index. js: Jensen-Shannon divergence in bits."""
    max_distance: Annotated[float, Field(ge=0)] | None = 0.25
    action: Action = "warn"
    """Action beyond the limit; a warning, because catalogues and campaigns change every day without a fault."""


@checked(frozen=True, config=STRICT)
class FeatureLimits:
    """Limits of one feature; None: the general limit."""

    max_null_rise: Fraction | None = None
    max_oov_rate: Fraction | None = None
    max_new_value_share: Fraction | None = None
    max_new_share: Fraction | None = None
    max_distance: Annotated[float, Field(ge=0)] | None = None


@checked(frozen=True, config=STRICT)
class DataChecksConfig:
    """Data checks: limits that a new dataset must keep to be trained on."""

    rows: RowLimits = field(default_factory=RowLimits)
    labels: LabelLimits = field(default_factory=LabelLimits)
    nulls: NullLimits = field(default_factory=NullLimits)
    oov: OovLimits = field(default_factory=OovLimits)
    categories: CategoryLimits = field(default_factory=CategoryLimits)
    drift: DriftLimits = field(default_factory=DriftLimits)
    features: dict[str, FeatureLimits] = field(default_factory=dict)
    """Per-feature limits; a value given here replaces the general one."""
