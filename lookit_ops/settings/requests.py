"""Settings of the queue of requests: how many run at once, how long a claim lasts, how often work is tried."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from domain.requests.failure import Retry
from lookit_ops.settings.general import GeneralSettings
from lookit_ops.settings.values import Seconds

LONGEST_LEASE = 3600
"""Seconds: a longer lease would hold the study of a dead worker for longer than any build takes."""


class RequestSettings(GeneralSettings):
    """How requests become runs."""

    lease: Seconds = Field(
        120,
        le=LONGEST_LEASE,
        description="Seconds that a build or archive stays claimed without a sign of life (one every two).",
    )
    builds_at_once: int = Field(2, ge=1, description="How many builds may run at the same time.")
    archives_at_once: int = Field(2, ge=1, description="How many archives of videos may be made at the same time.")
    attempts: int = Field(
        3, ge=1, le=20, description="How often work that fails by the platform's fault is tried in all."
    )
    retry_after: Seconds = Field(
        60, description="Seconds before the second attempt; each further wait is twice as long."
    )

    @property
    def lease_duration(self) -> timedelta:
        """How long a claim lasts without a heartbeat."""
        return timedelta(seconds=self.lease)

    @property
    def retry_by(self) -> Retry:
        """How often what fails by our fault is tried, and when."""
        return Retry(self.attempts, timedelta(seconds=self.retry_after))
