"""Approvals: which revision of a study one is of, which player may be deployed under it, and what it still covers.

An approval names the revision that the reviewer has read, and is kept on the study: revision, repository and commit of
the player. It stands while the study is in one of `APPROVED_STATES`. A deployment builds what was approved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from domain.errors import InvalidRequest, TransitionNotAllowed
from domain.models import BuildRequest, RequestStatus, State, Study, StudyLog
from domain.models.studies import LOCK_STATES

APPROVED_STATES = frozenset({State.APPROVED, State.ACTIVE, State.PAUSED, State.DEACTIVATED})
"""The states in which an approval stands."""

IsTrusted = Callable[[str | None], bool]
"""Says whether the operator trusts the repository of this URL; None is the player of studies that name none."""

_SHA = re.compile("[0-9a-f]{40}")
_LONGEST_SHOWN = 120
_MOST_SHOWN = 20


def only_the_default(repository_url: str | None) -> bool:
    """Trust the player of studies that name none, and no other: for callers that do not know the operator's list."""
    return repository_url is None


@dataclass(frozen=True, slots=True)
class Player:
    """The player that a study names. `repository_url` is None for the settings' default, `sha` where none is named."""

    repository_url: str | None
    sha: str | None

    @property
    def full_sha(self) -> str | None:
        """The SHA, if it is a full one; otherwise the head of the default branch is built."""
        sha = (self.sha or "").lower()
        return sha if _SHA.fullmatch(sha) else None

    @property
    def repository(self) -> str:
        """The repository in a sentence."""
        if self.repository_url is None:
            return "the default player"
        return "/".join(_without_git(self.repository_url).split("/")[-2:])


def named_player(study: Study) -> Player:
    """Return the player that the study's content names."""
    return Player(
        _text(study.study_metadata.get("player_repo_url")), _text(study.study_metadata.get("last_known_player_sha"))
    )


def approved_player(study: Study) -> Player:
    """Return the player that a deployment builds.

    Studies that were approved before approvals were kept have none. There it is the player that the content names,
    which cannot have changed since without another review.
    """
    if study.approved_revision is None:
        return named_player(study)
    return Player(study.approved_repo_url, study.approved_sha)


def has_changed(study: Study) -> int:
    """Raise the revision of the study's reviewed content; returns the new one."""
    study.revision += 1
    return study.revision


def approve(session: Session, study: Study, revision: int | None, is_trusted: IsTrusted) -> dict[str, Any]:
    """Keep the approval of a revision on the study, whose row the caller holds; returns what the log tells of it.

    Raises:
        InvalidRequest: no revision is named.
        TransitionNotAllowed: another revision stands, or the player is a moving branch of a repository that the
            operator does not trust.
    """
    if revision is None:
        raise InvalidRequest(
            f"an approval names the revision that was read, and the study {study.name!r} is at revision"
            f" {study.revision}: read it (`lookit-ops study show`, `study diff`), then approve it with --revision"
            f" {study.revision}"
        )
    if revision != study.revision:
        raise TransitionNotAllowed(_stale(session, study, revision))
    player = named_player(study)
    what = _approved_what(session, study, player, is_trusted)
    study.approved_revision = revision
    study.approved_repo_url, study.approved_sha = player.repository_url, player.full_sha
    session.flush()
    return {"approved": what, "revision": revision, "repository": player.repository, "sha": player.full_sha}


def rescind(study: Study) -> None:
    """Forget the approval: the study has left the states in which it stands."""
    study.approved_revision = study.approved_repo_url = study.approved_sha = None


def _approved_what(session: Session, study: Study, player: Player, is_trusted: IsTrusted) -> str:
    sha, repository = player.full_sha, player.repository
    is_built = sha is not None and _was_built(session, study, player.repository_url, sha)
    if is_trusted(player.repository_url):
        if sha is None:
            return f"approved HEAD of {repository}, which may change"
        if is_built:
            return f"approved commit {sha} of {repository}"
        return f"approved commit {sha} of {repository}; no build has shown yet that the repository has it"
    if sha is None:
        named = f"names {player.sha!r}, which is no full SHA" if player.sha else "names no commit"
        remedy = "Remove it (`study edit --sha ''`), and request a preview" if player.sha else "Request a preview"
        raise TransitionNotAllowed(
            f"the player of {study.name!r} comes from {repository}, which the operator does not trust, and {named}:"
            f" what its branch holds tomorrow cannot be reviewed. {remedy}, which names the commit that it has built;"
            " then approve the revision with that commit"
        )
    if not is_built:
        raise TransitionNotAllowed(
            f"the player of {study.name!r} comes from {repository}, which the operator does not trust, and no build has"
            f" shown that it has commit {sha}. Request a preview, look at it, then approve"
        )
    return f"approved commit {sha} of {repository}"


