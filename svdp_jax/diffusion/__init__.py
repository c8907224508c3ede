"""Rectified flow, guidance and the sampler: pure functions that know a network only as something to call."""
