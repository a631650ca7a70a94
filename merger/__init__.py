"""layermerge: search for the per-layer blend of checkpoints that draws what its prompts ask for."""

__version__ = "0.1.0"
