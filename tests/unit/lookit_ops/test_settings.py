"""The settings: a development machine needs none, a wrong one is named, and a secret is shown to nobody."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from domain.errors import InvalidRequest
from lookit_ops.settings import OFFICIAL_PLAYER, PREFIX, Settings, load_settings

SECRETS = {
    "LOOKIT_DATABASE_URL": "postgresql://lookit:db%2Fpass-word@db.test/lookit",
    "LOOKIT_GITHUB_TOKEN": "github-token-0815",
    "LOOKIT_SMTP_PASSWORD": "smtp-password-0815",
    "LOOKIT_PLAYER_S3_ACCESS_KEY_ID": "access-key-0815",
    "LOOKIT_PLAYER_S3_SECRET_ACCESS_KEY": "secret-key-0815",
}
VALUES = {"db/pass-word", *(value for name, value in SECRETS.items() if name != "LOOKIT_DATABASE_URL")}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and nothing else in the environment."""
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOOKIT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_all(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_development_machine_needs_no_setting(home: Path) -> None:
    settings = load_settings()
    assert settings.environment == "development"
    assert settings.database == f"sqlite:///{home}/lookit.db"
    assert settings.bucket == home / "buckets" / "development"
    assert settings.mails == home / "mail"
    assert settings.lease_duration == timedelta(minutes=2)
    assert settings.trusted_repositories == [OFFICIAL_PLAYER]
    assert settings.secrets() == []
    assert settings.player_environment(trusted=True) == {}
    assert list(home.iterdir()) == []  # reading settings makes nothing


def test_without_a_home_it_is_a_folder_here_and_stays_it_wherever_the_run_goes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKIT_HOME", "")
    settings = load_settings()
    assert settings.home_folder == home / ".lookit"
    monkeypatch.chdir("/")
    assert settings.home_folder == home / ".lookit"


def test_an_empty_folder_means_the_default_and_not_the_working_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {"LOOKIT_BUCKET_FOLDER": "", "LOOKIT_MAIL_FOLDER": ""})
    assert load_settings().bucket == home / "buckets" / "development"
    assert load_settings().mails == home / "mail"
    set_all(monkeypatch, {"LOOKIT_BUCKET_FOLDER": "~/bucket", "LOOKIT_MAIL_FOLDER": "mails", "HOME": "/home/someone"})
    assert load_settings().bucket == Path("/home/someone/bucket")
    assert load_settings().mails == home / "mails"


def test_each_value_is_read_as_what_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "LOOKIT_ENVIRONMENT": "production",
        "LOOKIT_TRUSTED_REPOSITORIES": f" {OFFICIAL_PLAYER}, https://github.com/lab/player ,",
        "LOOKIT_REFUSE_INVALID_SHA": "true",
        "LOOKIT_LEASE": "90",
        "LOOKIT_PLATFORM_URL": "https://lookit.test/app",
        "LOOKIT_GITHUB_API_URL": "https://github.test/api/v3/",
        "LOOKIT_SMTP_PORT": "25",
    }
    set_all(monkeypatch, given)
    settings = load_settings()
    assert settings.bucket.name == "production"
    assert settings.trusted_repositories == [OFFICIAL_PLAYER, "https://github.com/lab/player"]
    assert settings.refuse_invalid_sha is True
    assert settings.lease_duration == timedelta(seconds=90)
    assert settings.platform_url == "https://lookit.test/app/"
    assert settings.github_api_url == "https://github.test/api/v3"
    assert settings.smtp_port == 25


