"""What would fail after an hour fails here, within seconds and before anything is compiled.

Each check yields sentences, every one a problem with its fix; all are told at once.
"""

import dataclasses
import importlib.metadata
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
from flax import nnx
from packaging.requirements import Requirement

from svdp_jax import config as configs, parallel
from svdp_jax.buckets import storage
from svdp_jax.errors import UserError
from svdp_jax.files import mounted_bucket, read_manifest
from svdp_jax.media import video
from svdp_jax.models import learned
from svdp_jax.models.small_vae import SmallAutoencoder
from svdp_jax.models.vae import Autoencoder
from svdp_jax.training import identity, records, runs
from svdp_jax.weights import adapter, checkpoint
from svdp_jax.weights.prompts import load_prompt

LOOKED_AT = 3  # videos of a folder; to read all of them would take longer than a start may
MOMENTS = 2  # of AdamW, each as large as the weights
CODEC_KINDS = {"sd3": Autoencoder, "small": SmallAutoencoder}
SPARE = 1.1  # of the disk, beside what is known to be written
logger = logging.getLogger(__name__)


def check(config: configs.Config, workdir: Path, force: bool = False, restart: bool = False) -> None:
    """Raises UserError with all that keeps a run from starting.

    force: another run's folder will do, and what is other is only said; restart: what is there is no matter.
    """
    there = {} if restart else dict(checkpoint.run_checkpoints(workdir))
    checks = [versions(), devices(config), weights(config), prompt(config), data(config), disk(config, workdir, len(there))]
    problems = [problem for found in checks for problem in readable(found)]
    problems += [] if problems or restart else earlier(config, workdir, max(there, default=0), force)
    if len(problems) > 1:
        raise UserError("\n  - ".join([f"{len(problems)} problems, and nothing was started:", *problems]))
    if problems:
        raise UserError(problems[0])


def readable(check: Iterator[str]) -> Iterator[str]:
    """What a check yields, and what the disk has against it."""
    try:
        yield from check
    except OSError as error:
        yield f"{error.filename} cannot be read ({error.strerror}); see to it."


def earlier(config: configs.Config, workdir: Path, step: int, force: bool) -> Iterator[str]:
    """A run in the work folder that is another, or further than this one goes. step: that it was saved at last."""
    total = configs.stage_ends(config)[-1]
    if step > total:
        yield (
            f"{workdir} is at step {step}, beyond the {total} of config.stages; give them more steps, begin anew with "
            f"--restart, or train on from its model with --config.start={workdir} in a new --workdir."
        )
        return
    if not runs.begun(workdir):
        return
    found = "; ".join(identity.changes(workdir, config))
    if found and force:
        logger.warning("--force-resume: the run in %s goes on although %s.", workdir, found)
    elif found:
        yield (
            f"{workdir} holds another run: {found}; name a new --workdir, start it as it was, go on nevertheless with "
            "--force-resume, or begin anew with --restart."
        )


def versions() -> Iterator[str]:
    """Libraries older than those that the package was made for."""
    try:
        lines = importlib.metadata.requires("svdp_jax") or []
    except importlib.metadata.PackageNotFoundError:
        return  # run from its sources; what it needs is then not written down
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        there = importlib.metadata.version(requirement.name)
        if not requirement.specifier.contains(there, prereleases=True):
            yield f"{requirement.name} is {there}, and {requirement} is needed: pip install '{requirement}'."


def devices(config: configs.Config) -> Iterator[str]:
    """Devices that are not those of the config, or do not divide the batch or the frames."""
    try:
        parallel.need(config.topology)
        mesh = parallel.make_mesh(config.mesh)
    except UserError as error:
        yield str(error)
        return
    for staged in stages(config):
        yield from undivided(staged.data, config.optimizer.accumulate, mesh)
    try:
        _, *network = adapter.abstract(config)
    except UserError as error:
        yield str(error)
        return
    network = nnx.merge_state(*network)
    places = checkpoint.named(parallel.parameter_shardings(network, mesh))
    for name, leaf in checkpoint.named(network).items():
        try:
            places[name].shard_shape(leaf.shape)
        except ValueError:
            yield f"parameter {name} of shape {leaf.shape} does not divide over {dict(mesh.shape)}; set config.mesh."
            return


