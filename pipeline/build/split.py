"""Split rules: the split is a pure function of the row, so a re-run or a longer log moves no row."""

from datetime import UTC, datetime

from pyspark.sql import Column
from pyspark.sql import functions as F

from pipeline.config import FilesSplit, HashSplit, PipelineConfig, TimeSplit

_DRAWS = float(1 << 53)


def parse_time(text: str) -> int:
    """Parse an ISO date or date-time into Unix seconds; without a zone it is UTC.

    Raises:
        ValueError: it is neither.
    """
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def split_of(config: PipelineConfig, given: Column, seconds: Column, value: Column) -> Column:
    """Compute the split of each row.

    Args:
        config: the rule, and which splits have files of their own: it cuts ``train`` only into the others.
        given: split the row's file was given for.
        seconds: the row's Unix time (time rule).
        value: text of the hash rule's column, or the whole raw row.
    """
    rule = config.split
    own_files = config.inputs()
    if isinstance(rule, FilesSplit):
        return given
    cuts: list[tuple[str, Column]] = []
    if isinstance(rule, TimeSplit):
        if rule.test_from is not None:
            cuts.append(("test", seconds >= parse_time(rule.test_from)))
        cuts.append(("valid", seconds >= parse_time(rule.valid_from)))
    else:
        assert isinstance(rule, HashSplit)
        draw = F.xxhash64(F.lit(rule.salt), F.coalesce(value, F.lit("")))
        share = F.shiftrightunsigned(draw, 11) / F.lit(_DRAWS)  # uniform in [0, 1), 53 bits
        cuts.append(("test", share < rule.test))
        cuts.append(("valid", (share >= rule.test) & (share < rule.test + rule.valid)))
    split = F.lit("train")
    for name, condition in reversed([cut for cut in cuts if cut[0] not in own_files]):
        split = F.when(condition, name).otherwise(split)
    return F.when(given == "train", split).otherwise(given)
