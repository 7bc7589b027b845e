"""`lookit-ops mail`: the outbox."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy import select

from domain.db import LARGEST_ID
from domain.mail.outbox import try_again
from domain.models import OutboxMail
from lookit_ops.cli.options import MOST_ROWS, Json, services
from lookit_ops.cli.show import as_json, coloured, console, counted, plain, table, when
from lookit_ops.mail_delivery import deliver_mails

app = typer.Typer(help="Mails: list them, deliver what is due, try again what failed.", no_args_is_help=True)


@app.command()
def deliver() -> None:
    """Deliver the mails that are due."""
    done = deliver_mails(services())
    console.print(f"{done.sent} sent, {done.delayed} delayed, {done.failed} failed, {done.withdrawn} withdrawn.")


@app.command()
def retry(
    mail_id: Annotated[
        int | None, typer.Argument(metavar="[ID]", min=1, max=LARGEST_ID, help="Id of the mail; without it: all.")
    ] = None,
) -> None:
    """Put mails that failed back into the outbox, due now, as if they had never been tried."""
    ids = try_again(services().sessions, mail_id)
    console.print(f"{counted(ids, 'mail')} put back{': ' if ids else ''}{', '.join(map(str, ids))}.", soft_wrap=True)


@app.command("list")
def list_mails(
    json: Json = False,
    last: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="How many mails, the newest.")] = 20,
) -> None:
    """List the mails, newest first, and what became of them."""
    with services().reading.begin() as session:
        mails = list(session.scalars(select(OutboxMail).order_by(OutboxMail.id.desc()).limit(last)))
        addresses = {mail.id: mail.recipient.email for mail in mails}
    if json:
        as_json(
            [
                {
                    "id": mail.id,
                    "to": addresses[mail.id],
                    "template": mail.template,
                    "event": mail.event,
                    "status": mail.status,
                    "attempts": mail.attempts,
                    "created_at": mail.created_at,
                    "sent_at": mail.sent_at,
                    "last_error": mail.last_error,
                }
                for mail in mails
            ]
        )
        return
    rows = [
        (
            str(mail.id),
            plain(addresses[mail.id]),
            plain(mail.template),
            plain(str(mail.context.get("study", {}).get("name", ""))),
            coloured(mail.status),
            when(mail.sent_at or mail.created_at),
            plain(mail.last_error or ""),
        )
        for mail in mails
    ]
    table(counted(rows, "mail"), ("id", "to", "what", "study", "status", "at (UTC)", "last error"), rows)
