"""describe_attribution: the text of an attribution for a terminal."""

from collections.abc import Mapping
from typing import Any

from jobs.cli.text_table import text_table
from training.judge.metrics import METRICS, metric_texts


def describe_attribution(found: Mapping[str, Any]) -> str:
    """Lay out the drops of features and branches, the parts of the logit, and the gates.

    Args:
        found: what ``training.ship.attribution.attribute`` returns.
    """
    lines = [", ".join([f"{found['rows']:,} rows", *metric_texts(found, "auc", "logloss")]), ""]
    for title, kind in (("feature permuted", "features"), ("branch permuted", "branches")):
        rows = [(title, "auc falls by", "", "logloss rises by", "")]
        rows += [
            (entry["name"], *_with_deviation(entry, "auc", "drop"), *_with_deviation(entry, "logloss", "rise"))
            for entry in found[kind]
        ]
        lines += [text_table(rows, align="<><><"), ""]
    for part in found["parts"]:
        share = part["variance_share"]
        known = "" if share is None else f" and {100 * share:z.1f} % of its variance"
        own = f"; its own {metric_texts(part, 'auc')[0]}" if part.get("auc") is not None else ""
        lines.append(f"{part['name']}: moves the fused logit by {part['mean_abs_part']:.3f}{known}{own}")
    if found["fusion_weights"]:
        weights = (f"{weight:.3f} {branch}" for branch, weight in found["fusion_weights"].items())
        lines.append(f"the fused logit is {' + '.join(weights)}")
    for gate in found["gates"]:
        lines += ["", f"gate, {gate['name']}: mean and deviation, from 0 to {gate['top']}"]
        series = gate["series"].items()
        lines.append(text_table([(name, f"{s['mean']:.3f} +- {s['deviation']:.3f}") for name, s in series]))
    return "\n".join(lines)


def _with_deviation(entry: Mapping[str, Any], name: str, change: str) -> tuple[str, str]:
    metric, deviation = METRICS[name], entry[f"{name}_{change}_std"]
    return metric.text(entry[f"{name}_{change}"]), "" if deviation is None else f"+- {metric.text(deviation)}"
