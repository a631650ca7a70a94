"""What `result.json` says of several gradient searches in one study, and of what their ends were made into. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merger.search.members import Courses
from merger.search.mixtures import Mixture
from merger.search.trials import MIXTURE, TrialRecord


def searches_of(records: Sequence[TrialRecord], planned: int) -> dict[str, Any] | None:
    """The searches and their mixtures as plain values; None where one search was planned, or none has ended.

    members: of each search that ended: search (from 1), steps, averaged (whether it is long enough), and of its end
    trial, value and accuracy on the search prompts. average: trial, value and accuracy of their mean; None without one.
    strengths: the same of what the mean was multiplied with, in the order of the trials.
    """
    courses = Courses.of(records)
    averaged = {course.end.number for course in courses.averaged(planned) if course.end is not None}
    if planned == 1 or not averaged:
        return None
    members = [
        {"search": number + 1, "steps": course.steps, "averaged": end.number in averaged, **_scored(end)}
        for number, course in enumerate(courses.member(member) for member in range(planned))
        if (end := course.end) is not None
    ]
    average, strengths = None, []
    for record in latest_mixtures(records):
        strength = Mixture.from_json(record.score.attributes[MIXTURE]).strength
        if strength == 1:
            average = _scored(record)
        else:
            strengths.append({"strength": strength, **_scored(record)})
    return {"planned": planned, "members": members, "average": average, "strengths": strengths}


def latest_mixtures(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The last average of searches and its strengths: not those that a study was continued after."""
    mixtures = [record for record in records if record.score.attributes.get(MIXTURE) is not None]
    made_of = [Mixture.from_json(record.score.attributes[MIXTURE]).of for record in mixtures]
    return [record for record, of in zip(mixtures, made_of, strict=True) if of == made_of[-1]]


def _scored(record: TrialRecord) -> dict[str, Any]:
    value, accuracy = (round(number, 6) for number in (record.value, record.score.accuracy))
    return {"trial": record.number, "value": value, "accuracy": accuracy}
