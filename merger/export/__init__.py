"""Recipes, and blends written as files that other programs load: from sources and a recipe alone.

Imports `merger.blend`, `merger.checkpoints`, `merger.layers` and `merger.errors`; never a search, a score, a tagger or
the command line.
"""
