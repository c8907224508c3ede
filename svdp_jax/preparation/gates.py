"""What a clip must fulfil: one table. The first gate that a clip fails is the reason of its rejection.

Facts come from `preparation.shots` and, for sharpness, from `preparation.crops`; a gate whose fact is not yet
known lets pass.
"""

from typing import NamedTuple

from svdp_jax.errors import UserError

ANY = float("inf")


class Gate(NamedTuple):
    fact: str
    least: float
    most: float
    reason: str
    meaning: str


GATES = (
    Gate("found", 0.9, ANY, "no face", "share of the frames in which the face is seen"),
    Gate("seconds", 1.0, ANY, "too short", "length of the clip"),
    Gate("faces", 0, 1, "several faces", "faces at least half as large as the largest"),
    Gate("face", 64, ANY, "face too small", "size of the face in pixels of the video"),
    Gate("yaw", 0, 40, "turned away", "degrees, reached in a twentieth of the frames"),
    Gate("frozen", 0, 0.3, "frozen or doubled frames", "share of the frames that repeat the one before"),
    Gate("sharpness", 0.02, ANY, "blurred", "energy of fine detail in the face, as a share of all contrast"),
)


def limited(limits: list[str]) -> tuple[Gate, ...]:
    """The table with changed limits, each given as fact=least or fact=least:most."""
    gates = {gate.fact: gate for gate in GATES}
    for limit in limits:
        fact, equals, values = limit.partition("=")
        least, _, most = values.partition(":")
        try:
            if not equals:
                raise ValueError
            gates[fact] = gates[fact]._replace(least=float(least or -ANY), most=float(most or ANY))
        except (KeyError, ValueError):
            raise UserError(f"--limit {limit}: give fact=least or fact=least:most; facts are {', '.join(gates)}.") from None
    return tuple(gates.values())


def rejection(facts: dict[str, float], gates: tuple[Gate, ...] = GATES) -> str:
    """Why a clip with these facts is rejected; empty where it passes."""
    return next((g.reason for g in gates if g.fact in facts and not g.least <= facts[g.fact] <= g.most), "")


def described() -> str:
    """The table for --help."""
    rows = (f"  {g.fact:10} {g.least:g} .. {g.most:g}".ljust(26) + f"{g.meaning} ({g.reason})" for g in GATES)
    return "\n".join(rows)
