"""The earlier address of `merger.checkpoints.names.transformer`, kept for the programs that import from here."""

from merger.checkpoints.names.transformer import Piece, network_shapes, transformer_names_in

__all__ = ["Piece", "network_shapes", "transformer_names_in"]
