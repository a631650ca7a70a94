"""Several gradient searches, their average and its strengths, as rows of a table and as a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def search_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each search, their average, and its strengths: what, trial, steps, accuracy, validated.

    accuracy: on the search prompts. validated: on the validation prompts; None for what was no finalist. [] for a
    result of one search.
    """
    found = result.get("searches")
    if not found:
        return []
    planned = found["planned"]
    rows = [
        {
            "what": f"search {each['search']} of {planned}" + ("" if each["averaged"] else ", left out: too short"),
            **each,
        }
        for each in found["members"]
    ]
    averaged = [each["search"] for each in found["members"] if each["averaged"]]
    of = f"average of {len(averaged)} searches" if len(averaged) > 1 else f"search {averaged[0]}"
    if found["average"]:
        rows.append({"what": of, "steps": None, **found["average"]})
    rows += [{"what": f"{of} x {each['strength']:g}", "steps": None, **each} for each in found["strengths"]]
    validated = {each["trial"]: each["validation_accuracy"] for each in result["finalists"]}
    return [
        {key: row[key] for key in ("what", "trial", "steps", "accuracy")} | {"validated": validated.get(row["trial"])}
        for row in rows
    ]


def searches_lines(result: Mapping[str, Any]) -> list[str]:
    """The same for a terminal."""
    rows = search_rows(result)
    if not rows:
        return []
    title = "searches and their average"
    width = max(len(title), *(len(row["what"]) for row in rows))
    head = f"{title:{width}}  trial  search prompts  validation prompts"
    lines = [
        f"{row['what']:{width}}  {row['trial']:5}  {row['accuracy']:14.4f}  "
        + ("-" if row["validated"] is None else f"{row['validated']:.4f}").rjust(18)
        for row in rows
    ]
    return [head, *lines, ""]
