"""python -m svdp_jax.train --config configs/toy_cpu.py [--workdir DIR] [--config.a.b=value ...]

Trains the video model. The work folder gets checkpoints, config.json, metrics
as JSON lines and TensorBoard, events.jsonl for all that is out of the ordinary,
in samples/ a video now and then where `sample_every` says so, and at the end `model/` (weights for `svdp_jax.animate`), a sample video, a
contact sheet and a table of results.

Ctrl-C or SIGTERM saves and ends with 0, at any moment; a second Ctrl-C ends at
once. Started again with the same folder, a run goes on exactly where it was, on
as many devices as there are then. It refuses to where another run is at work, and
with another config, other data or other code; --force-resume says what differs and
goes on nevertheless. It begins anew only with --restart, which moves what is there
to before-1/.
"""

# Imports take seconds, and a signal in them must be heard too.
from svdp_jax.training import stop

if __name__ == "__main__":
    stop.listen()

import contextlib
import logging
import sys
from functools import partial
from pathlib import Path

import jax
from absl import flags
from jax._src import distributed  # the only way to its client, on which Orbax and others rely as well
from tqdm import tqdm

from svdp_jax import config as configs, parallel
from svdp_jax.buckets import storage
from svdp_jax.buckets.mirror import mirrored
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError, say_errors
from svdp_jax.evaluation import toy_codec, toy_score
from svdp_jax.planning.chips import step_work
from svdp_jax.training import preflight, records
from svdp_jax.training.alarm import Watch, make_watch
from svdp_jax.training.feed import Feed, Reading
from svdp_jax.training.health import Health
from svdp_jax.training.identity import fingerprint
from svdp_jax.training.journal import Journal
from svdp_jax.training.owner import Owner
from svdp_jax.training.runs import Place, Runs, set_aside
from svdp_jax.training.samples import Samples
from svdp_jax.training.start import initial_state, load_frozen
from svdp_jax.training.step import State, make_update
from svdp_jax.training.trace import Trace
from svdp_jax.weights import adapter, checkpoint

SHOWN = ("loss", "mfu", "tokens_per_second")  # on the progress bar
logger = logging.getLogger("svdp_jax.train")  # also where this is __main__


def train(config: configs.Config, workdir: Path, force: bool = False, restart: bool = False) -> None:
    """Runs or resumes a training, to the finished model in `workdir/model`. force, restart: see `preflight.check`."""
    with contextlib.closing(Owner(workdir)) as owner:
        preflight.check(config, workdir, force, restart)
        if restart:
            checkpoint.once(lambda: set_aside(workdir))
        mesh = parallel.make_mesh(config.mesh)
        with jax.set_mesh(mesh):
            run(config, owner, mesh)


def run(config: configs.Config, owner: Owner, mesh: jax.sharding.Mesh) -> None:
    workdir, runs = owner.folder, Runs(owner, config)
    codec_graph, frozen = load_frozen(config, mesh)
    graph, state = initial_state(config, mesh)
    state, place = runs.resume(state)
    with contextlib.closing(Journal(workdir, int(state.step), configs.stage_ends(config)[-1])) as journal:
        introduce(config, workdir, mesh, state, journal)
        update = partial(make_update(config, graph, codec_graph), frozen=frozen)
        for staged, last in stretches(config, int(state.step)):
            example = Reading(records.examples(staged, workdir / "clips"))
            data = iter(records.batches(staged, example, parallel.own_rows(mesh, staged.data.batch)))
            if place:
                data.set_state(place.moved_on(staged.data.batch))
            journal.begin(step_work(staged, jax.devices()))
            feed, about = Feed(data, journal.tell, example), (graph, codec_graph, frozen, mesh, example, journal)
            watch, samples = make_watch(staged, *about), Samples(staged, *about, workdir / "samples")
            state = steps(staged, mesh, state, last, update, feed, runs, journal, watch, samples)
            place = Place(feed.state, staged.data.batch)
        runs.close()
        last = configs.by_stage(config)[-1]
        kept = adapter.model(config, state.average, state.constants)
        checkpoint.save_model(workdir / "model", last, *kept, facts=adapter.trained_with(last))
        journal.tell("finished", {})


def stretches(config: configs.Config, step: int) -> list[tuple[configs.Config, int]]:
    """What is to do after a step: the config as stages have it, and the last step of those after each other with one data."""
    found = []
    for staged, end in zip(configs.by_stage(config), configs.stage_ends(config)):
        if found and found[-1][0].data == staged.data:
            found.pop()
        found += [(staged, end)] if end > step else []
    return found


def introduce(config: configs.Config, workdir: Path, mesh, state: State, journal: Journal) -> None:
    """Says what the run is and where its files are."""
    size = sum(w.size for w in jax.tree.leaves(state.weights))
    step, facts = int(state.step), fingerprint(config)
    logger.info(
        "%s: %.2f M parameters on %s (%s), step %d of %d, %s, seed %d\n"
        "in %s: checkpoints/ every %d steps, the newest %d kept; metrics.jsonl, tensorboard/, events.jsonl",
        config.name, size / 1e6, facts["devices"], ", ".join(f"{a}={n}" for a, n in mesh.shape.items()),
        step, journal.total, facts["data"], config.seed, workdir, config.save_every, config.keep,
    )  # fmt: skip
    journal.tell("started", facts | {"parameters": size, "mesh": dict(mesh.shape), "seed": config.seed})


