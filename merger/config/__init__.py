"""The configuration of a search: its keys with descriptions and limits, and reading it from a YAML file."""
