"""The rows of a workflow table, and what no table may do: lead families to a study that no reviewer has approved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NotRequired, TypedDict

from domain.models import State
from domain.permissions.codes import Permission
from domain.studies.approval import APPROVED_STATES
from domain.studies.availability import SERVED_STATES

APPROVE = "approve"
"""The trigger that records which revision a reviewer has read."""


class Notice(TypedDict):
    """Who is told of a transition, under which headline, in which sentence."""

    audience: str
    headline: str
    sentence: str


class Row(TypedDict):
    """One row of the workflow table."""

    trigger: str
    source: list[str]
    dest: str
    permission: str
    needs_deployment: NotRequired[bool]
    notice: NotRequired[Notice]


def ways_around_the_review(row: Row) -> Iterator[str]:
    """Say how this row lets families get a study that no reviewer has approved; nothing if it does not.

    An approval stands in `APPROVED_STATES` and ends when a study leaves them, so a row may lead out of them.
    """
    trigger, dest, permission = row["trigger"], row["dest"], row["permission"]
    is_approval = dest == State.APPROVED
    if is_approval != (trigger == APPROVE):
        yield f"{APPROVE!r} and no other trigger leads to {State.APPROVED.value!r}; this is {trigger!r}, to {dest!r}"
    if is_approval and permission != Permission.APPROVE_STUDY:
        yield f"{APPROVE!r} asks for {Permission.APPROVE_STUDY.value}, not for {permission}: it is the review"
    if is_approval and row["source"] != [State.SUBMITTED]:
        yield f"{APPROVE!r} leads from {State.SUBMITTED.value!r} alone: no other state has content to review"
    unreviewed = [state for state in row["source"] if state not in APPROVED_STATES]
    if dest in APPROVED_STATES and not is_approval and unreviewed:
        yield f"{trigger!r} leads from {', '.join(unreviewed)} to {dest!r}: no reviewer has approved the content"
    withdrawn = [state for state in row["source"] if state not in SERVED_STATES]
    if dest in SERVED_STATES and withdrawn and not row.get("needs_deployment"):
        yield (
            f"{trigger!r} leads from {', '.join(withdrawn)} to {dest!r}, where families get the study:"
            " it must have needs_deployment: true"
        )
