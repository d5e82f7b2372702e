"""Odd values: texts that plainly look like something else, counted in a sample of raw rows and told with their cure.

Nothing is changed: ``3.0`` beside ``3``, ``NULL``, spaces around a text and printed lists stay categories of their own
until a setting says otherwise.
"""

import json
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from features.arrow import pc
from features.schema import FeatureSchema, SequencePart, SparseFeature
from features.values import PRINTED_LIST, list_items, texts, tokens

NULL_TOKENS = ("\\N", "NULL", "null", "None", "NA", "N/A", "nan", "NaN", "#N/A", "-")
"""Texts that other programs write for a missing value."""

MIN_SHARE = 0.001
"""Share of a column's values from which on something odd is told."""

OddCounts = Counter[tuple[str, str, str]]
"""(raw column, what it looks like, the text where it matters) -> values; "values" counts all of a column. Counts of
several samples are added."""

_WHOLE, _DOTTED, _FRACTION = r"^-?[0-9]+$", r"^-?[0-9]+\.0+$", r"^-?[0-9]*\.[0-9]*[1-9][0-9]*$"
_MAX_NAMED = 5


def count_odd_values(
    schema: FeatureSchema, columns: Mapping[str, pa.Array], lists: Mapping[str, pa.Array] | None = None
) -> OddCounts:
    """Count odd texts in the columns of features that read texts.

    Args:
        schema: schema of the features; what its settings cure already is not counted.
        columns: raw column -> a sample of its values; columns of other types than text are left out.
        lists: raw column -> lists of text (``RawBlock.lists``).
    """
    counts: OddCounts = Counter()
    seen: set[tuple[str, str | None]] = set()
    for feature in schema.logged:
        if feature.encoding.kind not in ("hash", "vocabulary"):
            continue
        for name in feature.columns:
            array, separator = columns.get(name), _separator(feature)
            if array is None or not _is_text(array.type) or (name, separator) in seen:
                continue
            seen.add((name, separator))
            _count(counts, name, _values(schema, feature, name, array, (lists or {}).get(name), counts))
    return +counts


def _separator(feature: SparseFeature) -> str | None:
    return feature.split_at if isinstance(feature, SequencePart) else feature.separator


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _values(
    schema: FeatureSchema,
    feature: SparseFeature,
    name: str,
    array: pa.Array,
    lists: pa.Array | None,
    counts: OddCounts,
) -> pa.StringArray:
    """Return a column's values as encoding has them; of a feature of lists their items, printed lists left out."""
    found, _ = texts(array, schema.values)
    if schema.values.list_literals and feature.kind.takes_lists:
        return _items(schema, feature, array, lists)
    is_printed = pc.fill_null(pc.match_substring_regex(found, PRINTED_LIST), False)
    printed = pc.sum(is_printed).as_py() or 0
    counts[name, "list" if feature.kind.takes_lists else "list in one value", ""] += printed
    counts[name, "cells", ""] += len(found) - found.null_count
    if not feature.kind.takes_lists:
        return found
    others = found.filter(pc.invert(is_printed))
    parts = None if lists is None else lists.filter(pc.invert(is_printed))
    return _items(schema, feature, others, parts)


def _items(schema: FeatureSchema, feature: SparseFeature, array: pa.Array, lists: pa.Array | None) -> pa.StringArray:
    """Return the items of lists: values of a multi-valued feature, or of the events of a sequence."""
    if not isinstance(feature, SequencePart):
        return tokens(array, lists, feature, schema.values).texts
    return texts(list_items(array, lists, feature.split_at, schema.values).items, schema.values)[0]


def _count(counts: OddCounts, name: str, found: pa.StringArray) -> None:
    found = found.drop_null()
    counts[name, "values", ""] += len(found)
    is_null = pc.is_in(found, value_set=pa.array(NULL_TOKENS))
    for entry in found.filter(is_null).value_counts().to_pylist():
        counts[name, "null", entry["values"]] += entry["counts"]
    for what, pattern in (("whole", _WHOLE), ("dotted", _DOTTED), ("fraction", _FRACTION)):
        counts[name, what, ""] += pc.sum(pc.match_substring_regex(found, pattern)).as_py() or 0
    counts[name, "blank", ""] += pc.sum(pc.not_equal(found, pc.utf8_trim(found, " \t"))).as_py() or 0


def tell_odd_values(counts: OddCounts, schema: FeatureSchema) -> list[str]:
    """Say what is odd, a sentence a kind, with its share and the setting that cures it."""
    names = dict.fromkeys(name for name, _, _ in counts)
    told = []

    def share(name: str, what: str, detail: str = "", of: str = "values") -> float:
        return counts[name, what, detail] / max(counts[name, of, ""], 1)

    nulls = {
        name: {text: share(name, "null", text) for text in NULL_TOKENS if counts[name, "null", text]} for name in names
    }
    nulls = {name: found for name, found in nulls.items() if sum(found.values()) >= MIN_SHARE}
    if nulls:
        known = dict.fromkeys([*schema.values.null_tokens, *(text for found in nulls.values() for text in found)])
        shown = [
            f"{' or '.join(map(_quoted, found))} is {sum(found.values()):.1%} of {n!r}" for n, found in nulls.items()
        ]
        told.append(
            f"{_joined(shown)}: such a text is a category like any other; if it means missing, write "
            f"null_tokens = [{', '.join(map(_quoted, known))}] below [features.values]"
        )
    dotted = {n: share(n, "dotted") for n in names if _is_dotted(counts, n) and share(n, "dotted") >= MIN_SHARE}
    if dotted:
        told.append(
            f"{_shares(dotted)} of values are whole numbers with a point, like '3.0', which is another category than "
            "'3': if they are the same, write whole_floats = true below [features.values]"
        )
    blank = {n: share(n, "blank") for n in names if share(n, "blank") >= MIN_SHARE}
    if blank:
        told.append(
            f"{_shares(blank)} of values have spaces or tabs around them, which makes them other categories: to cut "
            "them off, write strip = true below [features.values]"
        )
    printed = {n: share(n, "list", of="cells") for n in names if share(n, "list", of="cells") >= MIN_SHARE}
    if printed:
        told.append(
            f"{_shares(printed)} of values are printed lists, like '[3, 7]', whose brackets and quotes become parts of "
            "the categories: to read their items, write list_literals = true below [features.values]"
        )
    what = "list in one value"
    alone = {n: share(n, what, of="cells") for n in names if share(n, what, of="cells") >= MIN_SHARE}
    if alone:
        told.append(
            f"{_shares(alone)} of values are printed lists, like '[3, 7]', each of them one category: to read their "
            'items, give the feature separator = "," and write list_literals = true below [features.values]'
        )
    return told


def _is_dotted(counts: OddCounts, name: str) -> bool:
    """Whether a column holds whole numbers, some or all of them with a point; versions like 1.5 beside 2.0 are none."""
    whole, dotted = counts[name, "whole", ""], counts[name, "dotted", ""]
    is_mixed = whole > 0 or dotted == counts[name, "values", ""]
    return dotted > 0 and is_mixed and not counts[name, "fraction", ""]


def _quoted(text: str) -> str:
    """Write a text as TOML does, without escapes where it can be."""
    return f"'{text}'" if text.isprintable() and "'" not in text else json.dumps(text)


def _shares(found: dict[str, float]) -> str:
    return _joined([f"{name!r}: {share:.1%}" for name, share in found.items()])


def _joined(shown: list[str]) -> str:
    more = [f"{len(shown) - _MAX_NAMED} columns more"] if len(shown) > _MAX_NAMED else []
    return ", ".join([*shown[:_MAX_NAMED], *more])
