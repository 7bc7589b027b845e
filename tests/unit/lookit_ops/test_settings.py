"""The settings: a development machine needs none, a wrong one is named, and a secret is shown to nobody."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from domain.db import engine_for
from domain.errors import InvalidRequest
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.redaction import Redactor
from lookit_ops.settings import OFFICIAL_PLAYER, PREFIX, Settings, load_settings
from tests.support.production import PRODUCTION

SECRETS = {
    "LOOKIT_DATABASE_URL": "postgresql://lookit:db%2Fpass-word@db.test/lookit",
    "LOOKIT_GITHUB_TOKEN": "github-token-0815",
    "LOOKIT_SMTP_PASSWORD": "smtp-password-0815",
    "LOOKIT_VIDEOS_ACCESS_KEY_ID": "videos-key-0815",
    "LOOKIT_VIDEOS_SECRET_ACCESS_KEY": "videos-secret-0815",
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
    assert settings.local_bucket == home / "buckets" / "development"
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
    assert load_settings().local_bucket == home / "buckets" / "development"
    assert load_settings().mails == home / "mail"
    set_all(monkeypatch, {"LOOKIT_BUCKET_FOLDER": "~/bucket", "LOOKIT_MAIL_FOLDER": "mails", "HOME": "/home/someone"})
    assert load_settings().local_bucket == Path("/home/someone/bucket")
    assert load_settings().mails == home / "mails"


def test_each_value_is_read_as_what_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "LOOKIT_ENVIRONMENT": "staging",
        "LOOKIT_TRUSTED_REPOSITORIES": f" {OFFICIAL_PLAYER}, https://github.com/lab/player ,",
        "LOOKIT_REFUSE_INVALID_SHA": "true",
        "LOOKIT_LEASE": "90",
        "LOOKIT_PLATFORM_URL": "https://lookit.test/app",
        "LOOKIT_GITHUB_API_URL": "https://github.test/api/v3/",
        "LOOKIT_SMTP_PORT": "25",
    }
    set_all(monkeypatch, given)
    settings = load_settings()
    assert settings.local_bucket.name == "staging"
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
        ("LOOKIT_DATABASE_URL", "postgresql+foo://db.test/lookit"),
        ("LOOKIT_DATABASE_URL", "postgresql+asyncpg://db.test/lookit"),
        ("LOOKIT_DATABASE_URL", "postgresql+psycopg2://db.test/lookit"),
        ("LOOKIT_DATABASE_URL", "sqlite+aiosqlite:///lookit.db"),
        ("LOOKIT_DATABASE_URL", "postgresql://db.test:port/lookit"),
        ("LOOKIT_GITHUB_API_URL", "api.github.com"),
        ("LOOKIT_GITHUB_API_URL", "https://"),
        ("LOOKIT_GITHUB_WEB_URL", "ftp://github.com"),
        ("LOOKIT_GITHUB_WEB_URL", "https://github.test:99999"),
        ("LOOKIT_PLAYER_REPO_URL", "lookit/player"),
        ("LOOKIT_REFUSE_INVALID_SHA", "perhaps"),
        ("LOOKIT_ARCHIVE_LIMIT_MB", "0"),
        ("LOOKIT_ARCHIVE_LIMIT_MB", "a lot"),
        ("LOOKIT_BUILD_TIME_LIMIT", "-1"),
        ("LOOKIT_BUILD_TIME_LIMIT", "inf"),
        ("LOOKIT_BUILD_TIME_LIMIT", "3000.5"),
        ("LOOKIT_BUILD_TIME_LIMIT", "1e+300"),
        ("LOOKIT_LEASE", "0"),
        ("LOOKIT_LEASE", "nan"),
        ("LOOKIT_LEASE", "1e300"),
        ("LOOKIT_LEASE", "3601"),
        ("LOOKIT_PLATFORM_URL", "localhost:8000"),
        ("LOOKIT_STUDIES_URL", "studies"),
        ("LOOKIT_STUDIES_URL", "http://localhost:99999/"),
        ("LOOKIT_STUDIES_URL", "http://localhost:0/"),
        ("LOOKIT_STUDIES_URL", "http://localhost:one/"),
        ("LOOKIT_STUDIES_URL", "http:///studies/"),
        ("LOOKIT_STUDIES_URL", "http://[::1/"),
        ("LOOKIT_STUDIES_URL", "http://studies.test/?a=b"),
        ("LOOKIT_STUDIES_URL", "http://studies.test/#a"),
        ("LOOKIT_STUDIES_URL", "http://studies test/"),
        ("LOOKIT_PREVIEWS_URL", "//previews.test/"),
        ("LOOKIT_MAIL_SENDER", "lookit"),
        ("LOOKIT_MAIL_SENDER", "Lookit <lookit@example.org>"),
        ("LOOKIT_MAIL_SENDER", "a@b@c"),
        ("LOOKIT_MAIL_SENDER", "@example.org"),
        ("LOOKIT_MAIL_SENDER", "two words@example.org"),
        ("LOOKIT_SMTP_PORT", "65536"),
        ("LOOKIT_SMTP_SECURITY", "ssl"),
        ("LOOKIT_BUILDER", "podman"),
        ("LOOKIT_DOCKER_ENGINE", "/var/run/docker.sock"),
        ("LOOKIT_DOCKER_DEPLOYMENT", "Two Words"),
        ("LOOKIT_DOCKER_DEPLOYMENT", "-a"),
        ("LOOKIT_BUILD_REGISTRY", "npm.lab.example"),
        ("LOOKIT_BUILD_OPEN_NETWORKS", "http://npm.lab.example"),
        ("LOOKIT_BUILD_OPEN_NETWORKS", "npm.lab.example, two words"),
        ("LOOKIT_BUILD_CPUS", "0"),
        ("LOOKIT_BUILD_CPUS", "inf"),
        ("LOOKIT_BUILD_PROCESSES", "-1"),
        ("LOOKIT_FREE_DISK_MB", "-1"),
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


@pytest.mark.parametrize(
    ("studies", "previews"),
    [
        ("http://localhost:8001", "http://localhost:8001/"),
        ("http://lookit.test/a/", "http://lookit.test/b/"),
        ("http://lookit.test/", "http://LOOKIT.test:80/previews"),
        ("https://lookit.test:443/", "https://lookit.test/"),
        ("https://lookit.test./", "https://lookit.test/"),
        ("https://lookit.test/", "https://someone@lookit.test/"),
    ],
)
def test_previews_and_studies_cannot_share_an_origin(
    monkeypatch: pytest.MonkeyPatch, studies: str, previews: str
) -> None:
    """A browser asks for scheme, host and port, and not how they are written; paths share all that it stores."""
    set_all(monkeypatch, {"LOOKIT_STUDIES_URL": studies, "LOOKIT_PREVIEWS_URL": previews})
    with pytest.raises(InvalidRequest, match=r"LOOKIT_PREVIEWS_URL must differ") as refusal:
        load_settings()
    assert previews in str(refusal.value)
    assert studies in str(refusal.value)


@pytest.mark.parametrize(
    ("studies", "previews"),
    [
        ("http://lookit.test/", "https://lookit.test/"),
        ("https://lookit.test/", "https://lookit.test:8443/"),
        ("https://studies.lookit.test/", "https://previews.lookit.test/"),
        ("http://lookit.test:443/", "https://lookit.test/"),
    ],
)
def test_another_scheme_host_or_port_is_another_origin(
    monkeypatch: pytest.MonkeyPatch, studies: str, previews: str
) -> None:
    set_all(monkeypatch, {"LOOKIT_STUDIES_URL": studies, "LOOKIT_PREVIEWS_URL": previews})
    assert (load_settings().studies_url, load_settings().previews_url) == (studies, previews)


@pytest.mark.parametrize("name", ["LOOKIT_HOME", "LOOKIT_BUCKET_FOLDER", "LOOKIT_MAIL_FOLDER"])
def test_a_file_is_no_folder(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv(name, "file")
    with pytest.raises(InvalidRequest, match=f"{name}: must be a folder, .*file"):
        load_settings()


def test_the_bucket_is_a_folder_or_one_of_google(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().gcs_bucket is None
    set_all(
        monkeypatch, {"LOOKIT_BUCKET": "gs://lookit-studies.example.org", "LOOKIT_GCS_ENDPOINT": "http://gcs.test/"}
    )
    settings = load_settings()
    assert (settings.gcs_bucket, settings.gcs_endpoint) == ("lookit-studies.example.org", "http://gcs.test")
    with pytest.raises(InvalidRequest, match=r"gs://lookit-studies\.example\.org, not a folder"):
        _ = settings.local_bucket
    monkeypatch.setenv("LOOKIT_BUCKET_FOLDER", "bucket")
    with pytest.raises(InvalidRequest, match=r"LOOKIT_BUCKET \(gs://.*LOOKIT_BUCKET_FOLDER \(bucket\).*set one"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LOOKIT_BUCKET", "lookit-studies", "such as gs://name"),
        ("LOOKIT_BUCKET", "gs://lookit-studies/folder", "without a path"),
        ("LOOKIT_BUCKET", "s3://lookit-studies", "Google Cloud Storage"),
        ("LOOKIT_BUCKET", "gs://Studies", "such as gs://name"),
        ("LOOKIT_GCS_CREDENTIALS_FILE", "no-such-key.json", "there is no such file"),
        ("LOOKIT_GCS_ENDPOINT", "storage.example.org", "must begin with http"),
    ],
)
def test_a_bucket_of_google_is_checked_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequest, match=f"{name}: .*{said}.*{value}"):
        load_settings()


def test_an_empty_key_of_google_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_GCS_CREDENTIALS_FILE", "")
    assert load_settings().gcs_credentials_file is None


@pytest.mark.parametrize("name", ["LOOKIT_HOME", "LOOKIT_BUCKET_FOLDER", "LOOKIT_MAIL_FOLDER"])
def test_a_home_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "~nobody-of-this-name/lookit")
    with pytest.raises(InvalidRequest, match=f"{name}:? must not begin with ~nobody-of-this-name: .*/lookit'"):
        load_settings()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///lookit.db",
        "sqlite+pysqlite:///lookit.db",
        "postgresql://db.test/lookit",
        "postgresql+psycopg://me:secret@db.test:5432/lookit?sslmode=require",
    ],
)
def test_every_database_url_that_is_let_in_can_be_opened_by_the_engine(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("LOOKIT_DATABASE_URL", url)
    engine_for(load_settings().database).dispose()


def test_a_build_fits_into_the_time_that_dagster_gives_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_BUILD_TIME_LIMIT", "3000")
    assert load_settings().build_time_limit + 600 <= int(build_experiment.tags["dagster/max_runtime"])


def test_a_settings_file_in_another_encoding_is_named_with_the_place(home: Path) -> None:
    (home / "settings.env").write_bytes("LOOKIT_MAIL_SENDER=änne@example.org\n".encode("latin-1"))
    with pytest.raises(InvalidRequest, match=r"settings\.env is not text in UTF-8 \(byte 0xe4 at position 19\)"):
        load_settings()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "mysql://lookit:hunter2@hunter2@db.test/lookit?a=b&password=hunter2",
            "mysql://…@db.test/lookit?a=b&password=",
        ),
        ("postgres://lookit:Abc/hunter2+12@db.test/lookit", "postgres://…@db.test/lookit"),
        ("postgresql+psycopg2://lookit:hun@ter2/hunter2@db.test/lookit", "postgresql+psycopg2://…@db.test/lookit"),
    ],
)
def test_a_wrong_value_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch, url: str, shown: str) -> None:
    monkeypatch.setenv("LOOKIT_DATABASE_URL", url)
    with pytest.raises(InvalidRequest, match=f"LOOKIT_DATABASE_URL.*{re.escape(shown)}") as refusal:
        load_settings()
    assert not re.search("hun|ter2|Abc", str(refusal.value))


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


def test_a_password_in_the_query_of_the_databases_url_is_a_secret_too(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://db.test/lookit?user=me&password=query%2Fpass+word&sslpassword=of-the-key&sslmode=require"
    monkeypatch.setenv("LOOKIT_DATABASE_URL", url)
    settings = load_settings()
    assert set(settings.secrets()) == {"query/pass word", "of-the-key"}
    assert "pass" not in Redactor(settings.secrets())(url).replace("password=", "")


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


def test_a_build_needs_memory_for_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_BUILD_WORK_MB", "6000")
    with pytest.raises(InvalidRequest, match=r"LOOKIT_BUILD_MEMORY_MB is 7000.*give it 9300 or more"):
        load_settings()
    monkeypatch.setenv("LOOKIT_BUILD_MEMORY_MB", "9300")
    assert load_settings().build_work_mb == 6000


def test_a_registry_holds_no_password_since_every_build_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_BUILD_REGISTRY", "https://user:pass-word@npm.lab.example")
    with pytest.raises(InvalidRequest, match="LOOKIT_BUILD_REGISTRY: must hold no password") as refused:
        load_settings()
    assert "pass-word" not in str(refused.value)


@pytest.mark.parametrize(
    "value", ["", "npm.lab.example", "10.1.2.0/24:4873, [fd00::1]:443,fd00::/64", "192.168.1.7", "registry:5000"]
)
def test_networks_may_be_opened_in_each_notation(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LOOKIT_BUILD_OPEN_NETWORKS", value)
    assert load_settings().build_open_networks == [entry.strip() for entry in value.split(",") if entry]


def test_installations_on_one_engine_are_told_apart_by_environment_and_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def name(url: str, environment: str = "staging", given: str = "") -> str:
        values = {"ENVIRONMENT": environment, "DATABASE_URL": url, "DOCKER_DEPLOYMENT": given}
        set_all(monkeypatch, {f"{PREFIX}{key}": value for key, value in values.items()})
        return load_settings().deployment

    one = name("postgresql://lookit:old@db.test/lookit")
    assert one.startswith("staging-")
    assert name("postgresql+psycopg://someone:new@db.test/lookit?sslmode=require") == one
    others = {name("postgresql://db.test/other"), name("postgresql://db.test/lookit", "development"), name("")}
    assert len({one, *others}) == 4
    assert name("", given="lab-a") == "lab-a"


def test_videos_and_archives_are_in_folders_until_their_buckets_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings()
    assert (settings.s3_videos, settings.gcs_archives) == (None, None)
    assert settings.local_videos == home / "videos" / "development"
    assert settings.local_archives == home / "archives" / "development"
    named = {"LOOKIT_VIDEOS_BUCKET": "s3://lookit-videos", "LOOKIT_ARCHIVES_BUCKET": "gs://lookit-archives"}
    set_all(monkeypatch, {**named, "LOOKIT_VIDEOS_ENDPOINT": "http://s3.test/"})
    settings = load_settings()
    assert (settings.s3_videos, settings.gcs_archives) == ("lookit-videos", "lookit-archives")
    assert settings.videos_endpoint == "http://s3.test"
    set_all(monkeypatch, {"LOOKIT_VIDEOS_OTHER_BUCKETS": "s3://older, /srv//videos/"})
    assert load_settings().videos_other_buckets == ["s3://older", "/srv/videos"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"LOOKIT_VIDEOS_BUCKET": "lookit-videos"},
            "LOOKIT_VIDEOS_BUCKET: must be the address of a bucket in Amazon S3",
        ),
        ({"LOOKIT_VIDEOS_BUCKET": "s3://lookit/videos"}, "LOOKIT_VIDEOS_BUCKET: .*without a path"),
        ({"LOOKIT_VIDEOS_OTHER_BUCKETS": "s3://one,two"}, "LOOKIT_VIDEOS_OTHER_BUCKETS: .*'two' is not"),
        ({"LOOKIT_VIDEOS_OTHER_BUCKETS": "s3://one,s3://one"}, "LOOKIT_VIDEOS_OTHER_BUCKETS: .*each once"),
        ({"LOOKIT_VIDEOS_OTHER_BUCKETS": "/srv/a,/srv/b/../a/"}, "LOOKIT_VIDEOS_OTHER_BUCKETS: .*each once"),
        ({"LOOKIT_VIDEOS_OTHER_BUCKETS": "/" + "a" * 255}, "LOOKIT_VIDEOS_OTHER_BUCKETS: .*at most 255 characters"),
        (
            {"LOOKIT_VIDEOS_BUCKET": "s3://one", "LOOKIT_VIDEOS_OTHER_BUCKETS": "s3://one"},
            "LOOKIT_VIDEOS_OTHER_BUCKETS names s3://one, which is the first",
        ),
        ({"LOOKIT_ARCHIVES_BUCKET": "s3://x-y-z"}, "LOOKIT_ARCHIVES_BUCKET: must be .* Google Cloud Storage"),
        ({"LOOKIT_ARCHIVES_URL": "localhost:8003"}, "LOOKIT_ARCHIVES_URL: must begin with http"),
        ({"LOOKIT_VIDEOS_ENDPOINT": "s3.test"}, "LOOKIT_VIDEOS_ENDPOINT: must begin with http"),
        ({"LOOKIT_GCS_CREDENTIALS_FILE": "nowhere.json"}, "LOOKIT_GCS_CREDENTIALS_FILE: .*no such file"),
        ({"LOOKIT_VIDEOS_BUCKET": "s3://a-b-c", "LOOKIT_VIDEOS_FOLDER": "v"}, "LOOKIT_VIDEOS_BUCKET .*both set"),
        ({"LOOKIT_ARCHIVES_BUCKET": "gs://a-b-c", "LOOKIT_ARCHIVES_FOLDER": "v"}, "LOOKIT_ARCHIVES_FOLDER .*both set"),
        ({"LOOKIT_VIDEOS_ACCESS_KEY_ID": "half of a pair"}, "LOOKIT_VIDEOS_SECRET_ACCESS_KEY belong together"),
    ],
)
def test_a_wrong_place_for_videos_or_archives_is_named(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], said: str
) -> None:
    set_all(monkeypatch, values)
    with pytest.raises(InvalidRequest, match=said) as refused:
        load_settings()
    assert "half of a pair" not in str(refused.value)


# -- production --------------------------------------------------------------------------------------------------------


def of_production(**changes: Any) -> str:
    """Return what is said of these settings in production; nothing if they are fit for it."""
    try:
        Settings(_env_file=None, **{**PRODUCTION, **changes})
    except ValidationError as error:
        return str(error)
    return ""


def test_a_production_with_all_that_it_needs_is_accepted() -> None:
    assert of_production() == ""
    assert of_production(archives_bucket="gs://archives", archives_url="http://localhost:8003/") == ""


@pytest.mark.parametrize("name", ["platform_url", "studies_url", "previews_url", "archives_url"])
def test_production_refuses_plain_http_and_localhost_and_names_the_setting(name: str) -> None:
    plain = of_production(**{name: f"http://{name.replace('_', '-')}.example/"})
    assert f"LOOKIT_{name.upper()} must begin with https:// in production" in plain
    hosts = ("localhost", "LOCALHOST.", "x.localhost", "127.0.0.1", "127.8.8.8", "[::1]", "0.0.0.0", "[::]")
    for number, host in enumerate(hosts):
        said = of_production(**{name: f"https://{host}:{9000 + number}/"})
        assert f"LOOKIT_{name.upper()} must name a host that other machines reach in production" in said, host


def test_production_refuses_previews_on_the_origin_of_the_platform_or_of_the_studies() -> None:
    on_platform = of_production(previews_url=PRODUCTION["platform_url"] + "previews/")
    assert "LOOKIT_PREVIEWS_URL must differ from LOOKIT_PLATFORM_URL" in on_platform
    on_studies = of_production(previews_url=PRODUCTION["studies_url"])
    assert "LOOKIT_PREVIEWS_URL must differ from LOOKIT_STUDIES_URL" in on_studies


def test_production_refuses_mail_into_a_folder_and_a_sender_that_is_nowhere() -> None:
    assert "LOOKIT_SMTP_HOST must name a mail server in production" in of_production(smtp_host="")
    assert "LOOKIT_MAIL_SENDER must be" in of_production(mail_sender="lookit@localhost.localdomain")


def test_all_that_production_refuses_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"LOOKIT_ENVIRONMENT": "production"})
    with pytest.raises(InvalidRequest) as refusal:
        load_settings()
    for name in ("PLATFORM_URL", "STUDIES_URL", "PREVIEWS_URL", "ARCHIVES_URL", "SMTP_HOST", "MAIL_SENDER"):
        assert f"LOOKIT_{name} must" in str(refusal.value)


@pytest.mark.parametrize("environment", ["development", "staging"])
def test_elsewhere_none_of_it_is_refused(environment: str) -> None:
    assert Settings(_env_file=None, environment=environment).platform_url == "http://localhost:8000/"


# -- previews ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["https://{uuid}.previews.example", "http://{uuid}.localhost:8002/", "https://{uuid}.p.example/a/"]
)
def test_each_study_may_have_an_origin_of_its_own_for_its_previews(url: str) -> None:
    assert Settings(_env_file=None, previews_url=url).previews_url.rstrip("/") == url.rstrip("/")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        *(
            ("previews_url", f"https://{host}/")
            for host in ("{uuid}", "{id}.p.example", "p.{uuid}.example", "{uuid}p.x")
        ),
        ("previews_url", "https://{uuid}.{uuid}.example/"),
        ("previews_url", "https://previews.example/{uuid}/"),
        ("previews_url", "https://{uuid}.previews.example/{uuid}/"),
        *((name, "https://{uuid}.example/") for name in ("platform_url", "studies_url", "archives_url")),
    ],
)
def test_a_placeholder_stands_in_one_place_of_one_setting(name: str, url: str) -> None:
    with pytest.raises(ValidationError, match=r"may hold no braces but \{uuid\} in LOOKIT_PREVIEWS_URL"):
        Settings(_env_file=None, **{name: url})


def test_the_certificates_of_builds_are_looked_at_when_the_settings_are_read(tmp_path: Path) -> None:
    good, bad = tmp_path / "ca.pem", tmp_path / "key.pem"
    good.write_text("-----BEGIN CERTIFICATE-----\n…")
    bad.write_text("-----BEGIN PRIVATE KEY-----\n…")
    assert Settings(_env_file=None, build_ca_file=good).build_ca_file == good
    for file, told in ((bad, "holds no certificate"), (tmp_path / "none.pem", "cannot be read")):
        with pytest.raises(ValidationError, match=told):
            Settings(_env_file=None, build_ca_file=file)
