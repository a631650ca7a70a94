"""The version of this program, which recipes and exported files carry."""

__version__ = "0.2.0"
