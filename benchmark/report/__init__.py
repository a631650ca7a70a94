"""What a person reads: tables, charts, the HTML page, grids of images, and the progress line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.lazy import lazily

if TYPE_CHECKING:
    from benchmark.report.page import as_html as as_html
    from benchmark.report.tables import Table as Table
    from benchmark.report.tables import as_markdown as as_markdown

__getattr__, __dir__ = lazily(
    __name__,
    {
        "as_html": "benchmark.report.page",
        "as_markdown": "benchmark.report.tables",
        "Table": "benchmark.report.tables",
    },
)
