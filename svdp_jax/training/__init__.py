"""A training run: the pure step (`step`), its data, its work folder, and all that watches over it.

The loop itself is the command, `svdp_jax.train`.
"""
