"""`lookit-ops study`: look at studies, change them, read what happened to them."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from rich.panel import Panel
from rich.rule import Rule
from sqlalchemy import func, select

from domain.db import LARGEST_ID
from domain.errors import InvalidRequest
from domain.lookup import find_lab, find_study, find_user
from domain.models import Lab, Study, StudyLog
from domain.models.studies import State
from domain.studies.diff import readable_diff
from domain.studies.edit import PLAYER_FIELDS
from domain.studies.edit import edit as edit_study
from domain.studies.labs import move_to_lab as move_study
from domain.studies.workflow import Choice, allowed_triggers, triggers_from
from domain.studies.workflow import transition as move
from lookit_ops.cli.options import MOST_ROWS, Acting, Json, StudyName, services
from lookit_ops.cli.public_list import keep_page, keep_public_list
from lookit_ops.cli.requests import show_open
from lookit_ops.cli.show import as_json, coloured, console, counted, json_text, plain, table, visible, when
from lookit_ops.maintenance.availability import bring_pages_into_line
from lookit_ops.maintenance.public_list import KEY as PUBLIC_LIST
from lookit_ops.maintenance.public_list import refresh_public_list
from lookit_ops.storage.errors import StorageError

app = typer.Typer(help="Studies: list, show, edit, move, and read their logs.", no_args_is_help=True)

READABLE = {"image_output": "output of the image build", "build_output": "output of the build", "log": "log of the run"}
_SHA = re.compile("[0-9a-fA-F]{40}")


@app.command("list")
def list_studies(
    json: Json = False,
    state: Annotated[str, typer.Option(help="Only studies in this state.")] = "",
) -> None:
    """List the studies, the last changed first."""
    if state and state not in set(State):
        raise InvalidRequest(f"there is no state {state!r}; there are {', '.join(State)}")
    query = select(Study, Lab.name).join(Lab, Lab.id == Study.lab_id).order_by(Study.state_changed_at.desc(), Study.id)
    if state:
        query = query.where(Study.state == state)
    with services().reading.begin() as session:
        found = [(study, lab) for study, lab in session.execute(query)]
    if json:
        as_json([_facts(study, lab) for study, lab in found])
        return
    rows = [
        (plain(study.name), coloured(study.state), plain(lab), when(study.state_changed_at), str(study.uuid))
        for study, lab in found
    ]
    table(counted(rows, "study", "studies"), ("name", "state", "lab", "state since (UTC)", "UUID"), rows)


@app.command()
def show(study: StudyName, json: Json = False) -> None:
    """Show one study: its state, what may come next, its player, its reviewed content."""
    with services().reading.begin() as session:
        found = find_study(session, study)
        facts = _facts(found, found.lab.name)
        facts["logs"] = session.scalar(select(func.count(StudyLog.id)).where(StudyLog.study_id == found.id))
        facts["triggers"] = triggers_from(found.state)
    if json:
        as_json(facts)
        return
    lines = [f"[bold]{name.replace('_', ' ')}[/]: {plain(_text(value))}" for name, value in facts.items()]
    console.print(Panel("\n".join(lines), title=plain(found.name), title_align="left"))


def _facts(study: Study, lab: str) -> dict[str, Any]:
    return {
        "uuid": study.uuid,
        "name": study.name,
        "lab": lab,
        "state": study.state,
        "state_before_build": study.state_before_build,
        "state_changed_at": study.state_changed_at,
        "revision": study.revision,
        "approved_revision": study.approved_revision,
        "approved_commit": study.approved_sha,
        "deployed_at": study.deployed_at,
        "page": study.page_state,
        "is_discoverable": study.is_discoverable,
        "player_repo_url": study.study_metadata.get("player_repo_url"),
        "last_known_player_sha": study.study_metadata.get("last_known_player_sha"),
        "purpose": study.purpose,
        "duration": study.duration,
        "contact": study.contact,
        "exit_url": study.exit_url,
        "compensation": study.compensation,
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return when(value) if hasattr(value, "strftime") else str("–" if value in (None, "") else value)


@app.command()
def edit(
    study: StudyName,
    acting: Acting,
    repository: Annotated[
        str | None, typer.Option(help="Repository of the frame player; empty for the default.")
    ] = None,
    sha: Annotated[str | None, typer.Option(help="Commit of the player, 40 hex digits; empty for the newest.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study.")] = None,
    purpose: Annotated[str | None, typer.Option(help="What the study is for.")] = None,
    duration: Annotated[str | None, typer.Option(help="How long it takes a family.")] = None,
    contact: Annotated[str | None, typer.Option(help="Whom families may ask.")] = None,
    exit_url: Annotated[str | None, typer.Option(help="Where families go afterwards.")] = None,
    compensation: Annotated[str | None, typer.Option(help="What families get.")] = None,
    discoverable: Annotated[
        bool | None, typer.Option("--discoverable/--hidden", help="Whether the public list shows the study.")
    ] = None,
) -> None:
    """Change a study; after its approval, a change of reviewed content sends it back for another review."""
    outside = services()
    given = {
        "player_repo_url": None if repository is None else repository.strip(),
        "last_known_player_sha": None if sha is None else _checked_sha(sha),
        "name": name,
        "purpose": purpose,
        "duration": duration,
        "contact": contact,
        "exit_url": exit_url,
        "compensation": compensation,
        "is_discoverable": discoverable,
    }
    if given["player_repo_url"]:
        outside.trust.repository(given["player_repo_url"])
    with outside.sessions.begin() as session:
        found, user = find_study(session, study), find_user(session, acting)
        before, metadata = found.state, dict(found.study_metadata)
        changed = edit_study(session, found, user, {key: value for key, value in given.items() if value is not None})
        after, metadata_after = found.state, found.study_metadata
    if not changed:
        console.print("Nothing changed.")
        return
    if after != before:
        keep_page(outside, found.id)
    keep_public_list(outside)
    # The player's two values live in one column, whose name tells nobody what was changed.
    player = [name for name in PLAYER_FIELDS if metadata.get(name) != metadata_after.get(name)]
    named = [name for name in changed if name != "study_metadata"] + player
    console.print(f"Changed: {', '.join(named)}.")
    if after != before:
        console.print(f"The study went from {coloured(before)} to {coloured(after)}: it needs to be reviewed again.")


def _checked_sha(typed: str) -> str:
    """The commit as it is stored. A malformed one would only be noticed by a build, which then takes another commit."""
    sha = typed.strip()
    if sha and not _SHA.fullmatch(sha):
        raise InvalidRequest(
            f"{typed!r} is no commit of a player: give all 40 hexadecimal digits of its SHA, or '' for the newest"
        )
    return sha


@app.command()
def transition(
    study: StudyName,
    acting: Acting,
    trigger: Annotated[
        str, typer.Argument(help="What to do: submit, approve, reject, …; without it: what you may.")
    ] = "",
    comment: Annotated[str, typer.Option(help="A comment for the log and the mail.")] = "",
    revision: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_ID, help="With approve: the revision that you have read.")
    ] = None,
) -> None:
    """Move a study through the workflow; without a trigger, say what is possible, and why not and who could."""
    outside = services()
    with outside.sessions.begin() as session:
        found, user = find_study(session, study), find_user(session, acting)
        before = found.state
        if not trigger and (comment or revision is not None):
            raise InvalidRequest(
                "a comment or a revision goes with a trigger: say which, or leave it out to see what may be done"
            )
        if not trigger:
            _show_choices(found, allowed_triggers(session, found, user))
            return
        move(session, found, trigger, user, comment, revision=revision, is_trusted=outside.trust.trusts_url)
        after = found.state
    console.print(f"{plain(found.name)}: {coloured(before)} → {coloured(after)}")
    keep_page(outside, found.id)
    keep_public_list(outside)


def _show_choices(study: Study, choices: list[Choice]) -> None:
    rows = [
        (
            choice.trigger,
            f"→ {coloured(choice.dest)}" if choice.dest else "–",
            "[green]yes[/]" if choice.allowed else plain(choice.reason),
            plain(", ".join(choice.who_could[:3]) + (" …" if len(choice.who_could) > 3 else "")),
        )
        for choice in choices
    ]
    table(f"{plain(study.name)} is {coloured(study.state)}", ("trigger", "leads to", "allowed", "who could"), rows)


@app.command()
def move_to_lab(
    study: StudyName, lab: Annotated[str, typer.Argument(help="Name or UUID of the new lab.")], acting: Acting
) -> None:
    """Move a study to another lab; who holds no role there loses theirs on the study."""
    outside = services()
    with outside.sessions.begin() as session:
        found, user = find_study(session, study), find_user(session, acting)
        before = found.state
        outsiders = move_study(session, found, find_lab(session, lab), user)
        after = found.state
    if after != before:
        keep_page(outside, found.id)
    keep_public_list(outside)
    console.print(f"{plain(found.name)} is in the lab {plain(lab)} now.")
    if outsiders:
        console.print(f"No role on it any more: {plain(', '.join(user.email for user in outsiders))}.")
    if after != before:
        console.print(f"The study went from {coloured(before)} to {coloured(after)}: it needs to be reviewed again.")


@app.command()
def availability() -> None:
    """Take down and put back what families get, as the states of the studies say, as the sensor `availability` does."""
    outside = services()
    done = bring_pages_into_line(outside)
    with outside.sessions.begin() as session:
        changed = [int(number) for number in (*done.taken_down, *done.put_back)]
        found = session.execute(select(Study.id, Study.name).where(Study.id.in_(changed)))
        names = {study_id: name for study_id, name in found}  # noqa: C416 - a row is no pair for the type checker
    for what, ids in (("taken down", done.taken_down), ("put back", done.put_back)):
        for number in ids:
            console.print(f"{plain(names[int(number)])} was {what}.", soft_wrap=True)
    if not changed and not done.failed:
        console.print("Every study has the page that its state says.")
    if done.failed:
        raise StorageError(
            f"the pages of studies {', '.join(done.failed)} cannot be changed now, the lines above say why; try again"
        )


@app.command()
def discoverable(json: Json = False) -> None:
    """Bring the public list of studies in the bucket up to date, and print it."""
    outside = services()
    written = refresh_public_list(outside)
    if json:
        json_text(outside.bucket.read(PUBLIC_LIST).decode())
        return
    table(
        f"{counted(written.names, 'study', 'studies')} on the public list",
        ("name",),
        [(plain(name),) for name in written.names],
    )


@app.command()
def diff(
    study: StudyName,
    last: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="How many changes, the newest.")] = 10,
) -> None:
    """Show what was changed in a study's content, oldest first, as a reviewer reads it."""
    with services().reading.begin() as session:
        found = find_study(session, study)
        query = select(StudyLog).where(StudyLog.study_id == found.id).order_by(StudyLog.id.desc())
        changes = [entry for entry in session.scalars(query) if entry.extra.get("diff")][:last][::-1]
        names = {entry.id: entry.user.name if entry.user else "–" for entry in changes}
    for entry in changes:
        at = f" · revision {entry.revision}" if entry.revision is not None else ""
        console.print(Rule(f"{when(entry.created_at)} UTC · {plain(names[entry.id])}{at}", align="left"))
        if entry.extra.get("comment"):
            console.print(f"[italic]{plain(entry.extra['comment'])}[/]")
        for line in readable_diff(entry):
            style = {"+": "green", "-": "red"}.get(line.strip()[:1], "")
            console.print(plain(line), style=style, highlight=False)
    if not changes:
        console.print("Nothing was changed since the study was made.")