def steps(
    config: configs.Config, mesh, state: State, last: int, update, feed: Feed, runs: Runs, journal: Journal,
    watch: Watch, samples: Samples,
) -> State:  # fmt: skip
    """The loop over steps with one data. Whatever ends it, what was done is saved first."""
    start = int(state.step)
    health, told = Health(config.data.batch, start - feed.state["next_index"], journal), Told(mesh)
    trace = Trace(config.profile, runs.workdir)
    bar = tqdm(initial=start, total=journal.total, desc=config.name, unit="step", disable=jax.process_index() > 0)
    with contextlib.closing(trace), contextlib.ExitStack() as unsaved:
        for step in range(start + 1, last + 1):
            batch = parallel.global_batch(next_or_save(config, feed, state, runs), mesh, config.data.batch)
            trace.before(step)
            state, metrics = update(state, batch=batch)
            trace.after(step, metrics)
            if step == start + 1:
                jax.block_until_ready(metrics)  # compiled: from here on there is something to lose
                unsaved.enter_context(stop.work_to_save())
            journal.add(step, metrics)
            hopeless = health.hopeless(step, metrics)
            if step % config.log_every == 0 or step == last:
                bar.set_postfix({name: said for name, said in journal.write().items() if name in SHOWN}, refresh=False)
            if config.watch_every and step % config.watch_every == 0:
                watch.check(state.average, state.constants)
            if config.sample_every and step % config.sample_every == 0:
                samples.take(state.average, state.constants)
            bar.update()
            stopping = told.stop()
            if step % config.save_every == 0 or step == last or stopping or hopeless:
                runs.save(state, feed.state, config)
            if stopping or hopeless:
                end(step, hopeless, runs, journal)
        runs.wait()
    bar.close()
    return state


def next_or_save(config: configs.Config, feed: Feed, state: State, runs: Runs) -> dict:
    """The next batch; where data fails, the state is saved before the error is raised."""
    try:
        return next(feed)
    except UserError:
        if jax.process_count() == 1 and int(state.step) > 0:  # of several hosts, the others are at the step
            runs.save(state, feed.state, config)
            runs.close()
        raise


def end(step: int, hopeless: str, runs: Runs, journal: Journal) -> None:
    """Ends the process when the state is on disk: with 0 where it was told to stop."""
    runs.close()
    journal.step = step
    journal.tell("failed" if hopeless else "stopped", {"why": hopeless})
    if hopeless:
        raise UserError(hopeless)
    logger.warning("Stopped at step %d, saved; the same command goes on from there.", step)
    sys.exit(0)


class Told:
    """Whether to stop. Several hosts find out together, one step after the first of them was told."""

    def __init__(self, mesh: jax.sharding.Mesh):
        self.mesh, self.poll = mesh, None

    def stop(self) -> bool:
        if jax.process_count() == 1:
            return stop.asked()
        last, self.poll = self.poll, parallel.poll(self.mesh, stop.asked())
        return last is not None and bool(last)


def speak() -> None:
    """Lets the package's own words through to stderr, without those of its libraries."""
    handler, package = logging.StreamHandler(), logging.getLogger("svdp_jax")
    handler.setFormatter(logging.Formatter("%(message)s"))
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False


def score_video(config: configs.Config, workdir: Path) -> str:
    return toy_score.table(toy_score.evaluate(SVDPEngine.load(workdir), config.evaluate, workdir / "results"))


def score_codec(config: configs.Config, workdir: Path) -> str:
    codec = checkpoint.load_network(workdir / "model")
    return toy_codec.table(toy_codec.evaluate(codec, config.data, config.evaluate, workdir / "results"))


SCORES = {"video": score_video, "codec": score_codec}  # of the finished model, as a table, by what was trained
USES = {"video": "animate with --checkpoint {0}", "codec": "train a model with --config.model.codec.weights={0}"}


def main(arguments: list[str]) -> None:
    if "--help" in arguments:
        print(__doc__)
        return
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "Folder of the run; runs/NAME by default.", flag_values=values)
    flags.DEFINE_bool("force-resume", False, "Go on although the run is another.", flag_values=values)
    flags.DEFINE_bool("restart", False, "Begin anew, with what is there set aside.", flag_values=values)
    config = configs.parse(arguments, values)
    workdir = values.workdir or f"runs/{config.name}"
    parallel.start()
    if jax.process_count() > 1:
        stop.listen()  # again, as jax.distributed takes SIGTERM for itself
        stop.together(distributed.global_state.client, jax.process_index())
        if storage.address(workdir):
            raise UserError(
                f"{workdir}: one host can work in a bucket; name a folder on a disk that all share (Filestore, NFS)."
            )
    with mirrored(workdir) as folder:
        train(config, folder, bool(values["force-resume"].value), bool(values.restart))
        if jax.process_index() > 0:
            return
        if config.data.source == "toy" and config.evaluate:
            print(SCORES[config.trains](config, folder))
    print(f"The model is in {workdir}/model; {USES[config.trains].format(workdir)}.")


if __name__ == "__main__":
    speak()
    with stop.ends_the_process():
        say_errors("train", lambda: main(sys.argv))
