"""What an evaluation leaves: results.json, a Markdown table, and a page with every clip, worst first.

The page is one file beside its videos; its plots are drawn in it as SVG.
"""

import contextlib
import json
import math
import shutil
from collections.abc import Generator
from html import escape
from itertools import repeat
from pathlib import Path
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from svdp_jax.errors import UserError
from svdp_jax.evaluation import coding
from svdp_jax.evaluation.clips import Clip, frames
from svdp_jax.evaluation.measure import Scored, Scores
from svdp_jax.evaluation.metrics import METRICS, MOST_PSNR, interval
from svdp_jax.media.images import resize, side_by_side
from svdp_jax.media.writer import VideoWriter

SHOWN = ("source", "driving", "result", "reference")  # in the side-by-side videos
SHOWN_HEIGHT = 256  # pixels
PLOT_WIDTH, PLOT_HEIGHT = 260, 90
COLOURS = ("#0b62c4", "#c4440b", "#1d8a3a", "#8a1d7f", "#8a6d1d")  # of methods in plots
ARROWS = {"higher": "↑", "lower": "↓"}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
section { border-top: 2px solid #222; margin-top: 2em } video { max-width: 100%; display: block }
figure { display: inline-block; margin: .5em 1em .5em 0 } figcaption, .note { color: #666; font-size: 13px }
figure.wide { display: block } svg { background: #f7f7f7 }
"""


@contextlib.contextmanager
def whole(folder: Path) -> Generator[Path]:
    """A folder that appears complete or not at all; it replaces one of an earlier evaluation.

    UserError where the folder there holds anything else.
    """
    if folder.exists() and not (folder / "results.json").is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is no evaluation's; name another folder with --output.")
    partial = folder.absolute().with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# --- numbers


def gathered(methods: dict[str, Scores], refused: dict[str, dict[str, str]], skipped: dict[str, dict[str, str]]) -> dict:
    """All figures as JSON holds them.

    methods: by name, its means with intervals, its clips with their values, notes, faults and
    rows per frame, the clips refused and the metrics skipped, with the reasons, and how its files
    and their references are coded.
    """
    return {
        name: {
            "metrics": means(scores),
            "clips": [one_clip(scored) for scored in worst_first(scores.clips)],
            "refused": refused[name],
            "skipped": skipped[name],
            "files": {role: coding.of_role([s.clip for s in scores.clips], role) for role in ("result", "reference")},
        }
        for name, scores in methods.items()
    }


def means(scores: Scores) -> dict[str, dict]:
    """Mean, 95 % bootstrap interval and number of clips by metric."""
    result = {}
    for name in METRICS:
        values = [s.values[name] for s in scores.clips if math.isfinite(s.values.get(name, math.nan))]
        if name in scores.pooled:
            used = sum(name not in s.faults for s in scores.clips)
            samples, dimensions = scores.samples[name]
            result[name] = {"mean": number(scores.pooled[name]), "low": None, "high": None, "clips": used}
            result[name] |= {"samples": samples, "dimensions": dimensions}
        elif values:
            low, high = map(number, interval(np.array(values)))
            result[name] = {"mean": number(float(np.mean(values))), "low": low, "high": high, "clips": len(values)}
    return result


def one_clip(scored: Scored) -> dict:
    clip = scored.clip
    return {
        "name": clip.name,
        "frames": clip.frames,
        "fps": float(clip.fps),
        "size": clip.size,
        "notes": clip.notes,
        "values": {name: number(value) for name, value in scored.values.items()},
        "faults": scored.faults,
        "series": {name: [number(x) for x in rows] for name, rows in scored.series.items()},
    }


def number(x: float) -> float | None:
    """Six significant digits; None for what JSON has no word for."""
    return float(f"{x:.6g}") if math.isfinite(x) else None


def worst_first(clips: list[Scored]) -> list[Scored]:
    """By the mean, over metrics, of a clip's rank among all."""
    badness = np.zeros(len(clips))
    for name, metric in METRICS.items():
        values = np.array([s.values.get(name, math.nan) for s in clips])
        values = -values if metric.better == "higher" else values
        badness += np.nan_to_num((values[:, None] > values[None]).mean(1))
    return [clips[i] for i in np.argsort(-badness, kind="stable")]


def table(results: dict) -> str:
    """Means of all methods as Markdown: a row per metric, a column per method."""
    names = [name for name in METRICS if any(name in m["metrics"] for m in results.values())]
    counts = [f"{method} ({len(m['clips'])} clips)" for method, m in results.items()]
    lines = ["| | " + " | ".join(counts) + " |", "|---" * (1 + len(results)) + "|"]
    for name in names:
        cells = " | ".join(cell(m, name) for m in results.values())
        lines.append(f"| {name} {ARROWS[METRICS[name].better]} | {cells} |")
    return "\n".join(lines)


def cell(method: dict, name: str) -> str:
    """A mean with its interval, and the number of clips where not all have it."""
    entry = method["metrics"].get(name)
    if not entry or entry["mean"] is None:
        return "–"
    text = f"{entry['mean']:.4g}{METRICS[name].unit and ' ' + METRICS[name].unit}"
    if entry["low"] is not None:
        text += f" [{entry['low']:.4g}, {entry['high']:.4g}]"
    return text + (f" of {entry['clips']} clips" if entry["clips"] < len(method["clips"]) else "")


def remarks(results: dict) -> list[str]:
    """What was skipped, refused, and missed by some clips, and what figures hide, a sentence for each reason."""
    skipped, lines = {}, []
    for method, m in results.items():
        for name, reason in m["skipped"].items():
            skipped.setdefault(reason, []).append(name)
        lines += [f"{method}: {name} refused, {reason}." for name, reason in m["refused"].items()]
        faults = {name: [c["faults"][name] for c in m["clips"] if name in c["faults"]] for name in METRICS}
        lines += [
            f"{method}: {name} fails on {len(f)} clips; the first: {f[0].rstrip('.')}." for name, f in faults.items() if f
        ]
        lines += [*few(method, m), *identical(method, m), f"{method}: files are {coding.described(m['files']['result'])}."]
    lines += coding.differences(coded(results))
    return lines + [f"Skipped {', '.join(dict.fromkeys(names))}: {reason}." for reason, names in skipped.items()]


def few(method: str, m: dict) -> list[str]:
    """Where a distance of distributions is of fewer samples than its features have dimensions."""
    pooled = {name: entry for name, entry in m["metrics"].items() if "samples" in entry}
    return [
        f"{method}: {name} is of {e['samples']} windows in {e['dimensions']} dimensions, too few to estimate it: it is biased "
        "upwards, and comparable only with figures of equally many."
        for name, e in pooled.items()
        if e["samples"] <= e["dimensions"]
    ]


def identical(method: str, m: dict) -> list[str]:
    """Where a mean holds frames whose PSNR is infinite."""
    rows = [x for c in m["clips"] for x in c["series"].get("PSNR") or [c["values"].get("PSNR")] if x is not None]
    count = sum(x >= MOST_PSNR for x in rows)
    told = f"{count} of {len(rows)} frames equal the reference; their PSNR is infinite and enters the mean as {MOST_PSNR:g} dB"
    return [f"{method}: {told}."] if count else []


def coded(results: dict) -> dict[str, dict]:
    """How the files of all methods, and of their references, are coded."""
    files = {name: m["files"]["result"] for name, m in results.items()}
    references = [m["files"]["reference"] for m in results.values() if m["files"]["reference"]]
    return files | ({"reference": references[0]} if references else {})


# --- files


def write(folder: Path, results: dict, methods: dict[str, Scores]) -> None:
    """results.json, results.md, report.html and its videos, into an existing folder."""
    watched = [(m, s.clip) for m, scores in methods.items() for s in scores.clips]
    for method, clip in tqdm(watched, desc="Videos of the report", unit="clip"):
        write_shown(folder / shown_path(method, clip.name), clip)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    notes = "".join(f"- {line}\n" for line in remarks(results))
    (folder / "results.md").write_text(f"{table(results)}\n\n{notes}")
    (folder / "report.html").write_text(page(results))


def shown_path(method: str, name: str) -> Path:
    return Path("videos", method, f"{name}.mp4")


def write_shown(path: Path, clip: Clip) -> None:
    """Source, driver, result and truth, as many as there are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    roles = [role for role in SHOWN if role in clip.paths]
    streams = [repeat(next(frames(clip, r))) if r == "source" else frames(clip, r) for r in roles]
    with VideoWriter(path, clip.fps, audio_from=clip.paths["result"]) as writer:
        for pictures in zip(*streams):
            width, height = pictures[0].shape[1::-1]
            first = resize(pictures[0], (round(width * SHOWN_HEIGHT / height), SHOWN_HEIGHT))
            writer.write(side_by_side([first, *pictures[1:]]))


def page(results: dict) -> str:
    """The report as HTML."""
    rows = []
    for name in METRICS:
        if any(name in m["metrics"] for m in results.values()):
            cells = "".join(f"<td class=number>{escape(cell(m, name))}</td>" for m in results.values())
            rows.append(f"<tr><td>{name} {ARROWS[METRICS[name].better]}</td>{cells}</tr>")
    heads = "".join(f"<th>{escape(method)} ({len(m['clips'])} clips)</th>" for method, m in results.items())
    notes = "".join(f"<li>{escape(line)}</li>" for line in remarks(results))
    sections = "".join(section(name, results) for name in clip_names(results))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title><style>{STYLE}</style>"
        f"<h1>Evaluation</h1><p class=note>Means over clips, in brackets 95 % bootstrap intervals. Clips below stand "
        f"worst first. Columns of the videos: {', '.join(SHOWN)}, as far as there are such.</p>"
        f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table><ul class=note>{notes}</ul>{sections}</html>"
    )


def clip_names(results: dict) -> list[str]:
    """All clips, those first that are worst in the first method that has them."""
    return list(dict.fromkeys(clip["name"] for m in results.values() for clip in m["clips"]))


def section(name: str, results: dict) -> str:
    """One clip: its videos, values, notes, and plots of error over time."""
    found = {m: c for m, entry in results.items() for c in entry["clips"] if c["name"] == name}
    videos = "".join(
        f"<figure class=wide><video controls loop muted preload=metadata src='{quote(shown_path(m, name).as_posix())}'></video>"
        f"<figcaption>{escape(m)}</figcaption></figure>"
        for m in found
    )
    heads = "".join(f"<th>{escape(m)}</th>" for m in found)
    rows = "".join(
        f"<tr><td>{metric}</td>{''.join(value(c, metric) for c in found.values())}</tr>"
        for metric in METRICS
        if any(metric in c["values"] or metric in c["faults"] for c in found.values())
    )
    notes = "".join(f"<li>{escape(f'{m}: {note}')}</li>" for m, c in found.items() for note in c["notes"])
    plots = "".join(
        plot(metric, {m: c["series"][metric] for m, c in found.items() if metric in c["series"]})
        for metric in METRICS
        if any(metric in c["series"] for c in found.values())
    )
    return (
        f"<section><h2>{escape(name)}</h2>{videos}<table><tr><th></th>{heads}</tr>{rows}</table>"
        f"<ul class=note>{notes}</ul>{plots}</section>"
    )


def value(clip: dict, metric: str) -> str:
    if metric in clip["faults"]:
        return f"<td class=note>{escape(clip['faults'][metric])}</td>"
    there = clip["values"].get(metric)
    return f"<td class=number>{'–' if there is None else f'{there:.4g}'}</td>"


def plot(title: str, lines: dict[str, list[float | None]]) -> str:
    """Rows over frames as an SVG figure, one line each."""
    values = [x for rows in lines.values() for x in rows if x is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    drawn = "".join(
        f"<polyline fill=none stroke='{colour}' stroke-width=1.5 points='{points(rows, low, high)}'/>"
        for rows, colour in zip(lines.values(), COLOURS * len(lines))
    )
    keys = " ".join(f"<span style='color:{c}'>■</span> {escape(m)}" for m, c in zip(lines, COLOURS * len(lines)))
    return (
        f"<figure><svg width={PLOT_WIDTH} height={PLOT_HEIGHT}>{drawn}</svg>"
        f"<figcaption>{title}, {low:.4g} to {high:.4g} {METRICS[title].unit if title in METRICS else ''}<br>{keys}"
        f"</figcaption></figure>"
    )


def points(rows: list[float | None], low: float, high: float) -> str:
    """Corners of a line through the rows, from the bottom for `low` to the top for `high`."""
    spread = high - low or 1.0
    step = PLOT_WIDTH / max(1, len(rows) - 1)
    return " ".join(
        f"{i * step:.1f},{PLOT_HEIGHT - 4 - (x - low) / spread * (PLOT_HEIGHT - 8):.1f}"
        for i, x in enumerate(rows)
        if x is not None
    )