@app.command()
def log(
    study: StudyName,
    json: Json = False,
    full: Annotated[bool, typer.Option("--full", help="With the whole output of builds.")] = False,
    last: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="How many entries, the newest.")] = 20,
) -> None:
    """Show what happened to a study, oldest first, and which of its requests wait or run.

    Build output is printed as it was, line by line.
    """
    outside = services()
    with outside.reading.begin() as session:
        found = find_study(session, study)
        query = select(StudyLog).where(StudyLog.study_id == found.id).order_by(StudyLog.id.desc()).limit(last)
        logs = list(session.scalars(query))[::-1]
        names = {entry.id: entry.user.name if entry.user else "–" for entry in logs}
    if json:
        as_json([_entry(entry, names[entry.id]) for entry in logs])
        return
    for entry in logs:
        at = f" · revision {entry.revision}" if entry.revision is not None else ""
        what = f"{when(entry.created_at)} UTC · {entry.action} · {names[entry.id]}{at}"
        console.print(Rule(plain(what), align="left"))
        console.print(f"{coloured(entry.state_before)} → {coloured(entry.state_after)}")
        for line in readable_diff(entry):
            console.print(f"  {plain(line)}", highlight=False)
        _print_extra(entry.extra, full=full)
    if not show_open(outside, found.id) and not logs:
        console.print("Nothing has happened to this study yet.")


