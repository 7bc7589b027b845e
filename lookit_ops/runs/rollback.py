"""One rollback from its claim to its end, in the process that asks for it: it takes seconds, so no run of Dagster."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

from domain.models import Study, User
from domain.requests.build_claim import BuildClaim, require_for
from domain.requests.failure import Failure
from domain.requests.rollbacks import KIND, begin_rollback
from lookit_ops.deployments.manifest import folder_of, live_deployment
from lookit_ops.deployments.rollback import NotRestorable, choose_whole, rollback
from lookit_ops.runs.page import PageRun
from lookit_ops.services import Services

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A rollback that has ended well."""

    request_id: int
    """Of the rollback."""
    restores_id: int
    """Of the build that is live again."""
    state: str
    """The study's, the same as before."""


def roll_back(
    services: Services, study_id: int, user_id: int, to: int | None, *, origin: str, comment: str = ""
) -> RolledBack:
    """Put back what the request `to` built, or the build before the live one, and record it.

    Raises PermissionDenied, TransitionNotAllowed, StudyIsLocked, InvalidRequest and NotRestorable before anything has
    changed; StorageError, LeaseLost and RequestCancelled when it failed on the way, and the study is as before;
    NoAnswer when nobody knows, and the study stays locked until the reconciler has found out.
    """
    with services.sessions.begin() as session:
        study = session.get_one(Study, study_id)
        require_for(session, session.get_one(User, user_id), study, KIND)
        folder = folder_of(KIND, study.uuid)
    target = choose_whole(services.bucket, folder, None if to is None else str(to)).manifest.request_id
    if not target.isdecimal():
        raise NotRestorable(f"the deployment of request {target!r} in {folder} is not one of this platform's")
    run = RollbackRun(
        services,
        f"rollback in process {os.getpid()} on {socket.gethostname()}"[:64],
        lambda _level, _text: None,
    )
    run.open()
    try:
        claim = run.begin(study_id, user_id, int(target), origin, comment)
        state = run.put_back(folder)
    finally:
        run.close()
    return RolledBack(claim.request_id, int(target), state)


class RollbackRun(PageRun):
    """The life of one rollback; never tried again by itself."""

    what = "rollback"

    def begin(self, study_id: int, user_id: int, restores_id: int, origin: str, comment: str = "") -> BuildClaim:
        """Lock the study and keep the lease alive. Raises what `begin_rollback` raises."""
        lease = self.services.settings.lease_duration
        claim = self._hold(
            begin_rollback(
                self.services.sessions,
                study_id,
                user_id,
                restores_id,
                self.run_id,
                lease,
                origin=origin,
                comment=comment,
            )
        )
        self._step = self.what
        logger.info("claimed rollback %s of %s to request %s", claim.request_id, claim.study_name, restores_id)
        return claim

    def put_back(self, folder: str) -> str:
        """Make the earlier page live and end the request. Returns the study's state."""
        claim = self.held()
        try:
            facts = self._replace_page(claim, folder)
            state = self.ledger.finish(claim, self._extra({"facts": facts}))
            self._ended = True
        except BaseException as error:
            self.end_with(error)
            if not self.rolled_forward:
                raise
            state = claim.state_before
        return state

    def _replace_page(self, claim: BuildClaim, folder: str) -> dict[str, Any]:
        live = live_deployment(self.bucket, folder)
        done = rollback(
            self.bucket,
            folder,
            request_id=claim.page_owner,
            fencing_token=claim.fencing_token,
            seen_generation=live.generation if live else 0,
            before_commit=self.before_commit,
            after_commit=self.bucket.ask_to_the_end,
        )
        return {
            "bucket": self.services.bucket.name,
            "folder": folder,
            "files": done.file_count,
            "bytes": done.size_bytes,
            "replaced request": done.replaced_request_id,
        }

    def _fail(self, claim: BuildClaim, failure: Failure, extra: dict[str, Any]) -> None:
        self.ledger.fail(claim, failure, extra)
