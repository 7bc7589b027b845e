"""Settings of what people see: the addresses of pages, and how mail leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from domain.errors import InvalidRequest
from domain.escaping import deliverable_address
from lookit_ops.settings.general import GeneralSettings
from lookit_ops.settings.production import origin
from lookit_ops.settings.values import PREFIX, BaseUrl, Folder, PreviewsUrl


class AddressSettings(GeneralSettings):
    """Where pages are, and from where mail comes."""

    platform_url: BaseUrl = Field(
        "http://localhost:8000/", description="Base URL of the web application, for links in mails."
    )
    studies_url: BaseUrl = Field("http://localhost:8001/", description="Base URL where families meet deployed studies.")
    previews_url: PreviewsUrl = Field(
        "http://{uuid}.localhost:8002/",
        description="Base URL of previews, on an origin of its own; with `{uuid}` in the host, one for each study.",
    )
    mail_sender: str = Field("lookit@localhost.localdomain", description="Address from which mails are sent.")
    mail_folder: Folder = Field(
        None,
        description="Folder that gets mails as .eml files while there is no SMTP server; empty: `mail` in the home.",
    )
    smtp_host: str = Field("", description="SMTP server; empty: mails go into the folder.")
    smtp_port: int = Field(587, gt=0, lt=65536, description="Port of the SMTP server.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="How the SMTP connection is secured."
    )
    smtp_user: str = Field("", description="Account on the SMTP server; empty: no login.")
    smtp_password: SecretStr | None = Field(None, description="Password of that account.")

    @field_validator("mail_sender")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            deliverable_address(value)
        except InvalidRequest:
            raise ValueError("must be one e-mail address, in ASCII before the @") from None
        return value

    @model_validator(mode="after")
    def _previews_have_an_origin_of_their_own(self) -> Self:
        if origin(self.previews_url) == origin(self.studies_url):
            raise ValueError(
                f"{PREFIX}PREVIEWS_URL must differ from {PREFIX}STUDIES_URL in scheme, host or port, and"
                f" {self.previews_url!r} does not from {self.studies_url!r}: both serve /studies/{{uuid}}/, and what"
                " one of them stores in a browser the other could read"
            )
        return self

    @property
    def mails(self) -> Path:
        """The folder for mails."""
        return (self.mail_folder or self.home_folder / "mail").expanduser().resolve()
