"""One film is one film: copies by their content, nearly identical ones by how they look.

A copy under another name is left out, since it would be another person who drives the first with the same
pictures. A film that was only compressed, resized or shortened anew has other bytes; of each film a few
frames spread over its length are hashed perceptually (the signs of the lowest frequencies of a cosine
transform), and two films of which these agree do not drive each other. So do not two clips of one take.
"""

from collections.abc import Iterator

import cv2
import numpy as np

from svdp_jax.preparation.ingest import Source

SIDE, LOW = 32, 8  # pixels of the copy that is transformed; frequencies kept of it each way
FRAMES = 8  # hashed of a film
# Share of bits that differ. Of two real clips, copies that were resized, brightened, compressed, thinned out or shortened
# differ in 0.07 at most, the two people in 0.28; a copy without 5 % of each side differs in 0.3 and is not recognised.
ALIKE = 0.16
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing


def distinct(sources: list[Source]) -> tuple[list[Source], list[tuple[str, str]]]:
    """Each film once, by name, and of the others the name and that of the film they are.

    Parts of one film that a list gives to several people are of one person.
    """
    kept, copies, first, people = [], [], {}, {}
    for source in sorted(sources):
        there = source.content not in ("", EMPTY)  # files whose download has not begun are not one film
        same = first.setdefault((source.content, source.segments), source) if there else source
        if same is not source:
            copies.append((source.name, same.name))
            continue
        person = people.setdefault(source.content, source.person) if there else source.person
        kept.append(source._replace(person=person))
    return kept, copies


class Look:
    """Hashes of frames evenly spread over a film whose length is not known before its end."""

    def __init__(self):
        self.hashes, self.every, self.count = [], 1, 0

    def see(self, image: np.ndarray) -> None:
        if self.count % self.every == 0:
            self.hashes.append(perceptual_hash(image))
            if len(self.hashes) == 4 * FRAMES:
                self.hashes, self.every = self.hashes[::2], 2 * self.every
        self.count += 1

    def hex(self) -> str:
        """FRAMES hashes, one after the other; "" of a film without a frame."""
        if not self.hashes:
            return ""
        where = np.linspace(0, len(self.hashes) - 1, FRAMES).round().astype(int)
        return "".join(f"{self.hashes[i]:016x}" for i in where)


def perceptual_hash(image: np.ndarray) -> int:
    """63 bits of a picture (h, w, 3) uint8, hardly touched by its size, brightness and compression."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:LOW, :LOW].ravel()[1:]
    return int("".join("01"[bit] for bit in (low > np.median(low)).astype(int)), 2)


def pairs(looks: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The names of films that look alike, by the `hex` of each."""
    names = sorted(name for name, look in looks.items() if look)
    hashes = np.array([[int(looks[name][i : i + 16], 16) for i in range(0, 16 * FRAMES, 16)] for name in names], np.uint64)
    for index, name in enumerate(names):
        differing = np.bitwise_count(hashes[index + 1 :] ^ hashes[index]).sum(1)
        for other in np.flatnonzero(differing <= ALIKE * FRAMES * (LOW**2 - 1)):
            yield name, names[index + 1 + other]
