"""What is refused in production: addresses and ways of mail that are right on a developer's machine alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit


def production_faults(
    public_urls: Mapping[str, str], *, previews: str, apart_from: tuple[str, ...], smtp_host: str, mail_sender: str
) -> list[str]:
    """Return what is wrong with the settings for production, one sentence for each, which names the setting.

    `public_urls` are base URLs by the name of their setting; `previews` names the one whose origin must be none of
    those that `apart_from` names.
    """
    faults: list[str] = []
    for name, url in public_urls.items():
        if not url.startswith("https://"):
            faults.append(f"{name} must begin with https:// in production: {url!r} is sent without encryption")
        if is_local(urlsplit(url).hostname or ""):
            faults.append(f"{name} must name a host that other machines reach in production, and {url!r} does not")
    faults.extend(
        f"{previews} must differ from {name} in scheme, host or port in production: a preview that is not reviewed"
        f" could act there as the person who looks at it, and {public_urls[previews]!r} does not from"
        f" {public_urls[name]!r}"
        for name in apart_from
        if origin(public_urls[previews]) == origin(public_urls[name])
    )
    if not smtp_host:
        faults.append("LOOKIT_SMTP_HOST must name a mail server in production: without one, mails stay in a folder")
    if is_local(mail_sender.rpartition("@")[2]):
        faults.append(
            f"LOOKIT_MAIL_SENDER must be an address that can be answered in production, and {mail_sender!r} is not"
        )
    return faults


def is_local(host: str) -> bool:
    """Return whether the host name means the machine on which it is used."""
    name = host.lower().rstrip(".")
    if name in {"localhost", "localhost.localdomain"} or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def origin(url: str) -> tuple[str, str, int]:
    """Return what browsers tell pages apart by: scheme, host and port; the path does not count."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)
