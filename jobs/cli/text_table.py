"""text_table: rows of cells as a table for a terminal."""

from collections.abc import Sequence


def text_table(
    rows: Sequence[Sequence[object]], align: str = "<", gap: str = "  ", least: int = 0, most: int | None = None
) -> str:
    """Lay rows out in columns as wide as their widest cell; lines have no trailing blanks.

    Args:
        rows: lists of cells, all of one length; the first is the header, if there is one.
        align: ``<`` or ``>`` for each column; the last one is used for all further columns.
        gap: between two columns.
        least: characters of a column at least.
        most: characters of a column at most; a longer cell is not cut, it shifts the rest of its row.

    Returns:
        One line for each row.
    """
    columns = list(zip(*rows, strict=True))
    sides = align + align[-1] * (len(columns) - len(align))
    widths = [max(least, *(len(str(cell)) for cell in column)) for column in columns]
    limits = [width if most is None else min(width, most) for width in widths]
    lines = (
        gap.join(f"{cell!s:{side}{width}}" for cell, side, width in zip(row, sides, limits, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
