"""A row in every table, by the domain's own acts."""

from __future__ import annotations

from datetime import timedelta

from domain.models import ArchiveKind, BuildKind, Study, User
from domain.permissions.grants import grant
from domain.requests.archives import ArchiveFacts, ArchiveLedger
from domain.videos.selection import basis_of, select_videos
from tests.support.footage import Footage
from tests.support.site import Site


def fill_every_table(site: Site) -> None:
    """Put at least one row into each table of the schema."""
    footage, archives = Footage(site), ArchiveLedger(site.sessions)
    footage.video(footage.response("rejected", "accepted"))
    request_id = archives.request(site.study_id, site.study_admin, ArchiveKind.ALL)
    claim = archives.claim(request_id, "run-1", timedelta(minutes=1))
    with site.sessions.begin() as session:
        user, study = session.get_one(User, site.study_admin), session.get_one(Study, site.study_id)
        basis = basis_of(select_videos(session, user, study, ArchiveKind.ALL).videos)
        grant(session, user, session.get_one(User, site.stranger), "preview", study)
    archives.finish(claim, ArchiveFacts("u/a.zip", 3, (), 0, 0, basis, was_there=False), {})
    for kind in BuildKind:
        build = site.ledger.request(site.study_id, site.study_admin, kind)
        held = site.ledger.claim(build, f"run of {build}", timedelta(minutes=1))
        site.ledger.note_commit(held, repository="lookit/player", sha="a" * 40, reason="it is the newest")
        site.ledger.finish(held, {"facts": {"files": 3}})
