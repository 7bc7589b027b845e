"""The settings that a production needs at the least, as arguments of `Settings`."""

from __future__ import annotations

from typing import Any

PRODUCTION: dict[str, Any] = {
    "environment": "production",
    "platform_url": "https://lookit.example/",
    "studies_url": "https://studies.lookit.example/",
    "previews_url": "https://previews.lookit-content.example/",
    "archives_url": "https://archives.lookit.example/",
    "smtp_host": "mail.lookit.example",
    "mail_sender": "lookit@lookit.example",
}
