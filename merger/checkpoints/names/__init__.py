"""Keys of files on one side, diffusers' tensor names on the other, derived from diffusers' own converters.

Imports `merger.errors` and the benchmark's names of adapters only.
"""
