"""A table as lines of text."""

from collections.abc import Sequence


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column on the left, the others on the right; as wide as what stands in them.

    >>> aligned(["alpha", "test"], [["0", "0.412"]])
    ['alpha   test', '0      0.412']
    """
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return ["  ".join(cell.rjust(wide) if i else cell.ljust(wide)
                      for i, (cell, wide) in enumerate(zip(line, widths, strict=True)))
            for line in (heads, *rows)]  # fmt: skip
