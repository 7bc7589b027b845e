"""What the domain refuses, and why.

DomainError
├── InvalidRequest        a person's mistake: unknown study, malformed value
├── PermissionDenied      user, permission, object
├── TransitionNotAllowed  state, trigger, what is allowed
├── StudyIsLocked         names the build that holds the study
├── QueueIsFull           as much work is running as may be at once; the request goes on waiting
└── LeaseLost             somebody else ended this request

Every message names the value that is wrong and says what to do; it is shown to people as it is.
"""

from __future__ import annotations


class DomainError(Exception):
    """Base of the domain's errors. `code` is the stable name that is stored with a refused request."""

    code = "domain_error"


class InvalidRequest(DomainError):
    """What was asked for does not exist or is malformed; asking again will not help."""

    code = "invalid_request"


class PermissionDenied(DomainError):
    """The user does not hold the permission that the act asks for."""

    code = "permission_denied"


class TransitionNotAllowed(DomainError):
    """The study's state does not allow the act; the message says what is allowed."""

    code = "state_forbids"


class StudyIsLocked(DomainError):
    """The study is being built; the same act will be possible once the build has ended."""

    code = "study_is_locked"


class QueueIsFull(DomainError):
    """As many requests are running as may at once; this one goes on waiting for its turn."""

    code = "queue_is_full"


class LeaseLost(DomainError):
    """The request was ended, or claimed again, by somebody else: this worker must change nothing more."""

    code = "lease_lost"
