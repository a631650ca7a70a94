"""The command line, and searches from start to end: opens what a configuration names and puts the other rooms to work.

`sources` opens what a blend needs, `exam` what scores it, `runtime` loads what generates its images. `run_search` is a
whole search; `runs` its folder on disk; `previous_version` reads folders that version 0.1.0 wrote.
"""
