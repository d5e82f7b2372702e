"""describe_attribution: the text of an attribution for a terminal."""

from collections.abc import Mapping
from typing import Any


def describe_attribution(found: Mapping[str, Any]) -> str:
    """Lay out the drops of features and branches, the parts of the logit, and the gates.

    Args:
        found: what ``training.ship.attribution.attribute`` returns.
    """
    lines = [f"{found['rows']:,} rows, auc {found['auc']:.5f}, logloss {found['logloss']:.5f}", ""]
    for title, kind in (("feature permuted", "features"), ("branch permuted", "branches")):
        width = max(len(title), *(len(entry["name"]) for entry in found[kind]))
        lines.append(f"{title:{width}}      auc falls by   logloss rises by")
        for entry in found[kind]:
            auc, rise = _with_deviation(entry, "auc_drop"), _with_deviation(entry, "logloss_rise")
            lines.append(f"{entry['name']:{width}}  {auc}  {rise}")
        lines.append("")
    for part in found["parts"]:
        share = part["variance_share"]
        known = "" if share is None else f" and {100 * share:z.1f} % of its variance"
        own = f"; its own auc {part['auc']:.5f}" if part.get("auc") is not None else ""
        lines.append(f"{part['name']}: moves the fused logit by {part['mean_abs_part']:.3f}{known}{own}")
    if found["fusion_weights"]:
        weights = (f"{weight:.3f} {branch}" for branch, weight in found["fusion_weights"].items())
        lines.append(f"the fused logit is {' + '.join(weights)}")
    for gate in found["gates"]:
        width = max(map(len, gate["series"]))
        lines += ["", f"gate, {gate['name']}: mean and deviation, from 0 to {gate['top']}"]
        lines += [f"{name:{width}}  {s['mean']:.3f} +- {s['deviation']:.3f}" for name, s in gate["series"].items()]
    return "\n".join(lines)


def _with_deviation(entry: Mapping[str, Any], name: str) -> str:
    deviation = entry[f"{name}_std"]
    return f"{entry[name]:z8.5f}" + (" " * 10 if deviation is None else f" +- {deviation:.4f} ")