def test_an_operator_may_trust_no_repository_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_TRUSTED_REPOSITORIES", "")
    assert load_settings().trusted_repositories == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOOKIT_ENVIRONMENT", "prod"),
        ("LOOKIT_DATABASE_URL", "nonsense"),
        ("LOOKIT_DATABASE_URL", "mysql://db.test/lookit"),
        ("LOOKIT_GITHUB_API_URL", "api.github.com"),
        ("LOOKIT_GITHUB_WEB_URL", "ftp://github.com"),
        ("LOOKIT_PLAYER_REPO_URL", "lookit/player"),
        ("LOOKIT_REFUSE_INVALID_SHA", "perhaps"),
        ("LOOKIT_ARCHIVE_LIMIT_MB", "0"),
        ("LOOKIT_ARCHIVE_LIMIT_MB", "a lot"),
        ("LOOKIT_BUILD_TIME_LIMIT", "-1"),
        ("LOOKIT_BUILD_TIME_LIMIT", "inf"),
        ("LOOKIT_LEASE", "0"),
        ("LOOKIT_LEASE", "nan"),
        ("LOOKIT_PLATFORM_URL", "localhost:8000"),
        ("LOOKIT_STUDIES_URL", "studies"),
        ("LOOKIT_PREVIEWS_URL", "//previews.test/"),
        ("LOOKIT_MAIL_SENDER", "lookit"),
        ("LOOKIT_MAIL_SENDER", "Lookit <lookit@example.org>"),
        ("LOOKIT_MAIL_SENDER", "a@b@c"),
        ("LOOKIT_MAIL_SENDER", "@example.org"),
        ("LOOKIT_MAIL_SENDER", "two words@example.org"),
        ("LOOKIT_SMTP_PORT", "65536"),
        ("LOOKIT_SMTP_SECURITY", "ssl"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequest, match=name) as refusal:
        load_settings()
    assert value.strip("-") in str(refusal.value)
    assert "docs/configuration.md" in str(refusal.value)


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"LOOKIT_SMTP_PORT": "0", "LOOKIT_LEASE": "soon"})
    with pytest.raises(InvalidRequest, match=r"(?s)LOOKIT_LEASE.*LOOKIT_SMTP_PORT"):
        load_settings()


def test_previews_and_studies_cannot_share_an_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_PREVIEWS_URL", "http://localhost:8001")
    with pytest.raises(InvalidRequest, match=r"LOOKIT_PREVIEWS_URL must differ.*http://localhost:8001/"):
        load_settings()


def test_a_wrong_value_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_DATABASE_URL", "mysql://lookit:hunter2-hunter2@db.test/lookit")
    with pytest.raises(InvalidRequest, match=r"LOOKIT_DATABASE_URL.*mysql://lookit") as refusal:
        load_settings()
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("name", ["LOOKIT_SMTP_HOSTS", "LOOKIT_", "LOOKIT_TRUSTED_REPOSITORY"])
def test_a_misspelt_variable_is_refused_in_the_environment_and_in_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (home / "settings.env").write_text(f"{name}=x\n")
    with pytest.raises(InvalidRequest, match=f"no setting is called {name};"):
        load_settings()
    (home / "settings.env").unlink()
    load_settings()
    monkeypatch.setenv(name, "x")
    with pytest.raises(InvalidRequest, match=f"no setting is called {name};"):
        load_settings()


def test_the_file_in_the_home_is_read_and_the_environment_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "settings.env").write_text("LOOKIT_SMTP_HOST=file.test\nLOOKIT_SMTP_USER=file\nUNRELATED=1\n")
    monkeypatch.setenv("LOOKIT_SMTP_USER", "environment")
    settings = load_settings()
    assert (settings.smtp_host, settings.smtp_user) == ("file.test", "environment")


def test_a_wrong_value_in_the_file_is_refused_as_well(home: Path) -> None:
    (home / "settings.env").write_text("LOOKIT_SMTP_PORT=many\n")
    with pytest.raises(InvalidRequest, match=r"LOOKIT_SMTP_PORT.*'many'"):
        load_settings()


def test_a_build_sees_the_allow_list_and_its_secrets_only_if_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    public = {
        "SENTRY_DSN": "https://sentry.test/1",
        "PIPE_ACCOUNT_HASH": "hash",
        "PIPE_ENVIRONMENT": "1",
        "S3_REGION": "us-east-1",
        "S3_BUCKET": "videos",
    }
    set_all(monkeypatch, SECRETS | {f"LOOKIT_PLAYER_{name}": value for name, value in public.items()})
    settings = load_settings()
    assert settings.player_environment(trusted=False) == public
    assert settings.player_environment(trusted=True) == public | {
        "S3_ACCESS_KEY_ID": "access-key-0815",
        "S3_SECRET_ACCESS_KEY": "secret-key-0815",
    }


def test_every_secret_is_handed_to_the_redaction(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SECRETS)
    assert set(load_settings().secrets()) == VALUES


def test_shown_settings_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SECRETS)
    settings = load_settings()
    for shown in (repr(settings), str(settings), f"{settings}"):
        assert not [value for value in {*VALUES, "db%2Fpass-word"} if value in shown]
        assert "environment='development'" in shown


def test_settings_do_not_change_while_the_process_runs() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.environment = "production"


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