def _was_built(session: Session, study: Study, repository_url: str | None, sha: str) -> bool:
    """Whether a build of the study has ended well with this commit of this repository."""
    built = select(BuildRequest.player_repo).where(
        BuildRequest.study_id == study.id,
        BuildRequest.status == RequestStatus.SUCCEEDED,
        func.lower(BuildRequest.player_sha) == sha,
        BuildRequest.restores_id.is_(None),
    )
    return any(_is_of(repository_url, name) for name in session.scalars(built))


def _is_of(repository_url: str | None, full_name: str | None) -> bool:
    """Whether `owner/name` is the repository of this URL; of the default one, whose URL the database lacks, it is."""
    if repository_url is None or not full_name:
        return repository_url is None
    return _without_git(repository_url).lower().endswith("/" + full_name.lower())


def _without_git(url: str) -> str:
    return url.strip().rstrip("/").removesuffix(".git")


# -- what has changed since a revision was read ------------------------------------------------------------------------


def _stale(session: Session, study: Study, revision: int) -> str:
    if revision > study.revision or revision < 1:
        return f"the study {study.name!r} has no revision {revision}; it is at revision {study.revision}"
    changes = changes_since(session, study, revision)
    shown = "\n  ".join(changes[:_MOST_SHOWN])
    more = f"\n  … and {len(changes) - _MOST_SHOWN} more" if len(changes) > _MOST_SHOWN else ""
    return (
        f"the study {study.name!r} is at revision {study.revision}, not {revision} any more. Changed since:\n  {shown}"
        f"{more}\nRead it (`lookit-ops study diff`), then approve it with --revision {study.revision}"
    )


def changes_since(session: Session, study: Study, revision: int) -> list[str]:
    """Return what differs between a revision and the one that stands: a line for each value, as JSON, shortened."""
    logs = session.scalars(
        select(StudyLog).where(StudyLog.study_id == study.id, StudyLog.revision > revision).order_by(StudyLog.id)
    )
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for log in logs:
        for field, (before, after) in log.extra.get("diff", {}).items():
            first.setdefault(field, before)
            last[field] = after
    lines: list[str] = []
    for field, before in first.items():
        after = last[field]
        if isinstance(before, dict) and isinstance(after, dict):
            names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
            lines += [_line(f"{field}.{name}", before.get(name), after.get(name)) for name in names]
        elif before != after:
            lines.append(_line(field, before, after))
    return lines or ["nothing that differs now: what was changed was changed back"]


def _line(name: str, before: Any, after: Any) -> str:
    return f"{name}: {_shown(before)} → {_shown(after)}"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


# -- which earlier deployments an approval covers ----------------------------------------------------------------------


def not_covered(session: Session, study: Study, requests: Sequence[BuildRequest]) -> dict[int, str]:
    """Return why deployments of these requests may not be put back, by the request's id; none that may.

    A deployment was approved when it was made. That approval has ended if the study has left `APPROVED_STATES` since,
    by a transition of any name or by a change of reviewed content, unless the same commit of the same repository was
    approved again.
    """
    left = session.execute(
        select(StudyLog.created_at, StudyLog.state_after)
        .where(
            StudyLog.study_id == study.id,
            StudyLog.state_before.in_(APPROVED_STATES),
            StudyLog.state_after.not_in((*APPROVED_STATES, *LOCK_STATES)),
        )
        .order_by(StudyLog.created_at.desc())
        .limit(1)
    ).one_or_none()
    state = study.state_before_build if study.state in LOCK_STATES else study.state
    player = approved_player(study) if state in APPROVED_STATES else None
    reasons: dict[int, str] = {}
    for request in requests:
        if left is None or (request.claimed_at is not None and request.claimed_at > left.created_at):
            continue
        sha = (request.player_sha or "").lower()
        if player and player.full_sha == sha and sha and _is_of(player.repository_url, request.player_repo):
            continue
        reasons[request.id] = (
            f"the study was {left.state_after} on {left.created_at:%Y-%m-%d %H:%M} UTC, after it was deployed, and"
            f" commit {sha[:12] or '(unknown)'} of {request.player_repo or 'its repository'} has not been"
            " approved since"
        )
    return reasons


def _text(value: object) -> str | None:
    """Return what the metadata says, as text: other programs may have written a number or blanks there."""
    text = "" if value is None else str(value).strip()
    return text or None
