"""layermerge: search for the per-layer blend of checkpoints that draws what its prompts ask for.

The names below are imported when they are first used. A search from Python, as `merger search` runs it:

    config = merger.load_config(Path("search.yaml"))
    result = merger.run_search(merger.open_session(config), merger.Run(Path("runs/mine")), merger.Interrupt())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily
from merger.version import __version__ as __version__

if TYPE_CHECKING:
    from merger.app.interrupt import Interrupt as Interrupt
    from merger.app.run_search import run_search as run_search
    from merger.app.runs import Run as Run
    from merger.app.runs import find_run as find_run
    from merger.app.session import open_session as open_session
    from merger.checkpoints.adapter import open_donor as open_donor
    from merger.checkpoints.checkpoint import Checkpoint as Checkpoint
    from merger.checkpoints.checkpoint import open_checkpoint as open_checkpoint
    from merger.checkpoints.families import Family as Family
    from merger.checkpoints.families import register_family as register_family
    from merger.config.config import Config as Config
    from merger.config.loading import load_config as load_config
    from merger.errors import InputError as InputError
    from merger.export.recipe import Recipe as Recipe
    from merger.export.recipe_files import open_recipe as open_recipe
    from merger.search.registry import SamplerEntry as SamplerEntry
    from merger.search.registry import register_sampler as register_sampler

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Checkpoint": "merger.checkpoints.checkpoint",
        "Config": "merger.config.config",
        "Family": "merger.checkpoints.families",
        "find_run": "merger.app.runs",
        "InputError": "merger.errors",
        "Interrupt": "merger.app.interrupt",
        "load_config": "merger.config.loading",
        "open_checkpoint": "merger.checkpoints.checkpoint",
        "open_donor": "merger.checkpoints.adapter",
        "open_recipe": "merger.export.recipe_files",
        "open_session": "merger.app.session",
        "Recipe": "merger.export.recipe",
        "register_family": "merger.checkpoints.families",
        "register_sampler": "merger.search.registry",
        "Run": "merger.app.runs",
        "run_search": "merger.app.run_search",
        "SamplerEntry": "merger.search.registry",
    },
)
