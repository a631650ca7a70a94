"""The earlier address of `merger.app.cli`, kept for the programs that import from here."""

from merger.app.cli import main, make_parser

__all__ = ["main", "make_parser"]