def stages(config: configs.Config) -> list[configs.Config]:
    """The config as its stages have it, one of all with the same data."""
    return list({staged.data: staged for staged in configs.by_stage(config)}.values())


def undivided(d: configs.Data, accumulate: int, mesh: jax.sharding.Mesh) -> Iterator[str]:
    """Batches and frames that do not divide over the mesh."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if d.batch // accumulate % rows:
        yield (
            f"config.data.batch={d.batch} in {accumulate} micro-batches does not divide over {rows} devices (mesh.data x "
            f"mesh.fsdp); make it a multiple of {rows * accumulate}, or set config.mesh."
        )
    for name, count in (("frames", d.frames), ("past", d.past)):
        if count % mesh.shape["context"]:
            yield f"config.data.{name}={count} does not divide over mesh.context={mesh.shape['context']}; change one."


def weights(config: configs.Config) -> Iterator[str]:
    """Folders of weights that are absent, cut off, or another network's."""
    if config.start:
        fits = partial(adapter.faults, config)
        yield from folder_of(checkpoint.model_folder(Path(config.start)), "config.start", fits, "svdp_jax.train")
    if config.teacher not in ("", "shipped"):
        fits = partial(teacher_faults, config)
        yield from folder_of(checkpoint.model_folder(Path(config.teacher)), "config.teacher", fits, "svdp_jax.train")
    if config.backbone:
        yield from folder_of(config.backbone, "config.backbone", partial(adapter.faults, config))
    codec = config.model.codec
    if codec.kind == "pixels" or config.trains == "codec":
        return
    if not checkpoint.codec_folder(codec):
        yield "config.model.codec.weights must name the folder of the converted autoencoder."
        return
    yield from autoencoder(config)


def autoencoder(config: configs.Config) -> Iterator[str]:
    """A folder of another network, or of an autoencoder with other latents; its widths are its own."""
    codec, channels = config.model.codec, config.model.backbone.channels
    folder = checkpoint.codec_folder(codec)
    fits = lambda folder: checkpoint.misfits(
        checkpoint.named(nnx.state(abstract_codec(codec))), checkpoint.stored_shapes(folder)
    )
    found = list(folder_of(folder, "config.model.codec.weights", fits))
    yield from found
    if not found and (abstract_codec(codec).factor, abstract_codec(codec).channels) != (codec.factor, channels):
        yield (
            f"config.model.codec.weights={codec.weights} has latents of factor {abstract_codec(codec).factor} and "
            f"{abstract_codec(codec).channels} channels, and the config codec.factor={codec.factor} and "
            f"backbone.channels={channels}; name the right folder."
        )


def abstract_codec(codec: configs.Codec) -> Autoencoder | SmallAutoencoder:
    network = checkpoint.abstract_network(checkpoint.codec_folder(codec) or Path())
    if not isinstance(network, CODEC_KINDS[codec.kind]):
        raise UserError(
            f"config.model.codec.weights={codec.weights} holds no autoencoder of kind {codec.kind}; name the right folder."
        )
    return network


def teacher_faults(config: configs.Config, folder: Path) -> list[str]:
    """What keeps a folder from holding the teacher of a config: all of the student's network but for what is told it.

    An adapter teaches one that learns alike: another would begin without what the adapter adds to its base.
    """
    untold = dataclasses.replace(config, model=dataclasses.replace(config.model, told=False))
    wanted = nnx.eval_shape(lambda: checkpoint.fresh_network(untold, nnx.Rngs(0)))
    added = (learned.SCALE, *learned.PARTS)
    found = {name: place.shape for name, place in adapter.source(folder).items() if not name.endswith(added)}
    faults, base = checkpoint.misfits(checkpoint.named(nnx.state(wanted)), found), adapter.of(folder)
    if base and not config.start and base.learn != config.learn:
        faults.append(
            f"an adapter learned with {base.learn!r}; set config.learn so, or fold it in (`python -m convert adapter`)"
        )
    return faults


