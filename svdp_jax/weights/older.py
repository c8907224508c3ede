"""What older versions stored, as this one names it: they kept the whole position table, y x d, for its one line."""

import jax

TABLE, LINE = "pos_embed.pos_embed", "pos_embed.line"


def line_of(table):
    return table[0, :, : table.shape[-1] // 2]


def stored_name(path: str, stored: dict) -> str:
    """The name below which an array of this version is stored."""
    older = path.removesuffix(LINE) + TABLE
    return older if path.endswith(LINE) and older in stored else path


def renewed(arrays: dict) -> dict:
    """Stored arrays, or their shapes, by dotted path, as this version names them."""
    tables = {path for path in arrays if path.endswith(TABLE)}
    lines = {}
    for path in tables:
        table = arrays[path]
        line = jax.eval_shape(line_of, table) if isinstance(table, jax.ShapeDtypeStruct) else line_of(table)
        lines[path.removesuffix(TABLE) + LINE] = line
    return {path: array for path, array in arrays.items() if path not in tables} | lines
