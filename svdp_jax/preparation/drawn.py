"""Training records of the drawn world, straight from the drawing: what `svdp_jax.prepare` makes of films, with exact truth.

Drawing and encoding cost more than a step of the miniature, so its examples are made once and read many times, as those
of the full size are:

    python -c "from svdp_jax.preparation import drawn; drawn.write('records/toy', clips=600)"
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.faces import face
from svdp_jax.preparation import encode, work
from svdp_jax.toy import person, world

FRAMES = 16  # of a clip, after its source
SLOWEST = 0.1  # frame rate of a clip, as a share of the toy world's; frames far apart teach most
FILE = "records-{:05}.array_record"


def clip(key, size: int, self_driven: bool, difficulty: float):
    """The source, as a frame without a driver, and the frames of a clip: pictures and masked drivers (f y x 3) uint8."""
    fps = person.FPS * SLOWEST ** ((1 - difficulty) * jax.random.uniform(jax.random.fold_in(key, 2)))
    drawn = world.triple(key, FRAMES, 0, size, fps, self_driven, difficulty=difficulty)
    as_bytes = lambda x: jnp.clip(x * 255 + 0.5, 0, 255).astype(jnp.uint8)
    nothing = jnp.full_like(drawn["source"], world.GREY)
    return tuple(as_bytes(jnp.concatenate([first[None], rest])) for first, rest in (
        (drawn["source"], drawn["target"]), (nothing, drawn["driving"])))  # fmt: skip


def pictures(keys, *of_clip) -> Iterator[encode.Pictures]:
    """Frames of clips, one after the other."""
    draw = jax.jit(clip, static_argnums=(1, 2, 3))
    for key in keys:
        for target, driving in zip(*jax.device_get(draw(key, *of_clip))):
            yield encode.Pictures(target, driving, (driving != face.GREY).any(-1))


def write(
    out, clips: int, size: int = 128, self_driven: bool = False, difficulty: float = 0.0, codec: configs.Codec | None = None
) -> None:
    """Draws and encodes clips into a new folder of records. The manifest, written last, makes them whole."""
    out, codec, count = Path(out), codec or configs.Codec("small"), 1 + FRAMES
    if out.exists():
        raise UserError(f"{out} is there already; name a new folder.")
    out.mkdir(parents=True)
    keys, files = jax.random.split(jax.random.key(0), clips), []
    for number, part in enumerate(tqdm(encode.shards([count] * clips), desc="Drawing", unit="shard")):
        frames = pictures(keys[part.start : part.stop], size, self_driven, difficulty)
        path = out / FILE.format(number)
        written = encode.write_shard(path, frames, work.encoder(codec), codec.factor)
        files.append({"file": path.name, "records": written.records, "bytes": path.stat().st_size})
    entries = [  # the source lies before the first frame
        {"name": f"drawn{i:06}", "driver": "drawn", "first": count * i + 1, "count": FRAMES, "sources": [-1]}
        for i in range(clips)
    ]
    encode.write_json(out / encode.MANIFEST, {
        "kind": "svdp_jax records", "size": size, "frames": count * clips, "clips": entries,
        "latents": written.latents, "codec": encode.codec_mark(codec), "shards": files, "versions": work.versions(),
    })  # fmt: skip
