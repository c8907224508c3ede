"""Reads the text of a compiled program: what chips send to each other."""

import re

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}


def collectives(text: str) -> dict[str, dict[str, float]]:
    """Calls and bytes a chip sends, by kind, of one run of a compiled program's HLO text.

    What is inside a loop counts as often as the loop runs.
    """
    bodies, entry = {}, ""
    for line in text.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if start:
            bodies[start[2]] = here = []
            entry = start[2] if start[1] else entry
        elif line.startswith("  "):
            here.append(line)
    found = {kind: {"calls": 0, "bytes": 0.0} for kind in COLLECTIVES}

    def walk(name: str, times: int):
        for line in bodies.get(name, ()):
            loop = re.search(r"condition=%?([\w.\-]+)", line)
            inner = times * trips(line, bodies.get(loop[1], ())) if loop else times
            for called in re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", line):
                walk(called, inner)
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            for called in re.findall(r"[\w.\-]+", branches[1]) if branches else ():
                walk(called, times)
            call = re.match(rf"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
            if call:
                found[call[2]]["calls"] += times
                found[call[2]]["bytes"] += times * sent(call[2], call[1], line, bool(call[3]))

    walk(entry, 1)
    return {kind: totals for kind, totals in found.items() if totals["calls"]}


def trips(loop: str, condition: list[str]) -> int:
    """How often a loop runs: as it says, or up to the number that its condition compares with."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop)
    bounds = re.findall(r"[su]32\[\]\S* constant\((\d+)\)", "\n".join(condition))
    return int(known[1]) if known else int(bounds[0]) if len(bounds) == 1 else 1


def group_size(line: str) -> int:
    """How many chips take part in one group of a collective."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(tiled[2])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return int(np.prod([int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2])]))
    return 2


def sent(kind: str, shapes: str, line: str, started: bool) -> float:
    """Bytes that one chip sends in a collective, from its result's shapes and its groups."""
    sizes = [
        int(np.prod([int(x) for x in dims.split(",") if x], initial=1)) * WIDTHS.get(dtype, 0)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
    size = sum(sizes) / 2 if started and kind == "all-reduce" and len(sizes) > 1 else (max(sizes) if started else sum(sizes))
    g = group_size(line)
    share = {
        "all-gather": (g - 1) / g, "all-reduce": 2 * (g - 1) / g, "all-to-all": (g - 1) / g,
        "reduce-scatter": (g - 1) if not started else (g - 1) / g, "collective-permute": 1,
    }  # fmt: skip
    return size * share[kind]
