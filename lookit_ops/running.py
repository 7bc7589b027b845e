"""Which builds run or wait, for those who clear away after the others: what they use is never touched."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ember_build.errors import BuildPlatformError
from lookit_ops.platform import Platform

logger = logging.getLogger(__name__)


def is_running(platform: Platform, labels: Mapping[str, str]) -> bool:
    """Whether the build runs that these labels name: its request, under the claim that made it."""
    held = {(str(claim.request_id), str(claim.fencing_token)) for claim in platform.ledger.running(expired_only=False)}
    return (labels.get("request", ""), labels.get("claim", "")) in held


def sweep_dead_builds(platform: Platform) -> None:
    """Remove what builds have left whose worker died. That it cannot be done now stops nobody."""
    try:
        swept = platform.builder.sweep_orphans(lambda labels: is_running(platform, labels))
    except BuildPlatformError as error:
        logger.warning("what dead builds have left cannot be removed now: %s", error)
        return
    if swept.removed:
        logger.warning("removed what dead builds had left: %s", ", ".join(swept.removed))
    for failed in swept.failed:
        logger.warning("what a dead build has left cannot be removed now: %s", failed)
