"""Steps are tried again where that may help, and the one that failed is known."""

import pytest

from features.log_format import LogError
from jobs.cli.child_process import ProgramError
from jobs.cli.errors import ConfigError
from jobs.retraining.retry import Steps


class Failing:
    """Fails a number of times, then returns it."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


@pytest.mark.parametrize(
    "error", [ValueError("locked"), OSError("full"), ProgramError("jobs.train", 1), ProgramError("jobs.train", -9)]
)
def test_what_may_pass_is_tried_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    steps, act = Steps(2, 0.0), Failing(error, error)
    assert steps.do("register", act) == 3
    assert "register: another try in 0 s, 1 left" in caplog.text
    act = Failing(error, error, error)
    with pytest.raises(type(error)):
        steps.do("train", act)
    assert act.calls == 3 and steps.current == "train"


@pytest.mark.parametrize(
    "error", [ConfigError("key"), LogError("cut"), ProgramError("jobs.train", 2), TypeError("a defect")]
)
def test_what_stays_wrong_is_not(error: Exception) -> None:
    act = Failing(error)
    with pytest.raises(type(error)):
        Steps(2, 0.0).do("build", act)
    assert act.calls == 1
