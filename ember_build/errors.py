"""What can go wrong between a repository and a bundle, split by whose fault it is.

BuildError
├── InvalidPlayer         the named player is unusable: malformed URL, no such repository, hostile archive
├── PlayerBuildFailed     the researcher's code does not build; never retried, its log is kept
├── BuildPlatformError    ours or the network's fault; worth another try later
├── NotStampable          nobody's fault: a bundle cannot serve as a template here, and a full build is made instead
└── BuildCancelled        nobody's fault: somebody asked for the build to end
"""

from __future__ import annotations

from datetime import datetime


class BuildError(Exception):
    """Base of all errors of a build. The message is one or two sentences a researcher or operator can act on."""


class InvalidPlayer(BuildError):
    """The repository, commit or archive that was named cannot be used; another try will not help."""


class PlayerBuildFailed(BuildError):
    """The player's own code did not build into a usable bundle; another try of the same commit will not help."""


class BuildPlatformError(BuildError):
    """Our platform or the network failed; the same build may well succeed later."""

    def __init__(self, message: str, *, retry_at: datetime | None = None) -> None:
        """`retry_at` is the time, in UTC, before which a service has said that it will not answer."""
        super().__init__(message)
        self.retry_at = retry_at


class NotStampable(BuildError):
    """A bundle cannot be turned into another study's; the message names the file and the reason."""


class BuildCancelled(BuildError):
    """Somebody asked for the build to end; it is nobody's fault, and nothing is to be tried again."""
