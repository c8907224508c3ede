"""One page about a preparation: what was found, what was rejected and why, what is kept of the faces.

The page depends on the prepared data alone, so the same data give the same bytes.
"""

import base64
import html
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from svdp_jax.media.images import contact_sheet, resize, write_image
from svdp_jax.preparation.encode import write_text

SHOWN = 12  # clips on the contact sheet
ACROSS = 6  # frames of each
SIDE = 128  # pixels of a frame there
THUMBS = 12  # pictures for each reason
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}"
    "img{max-width:100%;margin:2px}code{background:#eee}"
)


class Rejected(NamedTuple):
    name: str
    reason: str
    thumb: str  # JPEG, base64; may be empty


class Report(NamedTuple):
    counts: list[tuple[str, int]]
    rejected: list[Rejected]
    clips: list[dict]  # one row of the table of clips each
    rows: list[list[np.ndarray]]  # of the contact sheet, see `row`
    metadata: dict[str, str]  # of the contact sheet


def thumbnail(image: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()).decode()


def row(frames: list[np.ndarray]) -> list[np.ndarray]:
    """Some frames of one clip, small enough for the sheet."""
    return [resize(frame, (SIDE, SIDE)) for frame in frames]


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices below `count`, evenly."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(wanted, count))})


def write(folder: Path, report: Report) -> None:
    """`report.html`, and `contact_sheet.png` where there are clips."""
    parts = [_table(["", ""], report.counts)]
    if report.rejected:
        parts += ["<h2>Rejected</h2>", *_reasons(report.rejected)]
    if report.rows:
        sheet = contact_sheet(report.rows)
        write_image(folder / "contact_sheet.png", sheet, report.metadata)
        parts += ["<h2>What is kept</h2>", '<img src="contact_sheet.png" alt="clips and what is kept of their drivers">']
    if report.clips:
        columns = list(report.clips[0])
        parts += ["<h2>Clips</h2>", _table(columns, [[clip[c] for c in columns] for clip in report.clips])]
    body = "\n".join(parts)
    page = (
        f'<!doctype html><meta charset="utf-8"><title>Preparation</title><style>{STYLE}</style><h1>Preparation</h1>\n{body}\n'
    )
    write_text(folder / "report.html", page)


def _reasons(rejected: list[Rejected]) -> list[str]:
    parts = []
    for reason in sorted({r.reason for r in rejected}):
        of = [r for r in rejected if r.reason == reason]
        pictures = [
            f'<img src="data:image/jpeg;base64,{r.thumb}" title="{html.escape(r.name)}">' for r in of[:THUMBS] if r.thumb
        ]
        names = ", ".join(html.escape(r.name) for r in of[:THUMBS]) + (", ..." if len(of) > THUMBS else "")
        parts.append(f"<h3>{html.escape(reason)}: {len(of)}</h3><p>{names}</p><p>{''.join(pictures)}</p>")
    return parts


def _table(columns, rows) -> str:
    cells = lambda tag, values: "".join(f"<{tag}>{html.escape(_said(v))}</{tag}>" for v in values)
    lines = [f"<tr>{cells('th', columns)}</tr>"] if any(columns) else []
    return "<table>" + "\n".join(lines + [f"<tr>{cells('td', values)}</tr>" for values in rows]) + "</table>"


def _said(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
