"""The example player as a repository with two commits, behind a local server that speaks GitHub's paths."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from domain.errors import InvalidRequest
from lookit_ops.demo.github_server import Commit, GitHubServer
from lookit_ops.settings import Settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PORT = 4810
REPOSITORY = "lookit/example-frameplayer"
SETTINGS_FILE = "settings.env"


def example_commits() -> tuple[Commit, Commit]:
    """The two commits of the example player. Raises InvalidRequest where only the installed package is at hand."""
    first = EXAMPLES / "frameplayer"
    if not first.is_dir():
        raise InvalidRequest(
            f"the demonstration needs the example player, and there is no folder {first}: clone the project"
        )
    return (
        Commit.from_folder(first, message="Version 1.0"),
        Commit.from_folder(first, EXAMPLES / "frameplayer.second-commit", message="Version 2.0"),
    )


def example_server(port: int) -> GitHubServer:
    """A GitHub that holds the example player. Raises InvalidRequest if the port is taken."""
    try:
        return GitHubServer({REPOSITORY: example_commits()}, port=port)
    except OSError as error:
        raise InvalidRequest(
            f"port {port}, on which the example repository is served, is taken: is `make dev` or `make demo` running?"
        ) from error


def example_settings(port: int) -> dict[str, str]:
    """The settings under which players come from the example server, and nothing else is trusted."""
    url = f"http://127.0.0.1:{port}"
    player = f"{url}/{REPOSITORY}"
    return {
        "LOOKIT_GITHUB_API_URL": url,
        "LOOKIT_GITHUB_WEB_URL": url,
        "LOOKIT_PLAYER_REPO_URL": player,
        "LOOKIT_TRUSTED_REPOSITORIES": player,
    }


def example_port(settings: Settings) -> int | None:
    """The port of the example server, if these settings fetch players from one; None if from somewhere else."""
    address = urlsplit(settings.player_repo_url)
    is_example = address.hostname == "127.0.0.1" and address.path == f"/{REPOSITORY}"
    return address.port if is_example else None


def keep_example_settings(home: Path, port: int) -> None:
    """Write the example's settings into a home that has none, so that other commands find them there."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / SETTINGS_FILE
    if not file.exists():
        lines = [
            "# Written by `lookit-ops demo`: players come from the example repository.",
            *(f"{name}={value}" for name, value in example_settings(port).items()),
        ]
        file.write_text("\n".join(lines) + "\n")