def _entry(entry: StudyLog, user: str) -> dict[str, Any]:
    return {
        "created_at": entry.created_at,
        "action": entry.action,
        "user": user,
        "state_before": entry.state_before,
        "state_after": entry.state_after,
        "revision": entry.revision,
        "extra": entry.extra,
    }


def _in_words(value: Any) -> str:
    """A value of a log, however deep, as one line."""
    match value:
        case dict():
            return ", ".join(f"{str(name).replace('_', ' ')} {_in_words(item)}" for name, item in value.items())
        case list():
            return "; ".join(map(_in_words, value))
        case None:
            return "–"
        case _:
            return str(value)


def _print_extra(extra: dict[str, Any], *, full: bool) -> None:
    for name, value in extra.items():
        if name in READABLE or name in ("diff", "exception"):
            continue
        if value not in (None, "", {}):
            console.print(f"  [bold]{plain(name.replace('_', ' '))}[/]: {plain(_in_words(value))}", highlight=False)
    if not full:
        hidden = [title for name, title in READABLE.items() if extra.get(name)]
        if hidden:
            console.print(f"  [dim]--full also prints: {', '.join(hidden)}[/]")
        return
    for name, title in READABLE.items():
        if extra.get(name):
            console.print(f"  [bold]{title}[/]:")
            console.out(visible(str(extra[name])), highlight=False)
    if extra.get("exception"):
        console.print("  [bold]exception[/]:")
        console.out(visible(str(extra["exception"].get("traceback", ""))), highlight=False)
