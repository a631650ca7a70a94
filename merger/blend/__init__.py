"""Blends: the mathematics, what a donor adds to the base, and the live denoiser whose weights change in place.

Imports `merger.checkpoints`, `merger.layers` and `merger.errors`; never an export, a search or a score.
"""
