"""No text of a person or a build commands the terminal of who lists it: every command, every text in the database."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from sqlalchemy import String, Table, Text, select, update

from domain.db import Base
from domain.models import BuildKind, State, Study, User
from lookit_ops.cli.main import app
from lookit_ops.cli.show import plain, visible
from tests.integration.cli.conftest import Shown
from tests.support.site import Site

EVIL = " [bold]b[/] :bomb: \\ \x1b]0;pwned\x07\x1b[2J\x1b]52;c;cHduZWQ=\x07 \x9b31m \x9d0;x\x9c \x08\x0b\r\x7f"
"""Sets the title, clears the screen, fills the clipboard; and rich's own markup."""
SHORT = "\x1b[2J\x9b"
"""For columns that hold no more."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
KEPT = {
    "state",
    "state_before",
    "state_after",
    "state_before_build",
    "kind",
    "status",
    "scope",
    "code",
    "grant_record.action",
}
"""Text columns whose values are the program's own words: CHECKs or look-ups hold them."""


def text_columns(table: Table) -> Iterator[Any]:
    for column in table.columns:
        if isinstance(column.type, String | Text) and not {column.name, f"{table.name}.{column.name}"} & KEPT:
            yield column


@pytest.fixture
def evil(site: Site, run: Callable[..., Shown]) -> Site:
    """The site after some life, with control characters behind every text that somebody wrote."""
    site.set_state(State.CREATED)
    run("study", "edit", str(site.study().uuid), "--as", "study_admin@example.org", "--purpose", "Another one")
    run("study", "transition", str(site.study().uuid), "submit", "--as", "study_admin@example.org", "--comment", "So")
    site.set_state(State.APPROVED)
    ended = site.ledger.request(site.study_id, site.study_admin, BuildKind.DEPLOYMENT)
    site.ledger.refuse(ended, "platform_error", "it failed")
    site.ledger.request(site.study_id, site.study_admin, BuildKind.PREVIEW)
    with site.sessions.begin() as session:
        study = session.get_one(Study, site.study_id)
        study.study_metadata = {"player_repo_url": f"https://x/{EVIL}", "last_known_player_sha": EVIL}
        study.is_discoverable, study.deployed_at = True, study.created_at
        study.state = State.ACTIVE.value
        session.flush()
        for table in Base.metadata.sorted_tables:
            if table.name == "study_log":
                whole = {
                    "comment": EVIL,
                    f"name{EVIL}": [EVIL, {EVIL: EVIL}],
                    "diff": {"purpose": [EVIL, f"{EVIL}\n{EVIL}"], f"field{EVIL}": [{EVIL: EVIL}, None]},
                    "build_output": f"==> ember build\n{EVIL}",
                    "image_output": EVIL,
                    "log": EVIL,
                    "exception": {"traceback": EVIL},
                }
                session.execute(update(table).values(extra=whole))
            for column in text_columns(table):
                behind = EVIL if (column.type.length or 1000) >= 100 else SHORT
                session.execute(update(table).where(column.is_not(None)).values({column: column + behind}))
            if table.name == "outbox_mail":
                session.execute(update(table).values(last_error=EVIL, context={"study": {"name": EVIL}}))
    return site


def commands() -> set[str]:
    group = typer.main.get_command(app)
    found = set()
    for name, command in group.commands.items():  # ty: ignore[unresolved-attribute]
        found |= {f"{name} {inner}" for inner in getattr(command, "commands", {})} or {name}
    return found


