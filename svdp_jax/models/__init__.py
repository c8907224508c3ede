"""Networks and attention, after the layouts of their published checkpoints.

Here are modules and pure functions of arrays. No files, no flags, no training: weights come from `weights`.
"""
