"""Models on disk: opened, named as diffusers names them, recognised and compared; adapters as donors among them.

Imports `merger.layers`, `merger.errors` and the benchmark's pipelines and adapters; never a configuration, a blend or
an export. `names/` imports nothing of this room.
"""
