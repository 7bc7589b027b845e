"""The pruning of deployments on this platform: what is in use, the ledger tells; what is too strict is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from domain.errors import InvalidRequest
from domain.models import BuildKind
from lookit_ops.deployments.manifest import FOLDERS, KEPT
from lookit_ops.deployments.prune import DAY, Pruned, prune
from lookit_ops.deployments.templates import prune_templates
from lookit_ops.services import Services

HOUR = timedelta(hours=1)
SHORTEST = HOUR
"""A family may have loaded a page so long ago and still fetch what it names."""
LONGEST_HOURS = 10 * 365 * 24
_KIND_OF = {folder: BuildKind(kind) for kind, folder in FOLDERS.items()}


def prune_deployments(
    services: Services, *, older_than_hours: float = DAY / HOUR, keep: int = KEPT, dry_run: bool = False
) -> Pruned:
    """Remove from the bucket what no kept deployment names, so many hours after it was last needed; unused templates.

    Raises InvalidRequest if nothing would be kept, or for less than an hour; StorageError if the bucket cannot be used.
    """
    if keep < 1:
        raise InvalidRequest(
            f"keep is {keep}; it is how many builds of a study stay, the live one among them: 1 or more"
        )
    if not SHORTEST / HOUR <= older_than_hours <= LONGEST_HOURS:
        raise InvalidRequest(
            f"older_than_hours is {older_than_hours:g}; families who loaded a page just before it was replaced still"
            " need its files: give 1 hour or more, and at most ten years"
        )

    def in_use(folder: str) -> bool:
        root, _, name = folder.partition("/")
        try:
            uuid = UUID(name)
        except ValueError:  # not a study's
            return False
        return services.ledger.is_building(_KIND_OF[root], uuid)

    now = datetime.now(UTC)
    older_than = older_than_hours * HOUR
    done = prune(services.bucket, keep=keep, older_than=older_than, now=now, in_use=in_use, dry_run=dry_run)
    templates, failed = prune_templates(services.bucket, now=now, dry_run=dry_run)
    return replace(done, removed=(*done.removed, *templates), failed={**done.failed, **failed})
