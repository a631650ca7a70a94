"""Which tensors share one blend weight: names of tensors and components in, names of layers out.

Pure: no files, no tensors. Imports `merger.errors` and nothing else of this package.
"""
