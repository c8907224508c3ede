"""The drawn world: people and motions whose truth is known, as pictures, examples and raw footage.

Scores of a model in this world are in `evaluation.toy_score`.
"""
