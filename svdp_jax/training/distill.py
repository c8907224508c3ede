"""A student learns its teacher's path: in one call from time s to time r what the teacher's guided steps do.

The teacher is a finished model with guidance; the student the same network, told guidance weights and r (`models.svdp.Told`),
and begun with its weights. A call of the student is `x_r = x_s + (r - s) v(x_s, s, r)`, and v regresses on the teacher's
(x_r - x_s) / (r - s) from the same x_s. With one step of the teacher in one of the student that is guidance alone, and the
target exact (Meng et al. 2022, arXiv 2210.03142); with several it is progressive distillation (Salimans and Ho 2022, arXiv
2202.00512), but that the teacher stays the first. Of the points x_s some lie between noise and an example, others where the
student's own calls lead, as in sampling; no example is needed to say what is right there.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svdp_jax import config as configs
from svdp_jax.diffusion import flow, guidance, sampler


def loss(model, teacher, batch: dict, key: jax.Array, config: configs.Config, stage: jax.Array) -> jax.Array:
    """Mean squared error of the student's velocity over its step, of a batch of latents as in `step.flow_loss`.

    model, teacher: networks; stage: the number of one of the kind `path`.
    """
    keys, taught = jax.random.split(key, 6), config.teaching
    x0, text, pooled = (batch[name] for name in ("target", "text", "pooled"))
    b, null = len(x0), config.model.video.null
    untold = dataclasses.replace(config.model, told=False)
    conditions = {name: batch[name].astype(text.dtype) for name in guidance.CONDITIONS}
    still = nnx.merge(nnx.graphdef(model), jax.lax.stop_gradient(nnx.state(model)))
    calls, path = drawn_schedule(keys[0], config, stage)
    each = path // calls  # the teacher's steps in one of the student's
    first = each * jax.random.randint(keys[1], (b,), 0, calls)  # number of the step of the path at which the call begins
    time = lambda number: flow.shifted(1 - jnp.asarray(number, jnp.float32) / path, config.flow.shift)
    noise = flow.noise(keys[2], x0.shape)
    told, weights = guidance.drawn(keys[3], taught, b)
    own = flow.expand(jax.random.bernoulli(keys[4], taught.own, (b,)), x0)

    def error(kept):
        levels = weights if kept.get("past") is not None else guidance.at_start(weights, null)
        ask = lambda network, config, weights: partial(
            sampler.velocity, network, asked=sampler.asking(kept, weights, text, pooled, config), config=config
        )
        student = ask(partial(model, policy=config.remat), config.model, {3: told})
        before, guided = ask(still, config.model, {3: told}), ask(teacher, untold, levels)

        def call(number, x):
            s, r = time(number * each), time((number + 1) * each)
            return jnp.where(flow.expand(number * each < first, x), x + (r - s) * before(x, s, r), x)

        def step(number, x):
            s, r = time(first + number), time(first + number + 1)
            return x + flow.expand(r - s, x) * guided(x, s, r)

        s, r = time(first), time(first + each)
        led = jax.lax.fori_loop(0, calls - 1, call, noise) if taught.own else noise
        x = jax.lax.stop_gradient(jnp.where(own, led, flow.noised(x0, noise, s)))
        goal = jax.lax.fori_loop(0, each, step, x)
        return (student(x, s, r) - (goal - x) / flow.expand(r - s, x)) ** 2

    chances = guidance.chances(config.flow, config.stages, stage)[
        2:
    ]  # whether there is a past; what is before it is guidance's
    errors = guidance.with_dropout(error, conditions, keys[5], chances / chances.sum(), null, levels=(2, 3))
    return (errors * (1 + config.flow.focus * batch["seen"])).mean()


def drawn_schedule(key: jax.Array, config: configs.Config, stage: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many calls of the student, and steps of its teacher, are the whole path."""
    longest = max(len(each.calls) for each in config.stages)
    calls = np.array([np.resize(each.calls, longest) for each in config.stages])  # rows are filled up by beginning again
    place = jax.random.randint(key, (), 0, jnp.asarray([len(each.calls) for each in config.stages])[stage])
    return jnp.asarray(calls)[stage, place], jnp.asarray([each.path for each in config.stages])[stage]
