"""Metrics, the networks that measure for them, the clips that are compared, and the reports."""