def folder_of(name, field: str, fits: Callable[[Path], list[str]], maker: str = "convert") -> Iterator[str]:
    """Sizes and shapes alone are looked at; checksums follow when the weights are loaded. fits: what does not, of a folder."""
    folder = storage.here(name)
    if not folder.is_dir():
        yield f"{field}={name} is not a folder; make it with `python -m {maker}`."
        return
    try:
        checkpoint.about(folder)
        for file, entry in read_manifest(folder).items():
            if not (folder / file).is_file() or (folder / file).stat().st_size != entry["bytes"]:
                yield f"{folder / file} is missing or cut off; make or fetch {folder} again."
                return
        if faults := fits(folder):
            yield f"{field}={name} does not fit config.model: {'; '.join(faults)}; name the right folder."
    except UserError as error:
        yield str(error)


def prompt(config: configs.Config) -> Iterator[str]:
    """An encoded prompt that is absent or another backbone's."""
    if not config.prompt:
        return
    backbone = config.model.backbone
    try:
        text, pooled = load_prompt(Path(config.prompt))
    except UserError as error:
        yield str(error)
        return
    widths, wanted = (text.shape[-1], pooled.shape[-1]), (backbone.text_width, backbone.pooled_width)
    if widths != wanted:
        yield f"config.prompt={config.prompt} has widths {widths} and the backbone {wanted}; encode it again."


def data(config: configs.Config) -> Iterator[str]:
    """A data folder that is absent, empty, or unreadable from the first file on."""
    for staged in stages(config):
        try:
            if staged.data.source == "records":
                records.open_records(staged)
            if staged.data.source == "videos":
                yield from unreadable(records.videos(staged.data)[:LOOKED_AT], staged.data.path)
        except UserError as error:
            yield str(error)


def unreadable(paths: list[Path], folder: str) -> Iterator[str]:
    """A sentence if none of these videos can be read; a few bad ones are left out of training."""
    reasons = []
    for path in paths:
        try:
            next(video.read_frames(path))
            return
        except UserError as error:
            reasons.append(str(error))
    yield f"none of the first {len(paths)} videos of config.data.path={folder} can be read: {reasons[0]}"


def disk(config: configs.Config, workdir: Path, saved: int) -> Iterator[str]:
    """A work folder that cannot be made or written, or whose disk has no room for the checkpoints.

    saved: checkpoints that are there already, and make room for new ones.
    """
    if mounted_bucket(workdir):
        yield (
            f"{workdir} lies in a mounted bucket, which cannot rename folders, as a checkpoint needs; on one host name it as "
            "--workdir=gs://BUCKET/FOLDER, on several a --workdir on a disk that all share (Filestore, NFS)."
        )
        return
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield f"{there} cannot be written, so there can be no {workdir}; name another --workdir."
        return
    try:
        size = sum(4 * leaf.size for leaf in jax.tree.leaves(adapter.abstract(config)[1]))
    except UserError:  # of the table of what learns, which another check says
        return
    # Every checkpoint has weights, their average and the moments; the model at the end is one more average.
    wanted = SPARE * size * ((2 + MOMENTS) * max(config.keep + 1 - saved, 1) + 1)
    free = shutil.disk_usage(there).free
    if free < wanted:
        yield (
            f"{there} has {free / 2**30:.1f} GiB free, and {config.keep} checkpoints and the model need "
            f"{wanted / 2**30:.1f} GiB; make room, name another --workdir, or set config.keep."
        )
