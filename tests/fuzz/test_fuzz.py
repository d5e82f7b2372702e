"""A few hundred inputs a target, so that the loaders stay honest; ``python -m tests.fuzz`` does the many."""

import pytest

from tests.fuzz.child import run_in_a_process
from tests.fuzz.targets import TARGETS
from tests.fuzz.twins import FORMATS, fuzz_twins


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_and_little_memory(name: str) -> None:
    outcome = run_in_a_process(name, inputs=300, seed=7)
    assert outcome["defects"] == {}
    assert outcome["inputs"] == 300
    assert outcome["accepted"] and outcome["refused"], "inputs of one kind alone test nothing"
    assert outcome["grown"] < 100 << 20


def test_blocks_and_lines_agree_on_odd_lines() -> None:
    outcome = fuzz_twins(1_200, seed=7)
    assert outcome.defects == {}
    assert outcome.inputs == 1_200 and outcome.accepted > 100
    assert set(outcome.refused) >= {"badly quoted", "wrong number of columns", "not a JSON object", "not UTF-8 text"}
    assert len(FORMATS) == 6
