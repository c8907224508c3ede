"""From raw videos to training records, stage by stage (`stages`), and the report about it.

`svdp_jax.prepare` is the command; what training reads of the result is `training.records`.
"""
