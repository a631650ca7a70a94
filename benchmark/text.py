"""The earlier address of `benchmark.prompts.text`, kept for the programs that import from here."""

from benchmark.prompts.text import escaped, parse_emphasis, plain_text

__all__ = ["escaped", "parse_emphasis", "plain_text"]
