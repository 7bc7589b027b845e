"""Which builds run or wait, for those who clear away after the others: what they use is never touched."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence

from sqlalchemy import select

from domain.errors import InvalidRequest
from domain.models import BuildRequest, RequestStatus, Study
from domain.requests.build_claim import BuildClaim
from ember_build.errors import BuildPlatformError
from lookit_ops.services import Services

logger = logging.getLogger(__name__)


def is_running(services: Services, labels: Mapping[str, str]) -> bool:
    """Whether the build runs that these labels name: its request, under the claim that made it."""
    held = {(str(claim.request_id), str(claim.fencing_token)) for claim in services.ledger.running(expired_only=False)}
    return (labels.get("request", ""), labels.get("claim", "")) in held


def clear_away_after(services: Services, claims: Sequence[BuildClaim]) -> None:
    """Remove what workers that died have left on this machine and on the engine. Their requests have ended already."""
    for claim in claims:
        folder = services.settings.home_folder / "ember_build" / "deployments" / output_folder(claim)
        shutil.rmtree(folder, ignore_errors=True)
    try:
        remove_dead_builds(services)
    except Exception:  # the next cleanup finds it
        ids = ", ".join(str(claim.request_id) for claim in claims)
        logger.exception("what build requests %s have left cannot be removed now", ids)


def remove_dead_outputs(services: Services) -> int:
    """Remove the bundles that no running build is making: of killed workers, or of children that outlived them.

    The folders are listed first: a build that is claimed later has none among them. Returns how many there were.
    """
    deployments = services.settings.home_folder / "ember_build" / "deployments"
    found = sorted(deployments.iterdir()) if deployments.is_dir() else []
    alive = output_folders(services) if found else set()
    # While it is checked, a bundle has a hidden name that holds the folder's.
    dead = [path for path in found if not any(name in path.name for name in alive)]
    for path in dead:
        shutil.rmtree(path, ignore_errors=True)
    return len(dead)


def remove_dead_builds(services: Services) -> None:
    """Remove what builds have left whose worker died. That it cannot be done now stops nobody."""
    try:
        removed = services.builder.remove_orphans(lambda labels: is_running(services, labels))
    except (BuildPlatformError, InvalidRequest) as error:
        logger.warning("what dead builds have left cannot be removed now: %s", error)
        return
    if removed.removed:
        logger.warning("removed what dead builds had left: %s", ", ".join(removed.removed))
    for failed in removed.failed:
        logger.warning("what a dead build has left cannot be removed now: %s", failed)


def output_folders(services: Services) -> set[str]:
    """The names of the folders that running builds write their bundles into."""
    return {output_folder(claim) for claim in services.ledger.running(expired_only=False)}


def output_folder(claim: BuildClaim) -> str:
    """The name of the folder of one claim's bundle; a claim after it has another."""
    return f"{claim.study_uuid}-{claim.request_id}-{claim.fencing_token}"


def wanted_commits(services: Services) -> set[str]:
    """The SHAs that running and waiting builds use or will use, as far as anybody can know."""
    open_requests = (
        select(BuildRequest.player_sha, Study.study_metadata)
        .join(Study, Study.id == BuildRequest.study_id)
        .where(BuildRequest.status.in_((RequestStatus.QUEUED, RequestStatus.RUNNING)))
    )
    with services.sessions.begin() as session:
        rows = session.execute(open_requests).all()
    named = (sha or str(metadata.get("last_known_player_sha") or "") for sha, metadata in rows)
    return {sha.strip().lower() for sha in named if sha.strip()}
