"""What of a network's weights learns: a table of rows `PATTERN=HOW`, the first whose pattern is a parameter's name.

HOW is `full`, `frozen`, or `lora:RANK`: frozen, with a low-rank part beside it that learns.
"""

import re
from typing import NamedTuple

from svdp_jax.errors import UserError
from svdp_jax.values.declared import shown

RANK = 16
PRESETS = {
    "all": ".*=full",
    "video": "video_.*=full .*=frozen",
    "adapter": rf"video_.*=full image\.(dual|plain|last)\.(attn2?|ff|ff_context)\..*kernel=lora:{RANK} .*=frozen",
}


class Row(NamedTuple):
    """How the parameters of such names learn; `rank` is that of a low-rank part, 0 where there is none."""

    pattern: str
    how: str
    rank: int


def rows(table: str) -> tuple[Row, ...]:
    """The rows of a preset or of a table as it is written, apart by spaces. UserError for what is none."""
    return tuple(row(written) for written in PRESETS.get(table, table).split())


def row(written: str) -> Row:
    found = re.fullmatch(r"(.+)=(full|frozen|lora:([1-9]\d{0,3}))", written)
    if not found:
        raise UserError(
            f"config.learn: {shown(written)} is neither {', '.join(PRESETS)} nor PATTERN=HOW, with full, frozen or lora:RANK."
        )
    try:
        re.compile(found[1])
    except re.error as error:
        raise UserError(f"config.learn: {shown(found[1])} is no regular expression ({error}).") from None
    return Row(found[1], found[2].partition(":")[0], int(found[3] or 0))


def how(table: tuple[Row, ...], name: str) -> Row:
    """The row of a parameter. UserError where the table has none."""
    found = next((row for row in table if re.fullmatch(row.pattern, name)), None)
    if found is None:
        raise UserError(f"config.learn has no row for {name}; end it with .*=frozen or .*=full.")
    return found


def adapts(table: str) -> bool:
    """Whether anything is frozen, so that what is trained needs a base beneath it."""
    return any(row.how != "full" for row in rows(table))
