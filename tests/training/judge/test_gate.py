"""The gate's rules against numbers worked out by hand and naive ones, and what passes and fails by default."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from training.judge.gate import GateConfig, RuleResult, Verdict, judge
from training.judge.metrics import auc, calibration, logloss, ne
from training.judge.scores import DivergedError, to_probs

N = 20_000
ABSOLUTE = {"finite", "rows", "calibration", "ne"}
RELATIVE = {"auc", "logloss", "score psi"}
OFF = {
    "max_auc_drop": None,
    "max_logloss_rise": None,
    "min_calibration": None,
    "max_calibration": None,
    "max_ne": None,
    "max_segment_rise": None,
    "max_score_psi": None,
    "max_quantized_auc_drop": None,
    "min_class_rows": None,
}


def config(**values: Any) -> GateConfig:
    return TypeAdapter(GateConfig).validate_python({"num_resamples": 50, **values})


def only(**values: Any) -> GateConfig:
    return config(**{**OFF, **values})


def rows(seed: int, n: int = N) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """True logits of about 10 % clicks, labels drawn from them, and the source of more randomness."""
    random = np.random.default_rng(seed)
    truth = random.normal(-2.7, 1.0, n)
    return truth, (random.random(n) < to_probs(truth)).astype(float), random


def noisy(truth: np.ndarray, random: np.random.Generator, deviation: float) -> np.ndarray:
    return truth + random.normal(0, deviation, len(truth))


def rule(verdict: Verdict, name: str) -> RuleResult:
    [found] = [r for r in verdict.rules if r.name == name]
    return found


def failed(verdict: Verdict) -> set[str]:
    return {r.name for r in verdict.rules if not r.passed}


# ------------------------------------------------------------------------------------------------------------- defaults


@pytest.mark.parametrize(("n", "num_seeds"), [(3_000, 40), (12_000, 15)])
def test_an_equally_good_candidate_passes(n: int, num_seeds: int) -> None:
    refused = []
    for seed in range(num_seeds):
        truth, labels, random = rows(seed, n)
        models = [noisy(truth, random, 0.2) for _ in range(2)]
        segments = {"country": random.integers(0, 8, n), "place": random.choice(["top", "side"], n)}
        refused.append(failed(judge(*models, labels, None, config=config(), segments=segments)))
    assert sum(map(bool, refused)) <= 1, refused  # the interval is wrong about one in forty


@pytest.mark.parametrize("better", [0.0, 0.1])
def test_a_better_candidate_passes(better: float) -> None:
    for seed in range(10):
        truth, labels, random = rows(seed)
        assert judge(noisy(truth, random, better), noisy(truth, random, 0.5), labels, None, config=config()).passed


def test_a_clearly_worse_candidate_fails() -> None:
    for seed in range(10):
        truth, labels, random = rows(seed)
        verdict = judge(noisy(truth, random, 0.6), noisy(truth, random, 0.2), labels, None, config=config())
        assert {"auc", "logloss"} <= failed(verdict)
        assert "worse" in rule(verdict, "auc").reason and "worse" in rule(verdict, "logloss").reason


def test_a_champion_is_equally_good_as_itself_in_any_way() -> None:
    truth, labels, _ = rows(0, 3_000)
    for decide_by in ("mean", "worst"):
        strict = config(max_auc_drop=0, max_logloss_rise=0, max_segment_rise=0, max_score_psi=0, decide_by=decide_by)
        verdict = judge(truth, truth, labels, None, config=strict, segments={"all": np.zeros(3_000)})
        assert verdict.passed and rule(verdict, "score psi").candidate == 0


# ------------------------------------------------------------------------------------------------------------ the rules


def test_values_are_the_metrics() -> None:
    truth, labels, random = rows(1)
    weights = random.integers(0, 4, N).astype(float)
    candidate, champion = noisy(truth, random, 0.1), noisy(truth, random, 0.3)
    verdict = judge(candidate, champion, labels, weights, config=config())
    for name, metric in (("auc", auc), ("logloss", logloss), ("ne", ne), ("calibration", calibration)):
        found = rule(verdict, name)
        assert found.candidate == pytest.approx(metric(candidate, labels, weights), abs=1e-12)
        assert found.champion == pytest.approx(metric(champion, labels, weights), abs=1e-12)
    assert {r.name for r in verdict.rules} == ABSOLUTE | RELATIVE


def test_a_drop_beyond_the_limit_that_may_be_luck_passes_by_mean_and_fails_by_worst() -> None:
    truth, labels, random = rows(2, 600)
    champion, candidate = noisy(truth, random, 0.5), noisy(truth, random, 0.6)
    drop = auc(champion, labels) - auc(candidate, labels)  # type: ignore[operator]
    limit = drop / 2
    assert drop > 0.001
    by_mean = judge(candidate, champion, labels, None, config=only(max_auc_drop=limit))
    by_worst = judge(candidate, champion, labels, None, config=only(max_auc_drop=limit, decide_by="worst"))
    assert by_mean.passed and "too little is known" in rule(by_mean, "auc").reason
    assert failed(by_worst) == {"auc"}
    # A limit beyond the interval is kept either way.
    assert judge(candidate, champion, labels, None, config=only(max_auc_drop=0.5, decide_by="worst")).passed


def test_a_clear_drop_within_the_limit_passes() -> None:
    truth, labels, random = rows(3)
    champion, candidate = truth, noisy(truth, random, 0.5)
    drop = auc(champion, labels) - auc(candidate, labels)  # type: ignore[operator]
    rise = logloss(candidate, labels) - logloss(champion, labels)  # type: ignore[operator]
    for factor, expected in ((1.01, set()), (0.99, {"auc", "logloss"})):
        limits = only(max_auc_drop=factor * drop, max_logloss_rise=factor * rise)
        assert failed(judge(candidate, champion, labels, None, config=limits)) == expected


def test_groups_are_drawn_together() -> None:
    """Every row ten times over is no more evidence: a drop that is clear as rows is none as groups."""
    truth, labels, random = rows(7, 1_500)
    champion, candidate = noisy(truth, random, 0.3), noisy(truth, random, 0.4)
    call = [np.tile(x, 10) for x in (candidate, champion, labels)]
    limits = only(max_logloss_rise=0.0)
    assert failed(judge(*call, None, config=limits)) == {"logloss"}
    assert judge(candidate, champion, labels, None, config=limits).passed
    assert judge(*call, None, config=limits, group_ids=np.tile(np.arange(1_500), 10)).passed


def test_calibration_band_by_hand() -> None:
    labels = np.array([1.0, 1.0, 0.0, 0.0])
    logits = np.log(np.array([0.5, 0.5, 0.5, 0.9]) / np.array([0.5, 0.5, 0.5, 0.1]))  # sums: 2.4 over 2
    for low, high, expected in ((0.8, 1.25, True), (0.8, 1.19, False), (1.21, None, False), (None, 1.21, True)):
        band = only(min_calibration=low, max_calibration=high)
        found = rule(judge(logits, None, labels, None, config=band), "calibration")
        assert (found.candidate, found.passed) == (pytest.approx(1.2), expected)
        assert bool(found.reason) != expected
    # The last row weighs as nine: (1.5 + 9 * 0.9) / 2.
    weighted = judge(logits, None, labels, [1, 1, 1, 9], config=only(max_calibration=1.25))
    assert rule(weighted, "calibration").candidate == pytest.approx(4.8)
    assert rule(weighted, "calibration").threshold == "at most 1.25"


def test_less_than_the_label_rate_fails() -> None:
    truth, labels, _ = rows(5)
    rate = np.full(N, np.log(labels.mean() / (1 - labels.mean())))
    assert judge(truth, None, labels, None, config=config()).passed
    assert failed(judge(-truth - 5.4, None, labels, None, config=only(max_ne=1.0))) == {"ne"}
    assert failed(judge(rate, None, labels, None, config=only(max_ne=0.99))) == {"ne"}
    assert rule(judge(rate, None, labels, None, config=config()), "ne").candidate == pytest.approx(1)


def test_score_shift_by_hand() -> None:
    """A champion of a thousand even scores. The candidate leaves two of their tenths for a third."""
    champion = np.arange(1_000) / 100
    candidate = np.where(np.arange(1_000) < 200, 5.5, champion)
    labels = np.tile([0.0, 1.0], 500)
    # A decile is the greatest value of a tenth, and begins the bin above it.
    edges = [champion[100 * k - 1] for k in range(1, 10)]
    mine = [np.histogram(x, [-np.inf, *edges, np.inf])[0] for x in (champion, candidate)]
    assert mine[0].tolist() == [99, *[100] * 8, 101] and mine[1].sum() == 1_000
    p, q = ((m + 0.5) / 1_005 for m in mine)
    expected = sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))
    for limit in (expected - 1e-6, expected + 1e-6):
        found = rule(judge(candidate, champion, labels, None, config=only(max_score_psi=limit)), "score psi")
        assert found.candidate == pytest.approx(expected, abs=1e-9) and found.passed == (limit > expected)
    doubled = judge(candidate, champion, labels, np.full(1_000, 7.0), config=only(max_score_psi=1.0))
    assert rule(doubled, "score psi").candidate == pytest.approx(expected, abs=1e-9)


def test_scores_that_fit_better_may_shift() -> None:
    truth, labels, random = rows(7)
    worse = noisy(truth, random, 2.0)
    for candidate, champion, is_better in ((truth, worse, True), (worse, truth, False)):
        limits = only(max_score_psi=0.01, max_logloss_rise=9.0)
        found = rule(judge(candidate, champion, labels, None, config=limits), "score psi")
        assert found.candidate is not None and found.candidate > 0.01
        assert found.passed == is_better and found.reason.endswith("but fit better") == is_better


def test_segments_against_naive_ones() -> None:
    truth, labels, random = rows(6)
    weights = random.integers(0, 3, N).astype(float)
    country = random.choice(["DE", "FR", "IT", "MT"], N, p=[0.5, 0.3, 0.195, 0.005])
    candidate, champion = noisy(truth, random, 0.1), noisy(truth, random, 0.1)
    candidate = np.where(country == "FR", noisy(truth, random, 1.2), candidate)
    limits = only(max_segment_rise=0.05, min_segment_rows=50)
    verdict = judge(candidate, champion, labels, weights, config=limits, segments={"country": country})
    found = {r.name: r for r in verdict.rules if "=" in r.name}
    assert next(iter(found)) == "country=FR" and set(found) == {"country=DE", "country=FR", "country=IT"}
    for name, result in found.items():
        kept = country == name.removeprefix("country=")
        ours, theirs = (logloss(scores[kept], labels[kept], weights[kept]) for scores in (candidate, champion))
        assert (result.candidate, result.champion) == (pytest.approx(ours), pytest.approx(theirs))
        assert result.passed == (name != "country=FR")
    assert failed(verdict) == {"country=FR"}


def test_a_segment_that_is_worse_by_luck_alone_passes() -> None:
    labels = np.tile([0.0, 1.0], 10)
    champion = np.where(labels == 1, 1.0, -1.0)
    candidate = champion.copy()
    candidate[0] = 3.0  # one row in twenty
    call = dict(segments={"s": np.zeros(20, int)}, config=only(max_segment_rise=0.05, min_segment_rows=10))
    [*_, found] = judge(candidate, champion, labels, None, **call).rules  # type: ignore[arg-type]
    assert found.name == "s=0" and found.passed and found.candidate > 1.4 * found.champion  # type: ignore[operator]
    [*_, found] = judge(0.5 * champion, champion, labels, None, **call).rules  # type: ignore[arg-type]
    assert not found.passed


def test_small_segments_are_not_judged() -> None:
    truth, labels, _ = rows(7, 2_000)
    positives = np.flatnonzero(labels == 1)
    rare = np.zeros(2_000, bool)
    rare[positives[:19]] = rare[np.flatnonzero(labels == 0)[:500]] = True
    for least, expected in ((19, {"rare=False", "rare=True"}), (20, {"rare=False"}), (1_900, {"rare"})):
        limits = only(max_segment_rise=0.0, min_segment_rows=least)
        verdict = judge(truth, truth, labels, None, config=limits, segments={"rare": rare})
        assert {r.name for r in verdict.rules if r.name.startswith("rare")} == expected and verdict.passed
    assert "none of 2 segments" in rule(verdict, "rare").reason


def test_quantised_tables_at_and_beyond_the_limit() -> None:
    """Of 4 positives over 5 negatives one pair is lost: AUC falls by 1 / 20."""
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1.0])
    unquantized = np.array([-5, -4, -3, -2, -1, 1, 2, 3, 4.0])
    served = np.where(unquantized == -1, 1.5, unquantized)
    for limit, expected in ((0.0501, True), (0.0499, False)):
        found = rule(
            judge(served, None, labels, None, config=only(max_quantized_auc_drop=limit), unquantized=unquantized),
            "quantized auc",
        )
        assert (found.passed, found.candidate, found.champion) == (expected, pytest.approx(0.95), None)
        assert (
            found.reason == "-0.050000 from 1.000000" and found.threshold == f"at most {limit:g} lower than unquantized"
        )
    drop = 1.0 - float(found.candidate)  # type: ignore[arg-type]
    at_limit = only(max_quantized_auc_drop=drop)
    assert judge(served, None, labels, None, config=at_limit, unquantized=unquantized).passed
    # A lost pair that weighs nothing is not lost, and a better order is no fall.
    weights = np.where(unquantized == -1, 0.0, 1.0)
    for call in ((served, None, labels, weights), (unquantized, None, labels, None)):
        other = served if call[3] is None else unquantized
        assert judge(*call, config=only(max_quantized_auc_drop=0.0), unquantized=other).passed


def test_quantised_tables_are_judged_only_where_they_are_served() -> None:
    truth, labels, random = rows(16)
    unquantized = noisy(truth, random, 0.05)
    served = noisy(unquantized, random, 0.3)
    assert "quantized auc" not in {r.name for r in judge(served, truth, labels, None, config=config()).rules}
    verdict = judge(served, None, labels, None, config=config(), unquantized=unquantized)
    assert failed(verdict) == {"quantized auc"}
    assert rule(verdict, "quantized auc").candidate == pytest.approx(auc(served, labels), abs=1e-12)
    off = config(max_quantized_auc_drop=None)
    assert judge(served, None, labels, None, config=off, unquantized=unquantized).passed
    # What float16 could not hold is refused, and not held against anything.
    broken = np.where(np.arange(N) < 3, np.nan, served)
    assert failed(judge(broken, None, labels, None, config=config(), unquantized=unquantized)) == {"finite"}
    with pytest.raises(ValueError):
        judge(served, None, labels, None, config=config(), unquantized=unquantized[1:])


# ------------------------------------------------------------------------------------------------------- what is judged


def test_without_a_champion_absolute_rules_decide_alone() -> None:
    truth, labels, _ = rows(8)
    verdict = judge(truth, None, labels, None, config=config(), segments={"all": np.zeros(N)})
    assert {r.name for r in verdict.rules} == ABSOLUTE and verdict.passed
    assert all(r.champion is None for r in verdict.rules)
    assert failed(judge(truth + 0.4, None, labels, None, config=config())) == {"calibration"}


def test_every_rule_can_be_switched_off() -> None:
    truth, labels, random = rows(9, 3_000)
    segments = {"all": np.zeros(3_000)}
    broken = 5 * random.normal(size=3_000)
    names = {
        "max_auc_drop": "auc",
        "max_logloss_rise": "logloss",
        "max_calibration": "calibration",
        "max_ne": "ne",
        "max_segment_rise": "all=0.0",
        "max_score_psi": "score psi",
    }
    assert failed(judge(broken, truth, labels, None, config=config(), segments=segments)) == set(names.values())
    for key, name in names.items():
        verdict = judge(broken, truth, labels, None, config=config(**{key: None}), segments=segments)
        assert failed(verdict) == set(names.values()) - {name}
    off = judge(broken, truth, labels, None, config=only(), segments=segments)
    assert off.passed and {r.name for r in off.rules} == {"finite", "rows"}


@pytest.mark.parametrize(("value", "count"), [(np.nan, 1), (np.inf, 2), (-np.inf, 3)])
def test_a_diverged_candidate_is_refused(value: float, count: int) -> None:
    truth, labels, _ = rows(10, 3_000)
    candidate = truth.copy()
    candidate[:count] = value
    verdict = judge(candidate, truth, labels, None, config=config())
    assert failed(verdict) == {"finite"} and f"{count} of 3000" in rule(verdict, "finite").reason
    with pytest.raises(DivergedError):
        judge(truth, np.full(3_000, np.nan), labels, None, config=config())


def test_too_few_rows_decide_nothing() -> None:
    truth, labels, _ = rows(11, 1_000)
    positives = int(labels.sum())
    for least, expected in ((positives, set()), (positives + 1, {"rows"})):
        assert failed(judge(truth, truth, labels, None, config=config(min_class_rows=least))) == expected
    for label in (0.0, 1.0):
        for settings in (config(), only()):
            verdict = judge(truth, truth, np.full(1_000, label), None, config=settings)
            assert failed(verdict) == {"rows"} and len(verdict.rules) == 2
    # Rows of weight 0 are no evidence.
    assert failed(judge(truth, truth, labels, 1 - labels, config=only())) == {"rows"}


def test_rows_of_weight_0_are_as_if_they_were_not_there() -> None:
    truth, labels, random = rows(12, 4_000)
    candidate, champion, segment = noisy(truth, random, 0.3), noisy(truth, random, 0.2), random.integers(0, 3, 4_000)
    weights = random.integers(0, 2, 4_000).astype(float)
    kept = weights > 0
    settings = config(min_segment_rows=20)
    full = judge(candidate, champion, labels, weights, config=settings, segments={"s": segment}, group_ids=segment)
    part = judge(
        candidate[kept],
        champion[kept],
        labels[kept],
        weights[kept],
        config=settings,
        segments={"s": segment[kept]},
        group_ids=segment[kept],
    )
    assert full == part and len(full.rules) == 10


def test_what_cannot_be_judged_is_refused() -> None:
    truth, labels, _ = rows(13, 100)
    for call in (
        (truth[:50], truth, labels, None),
        (truth, truth[:50], labels, None),
        (truth, truth, labels + 1, None),
        (truth, truth, labels, -labels),
    ):
        with pytest.raises(ValueError):
            judge(*call, config=config())
    with pytest.raises(ValueError, match="segments a, b must have a value"):
        judge(truth, truth, labels, None, config=config(), segments={"a": [1], "ok": truth, "b": labels[1:]})
    for wrong in ({"max_auc": 0.1}, {"max_auc_drop": -1}, {"min_calibration": 1.3}, {"decide_by": "luck"}):
        with pytest.raises(ValidationError):
            config(**wrong)


# -------------------------------------------------------------------------------------------------------- what is shown


def test_json_and_table() -> None:
    truth, labels, random = rows(14)
    segments = {"country": random.integers(0, 7, N), "place": random.integers(0, 2, N)}
    candidate = np.where(segments["country"] == 3, noisy(truth, random, 1.5), truth)
    verdict = judge(candidate, noisy(truth, random, 0.1), labels, None, config=config(), segments=segments)
    tree = verdict.to_json()
    assert json.loads(json.dumps(tree)) == tree and tree["passed"] is verdict.passed is False
    assert rule(verdict, "place=0").threshold == "logloss at most 5 % higher"
    assert [r["name"] for r in tree["rules"]] == [r.name for r in verdict.rules]
    lines = verdict.table().splitlines()
    assert lines[0].split() == ["rule", "candidate", "champion", "threshold"]
    # Of seven countries one failed, and the worst three of the others are shown.
    countries = [line for line in lines if "country=" in line]
    assert [line.split()[0] for line in countries] == ["FAILED", "ok", "ok", "ok"] and "country=3" in countries[0]
    assert "... and 3 segments that are ok" in lines and sum("place=" in line for line in lines) == 2
    assert lines[-1] == f"refused by {len(failed(verdict))} of {len(verdict.rules)} rules"
    assert judge(truth, None, labels, None, config=config()).table().endswith("passed all 4 rules")


def test_the_same_call_gives_the_same_verdict() -> None:
    truth, labels, random = rows(15, 2_000)
    candidate = noisy(truth, random, 0.3)
    assert len({judge(candidate, truth, labels, None, config=config()) for _ in range(2)}) == 1


def test_no_engine_is_imported() -> None:
    code = "import sys, training.judge.gate; print({'torch', 'pyarrow', 'ray', 'pyspark', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
