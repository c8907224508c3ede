"""Weights on disk: checkpoints, encoded prompts, and the model that comes with the package (`toy/`).

Conversion from PyTorch is the package `convert`, which this one never imports.
"""
