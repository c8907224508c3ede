"""One page about a preparation: what was found, what was rejected and why, what is kept of the faces.

The page depends on the prepared data alone, so the same data give the same bytes; it says which they are,
and where it says so already no picture is drawn.
"""

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from svdp_jax.media.images import contact_sheet, resize, write_image
from svdp_jax.preparation.contents import digest
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
    thumb: Callable[[], str] = str  # draws a picture, JPEG, base64; may be empty
    made_from: str = ""  # what that depends on


class Report(NamedTuple):
    counts: list[tuple[str, int]]
    rejected: list[Rejected]
    alike: list[tuple[str, str]]  # films
    clips: list[dict]  # one row of the table of clips each
    sheet: Sequence[Callable[[], list[list[np.ndarray]]]]  # each draws rows of the contact sheet, see `row`
    metadata: dict[str, str]  # of the contact sheet
    made_from: list  # what that depends on, as JSON can say it


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
    page, sheet = folder / "report.html", folder / "contact_sheet.png"
    rejected = [(r.name, r.reason, r.made_from) for r in report.rejected]
    told = [report.counts, rejected, report.alike, report.clips, report.metadata, report.made_from]
    head = (
        f'<!doctype html><meta charset="utf-8"><meta name="made-from" content="{digest(told)}">'
        f"<title>Preparation</title><style>{STYLE}</style><h1>Preparation</h1>\n"
    )
    if page.exists() and page.read_text().startswith(head) and sheet.exists() == bool(report.sheet):
        return
    page.unlink(missing_ok=True)
    sheet.unlink(missing_ok=True)
    parts = [_table(["", ""], report.counts)]
    if report.rejected:
        parts += ["<h2>Rejected</h2>", *_reasons(report.rejected)]
    if report.alike:
        said = (html.escape(f"{a} and {b}") for a, b in report.alike)
        parts += ["<h2>Nearly identical videos</h2><p>They do not drive each other.</p>", f"<p>{'; '.join(said)}</p>"]
    if report.sheet:
        write_image(sheet, contact_sheet([row for draw in report.sheet for row in draw()]), report.metadata)
        parts += ["<h2>What is kept</h2>", '<img src="contact_sheet.png" alt="clips and what is kept of their drivers">']
    if report.clips:
        columns = list(report.clips[0])
        parts += ["<h2>Clips</h2>", _table(columns, [[clip[c] for c in columns] for clip in report.clips])]
    write_text(page, head + "\n".join(parts) + "\n")


def _reasons(rejected: list[Rejected]) -> list[str]:
    parts = []
    for reason in sorted({r.reason for r in rejected}):
        of = [r for r in rejected if r.reason == reason]
        shown = [(thumb, r.name) for r in of[:THUMBS] if (thumb := r.thumb())]
        pictures = [f'<img src="data:image/jpeg;base64,{thumb}" title="{html.escape(name)}">' for thumb, name in shown]
        names = ", ".join(html.escape(r.name) for r in of[:THUMBS]) + (", ..." if len(of) > THUMBS else "")
        parts.append(f"<h3>{html.escape(reason)}: {len(of)}</h3><p>{names}</p><p>{''.join(pictures)}</p>")
    return parts


def _table(columns, rows) -> str:
    cells = lambda tag, values: "".join(f"<{tag}>{html.escape(_said(v))}</{tag}>" for v in values)
    lines = [f"<tr>{cells('th', columns)}</tr>"] if any(columns) else []
    return "<table>" + "\n".join(lines + [f"<tr>{cells('td', values)}</tr>" for values in rows]) + "</table>"


def _said(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
