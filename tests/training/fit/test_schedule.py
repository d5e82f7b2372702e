"""The plateau rule on the worked sequence of the published recipe."""

import pytest

from training.config import ScheduleConfig
from training.fit.schedule import Plateau, lower, monitor_value


def test_worked_sequence() -> None:
    config, plateau = ScheduleConfig(), Plateau()
    rate, drops = 1e-3, []
    for evaluation, value in enumerate((0.5, 0.6, 0.6, 0.61, 0.61, 0.61), start=1):
        if not plateau.update(value, step=evaluation, config=config):
            rate = lower(rate, config)
            drops.append(evaluation)
        assert plateau.is_over(config) == (evaluation == 6)
    assert drops == [3, 5, 6]
    assert (plateau.best_step, plateau.best) == (4, 0.61)
    assert rate == pytest.approx(1e-6)


def test_gain_below_min_delta_is_a_failure() -> None:
    plateau = Plateau()
    config = ScheduleConfig(min_delta=1e-6)
    assert plateau.update(0.5, 1, config)
    assert not plateau.update(0.5 + 5e-7, 2, config)
    assert plateau.best == 0.5


def test_learning_rate_has_a_floor_and_never_rises() -> None:
    config = ScheduleConfig(factor=0.1, min_learning_rate=1e-6)
    assert lower(5e-6, config) == 1e-6
    assert lower(1e-7, config) == 1e-7


def test_monitor_weighs_metrics() -> None:
    metrics = {"auc": 0.8, "logloss": 0.4, "gauc": None}
    assert monitor_value(metrics, {"auc": 1.0, "logloss": -0.5}) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="gauc"):
        monitor_value(metrics, {"gauc": 1.0})