SERVERS = {"demo", "dev", "serve", "up"}
CALLS: list[tuple[str, ...]] = [
    ("db", "upgrade"),
    ("study", "list"),
    ("study", "list", "--json"),
    ("study", "show", "STUDY"),
    ("study", "show", "STUDY", "--json"),
    ("study", "log", "STUDY"),
    ("study", "log", "STUDY", "--full"),
    ("study", "log", "STUDY", "--json"),
    ("study", "diff", "STUDY"),
    ("study", "availability"),
    ("study", "discoverable"),
    ("study", "discoverable", "--json"),
    ("study", "transition", "STUDY", "--as", "ADMIN"),
    ("study", "transition", "STUDY", "--as", "STRANGER"),
    ("study", "transition", "STUDY", "pause", "--as", "ADMIN", "--comment", EVIL),
    ("study", "edit", "STUDY", "--as", "ADMIN", "--purpose", EVIL),
    ("study", "move-to-lab", "STUDY", "LAB", "--as", "ADMIN"),
    ("study", "move-to-lab", "STUDY", "OTHER_LAB", "--as", "SUPERUSER"),
    ("build", "list"),
    ("build", "list", "--json"),
    ("build", "request", "STUDY", "--as", "ADMIN"),
    ("build", "cancel", "1", "--as", "ADMIN"),
    ("build", "cancel", "2", "--as", "STRANGER"),
    ("build", "reconcile"),
    ("cleanup", "builds"),
    ("cleanup", "builds", "--json"),
    ("cleanup", "checkouts", "--dry-run"),
    ("cleanup", "dependencies", "--older-than-hours", "0"),
    ("cleanup", "docker-images"),
    ("cleanup", "archives", "--dry-run"),
    ("cleanup", "usage"),
    ("build", "deployments", "STUDY"),
    ("build", "deployments", "STUDY", "--json"),
    ("build", "rollback", "STUDY", "--as", "ADMIN"),
    ("build", "prune", "--dry-run"),
    ("videos", "zip", "STUDY", "--as", "ADMIN", "--kind", "all"),
    ("videos", "zip", "STUDY", "--as", "ADMIN", "--kind", "all", "--name-contains", EVIL),
    ("videos", "zip", "STUDY", "--as", "STRANGER"),
    ("videos", "link", "1", "--as", "ADMIN"),
    ("videos", "link", "2", "--as", "ADMIN"),
    ("videos", "cancel", "2", "--as", "ADMIN"),
    ("videos", "list"),
    ("videos", "list", "--json"),
    ("videos", "mark-consent", "STUDY", EVIL, "--as", "SUPERUSER"),
    ("videos", "catalogue"),
    ("videos", "catalogue", "--json"),
    ("mail", "list"),
    ("mail", "list", "--json"),
    ("mail", "deliver"),
    ("mail", "retry"),
    ("mail", "retry", "1"),
    ("permission", "first-admin", "STRANGER"),
    ("permission", "make-role", f"coders{EVIL}", "view_study", "--on", "study", "--as", "SUPERUSER"),
    ("permission", "make-role", EVIL, EVIL, "--on", "study", "--as", "SUPERUSER"),
    ("permission", "list"),
    ("permission", "list", "--study", "STUDY"),
    ("permission", "list", "--lab", "LAB"),
    ("permission", "list", "--lab", "LAB", "--json"),
    ("permission", "who", "view_study", "--study", "STUDY"),
    ("permission", "who", "view_study", "--study", "STUDY", "--json"),
    ("permission", "explain", "ADMIN", "view_study", "--study", "STUDY"),
    ("permission", "explain", "STRANGER", "view_study", "--study", "STUDY"),
    ("permission", "explain", "STRANGER", "view_study", "--lab", "LAB", "--json"),
    ("permission", "grant", "STRANGER", f"design{EVIL}", "--study", "STUDY", "--as", "ADMIN"),
    ("permission", "grant", "STRANGER", f"design{EVIL}", "--study", "STUDY", "--as", "ADMIN", "--dry-run"),
    ("permission", "revoke", "STRANGER", f"design{EVIL}", "--study", "STUDY", "--as", "ADMIN"),
    ("permission", "revoke", "STRANGER", EVIL, "--study", "STUDY", "--as", "ADMIN"),
    ("workflow", "check", EVIL),
    ("workflow", "diagram", "STUDY", "-o", f"{EVIL.replace('/', '')}.svg"),
    ("study", "show", EVIL),
    ("study", "show", "x", "--json"),
    ("permission", "list", "--lab", "nothing"),
    ("permission", "who", EVIL),
]


def test_every_command_is_looked_at() -> None:
    assert {" ".join(call[:2]) for call in CALLS} == commands() - SERVERS


def test_no_command_passes_control_characters_on(evil: Site, run: Callable[..., Shown]) -> None:
    with evil.sessions.begin() as session:
        emails = {
            word: session.get_one(User, user_id).email
            for word, user_id in (
                ("ADMIN", evil.study_admin),
                ("STRANGER", evil.stranger),
                ("SUPERUSER", evil.superuser),
            )
        }
        lab = Base.metadata.tables["lab"]
        session.execute(lab.insert().values(name=f"Other{EVIL}"))
        labs = {
            "LAB": session.scalar(select(lab.c.name).where(lab.c.id == evil.lab_id)),
            "OTHER_LAB": f"Other{EVIL}",
        }
    said = {**emails, **labs, "STUDY": str(evil.study().uuid)}
    assert all(CONTROL.search(said[word]) for word in ("ADMIN", "STRANGER", "LAB", "OTHER_LAB"))
    seen = []
    for call in CALLS:
        shown = run(*[said.get(argument, argument) for argument in call])
        assert shown.status in (0, 1), (call, shown)
        assert "Traceback" not in shown.err, (call, shown)
        assert CONTROL.findall(shown.out + shown.err) == [], (call, shown)
        seen.append(shown.out + shown.err)
    assert json.loads(run("study", "list", "--json").out)[0]["name"].endswith(EVIL), "JSON keeps what it escapes"
    everything = "".join("\n".join(seen).split())
    assert "␛]0;pwned␇␛[2J" in everything, "it is shown, not dropped"
    assert "[bold]b[/]" in everything
    assert ":bomb:" in everything


def test_nor_does_what_is_logged_beside_a_command(evil: Site, database_url: str, tmp_path: Path) -> None:
    """In a process of its own: here pytest takes what is logged. There is no mail server."""
    settings = {
        "LOOKIT_DATABASE_URL": database_url,
        "LOOKIT_HOME": str(tmp_path),
        "LOOKIT_SMTP_HOST": "127.0.0.1",
        "LOOKIT_SMTP_PORT": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "lookit_ops.cli.main", "mail", "deliver"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"mail \d+ to site_admin@example\.org \[bold\]b\[/\] :bomb:.*␛\]0;pwned␇", done.stderr), done.stderr
    assert CONTROL.findall(done.stderr + done.stdout) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc\r\nd", "a\tb\nc\nd"),
        ("\x00\x1b\x1f\x7f", "␀␛␟␡"),
        ("\x80\x9b\x9f", r"\x80\x9b\x9f"),
        ("progress\rdone", "progress␍done"),
        ("\udce9", "\ufffd"),
        ("Äpfel und Birnen 🍐 – “so”", "Äpfel und Birnen 🍐 – “so”"),
    ],
)
def test_a_control_character_is_seen_and_all_other_text_stays(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_what_goes_into_markup_is_escaped_as_well() -> None:
    assert plain("[red]\x1b[0m[/red]") == r"\[red]␛[0m\[/red]"
