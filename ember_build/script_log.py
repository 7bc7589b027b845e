"""Follows the output of build.sh: which step it is in, its last lines, and whose fault its end is."""

from __future__ import annotations

import re
from collections import deque
from datetime import timedelta

from ember_build.builder import OutputLine
from ember_build.errors import BuildPlatformError, PlayerBuildFailed

INSTALLATION, BUILD = "dependencies", "build"
"""The phases of build.sh: the first needs the network, the second must not have it."""

_STEP = "==> "
_INSTALL_STEPS = ("yarn install", "bower install")
_UNREACHABLE = re.compile(
    r"\b(ENOTFOUND|ECONNREFUSED|ECONNRESET|ECONNABORTED|ETIMEDOUT|ESOCKETTIMEDOUT|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH)\b"
    r"|trouble with your network connection|\b(429 Too Many Requests|50[0-9] [A-Z])|returned a 50\d\b"
    r"|\bEPROTO\b|(?i:socket hang up|client network socket disconnected"
    r"|tunneling socket could not be established(?!, statuscode=403)|407 proxy authentication required"
    r"|could not resolve (host|proxy)|temporary failure in name resolution)"
)
# Trust in a registry is this machine's matter: its clock, its authorities, a proxy that shows a certificate of its
# own. In the words of Node's codes, of OpenSSL, and of git, which bower uses.
_NOT_TRUSTED = re.compile(
    r"\b(CERT_[A-Z_]+|[A-Z_]*SELF_SIGNED_CERT[A-Z_]*|UNABLE_TO_(GET_ISSUER|VERIFY_LEAF)[A-Z_]*|ERR_TLS_[A-Z_]+)\b"
    r"|(?i:\bcertificate (has expired|is not yet valid|verify failed|verification failed)"
    r"|unable to (get (local )?issuer certificate|verify the first certificate)"
    r"|self[- ]signed certificate|SSL certificate problem|(does not|doesn't) match certificate's altnames"
    r"|ssl routines:)"
)
# Where yarn, npm and bower begin to say why they end: what they had trouble with before, they have got over.
_FINAL_ERROR = re.compile(r"\s*(error\b|npm ERR!|bower\s(?!.*\sretry\s).*\bE[A-Z]{3,}\b|fatal:)")
# yarn: the install script of a package has failed. Its own output follows.
_INSTALL_SCRIPT = re.compile(r"error .*[/\\]node_modules[/\\]((?:@[\w.-]+[/\\])?[\w.-]+)(?:[:\s]|$)")
_COMMAND_FAILED = re.compile(r"Command failed\.|\bExit code: ")
_HOST = re.compile(
    r"(?:ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|resolve host:)\s+"
    r"([A-Za-z0-9][A-Za-z0-9.-]*[A-Za-z0-9])"
)
_ADDRESS = re.compile(r"https?://([A-Za-z0-9][A-Za-z0-9.-]*[A-Za-z0-9])")
_DISK_FULL = re.compile(r"\b(ENOSPC|EDQUOT)\b|No space left on device|Disk quota exceeded")
_KILLED = (-9, 137)

_LAST_LINES = 8


class Course:
    """What is known of a run of build.sh while it goes on. `room` tells how much of the disk it had to itself.

    Any program can print what looks like a step. So a step blames the network only in the phase that has one.
    """

    def __init__(self, on_line: OutputLine, room: str | None = None) -> None:
        self._on_line = on_line
        self._room = room
        self._recent: deque[str] = deque(maxlen=200)
        self.step = "start"

    def add(self, line: str) -> None:
        if line.startswith(_STEP):
            self.step = line.removeprefix(_STEP)
            self._recent.clear()
        elif line.strip():
            self._recent.append(line)
        self._on_line(line)

    def last_lines(self) -> str:
        # Where in yarn's own code it failed tells nobody anything, and pushes out the line that does.
        lines = [line for line in self._recent if not line.lstrip().startswith("at ")][-_LAST_LINES:]
        if not lines:
            return "It printed nothing."
        return "Its last lines:\n" + "\n".join(lines)

    def _network_failure(self) -> str | None:
        """What the network did to an installation, by its final errors; None where they speak of something else."""
        lines = list(self._recent)
        finals = [place for place, line in enumerate(lines) if _FINAL_ERROR.match(line)]
        package = next((match[1] for place in finals if (match := _INSTALL_SCRIPT.match(lines[place]))), None)
        said = "\n".join(lines[finals[0] :] if finals else lines)
        is_script = package is not None and _COMMAND_FAILED.search(said)
        if _NOT_TRUSTED.search(said) and is_script:
            return f"The install script of the package {package} met a certificate that it does not trust"
        if _NOT_TRUSTED.search(said):
            return (
                "The certificate of the package registry was refused (if it, or a proxy before it, has a certificate"
                " authority of its own, name that in LOOKIT_BUILD_CA_FILE)"
            )
        if not _UNREACHABLE.search(said):
            return None
        if not is_script:
            return "The package registry could not be reached"
        hosts = _HOST.findall(said) or _ADDRESS.findall(said)
        host = hosts[0] if hosts else "a host that its output does not name"
        return f"The install script of the package {package} could not reach {host}"

    def out_of_time(self, phase: str, time_limit: timedelta) -> PlayerBuildFailed | BuildPlatformError:
        """Say whose fault it is that the script took too long: a registry may be slow, `ember build` asks none."""
        told = (
            f"The build took longer than its time limit of {time_limit} and was ended during `{self.step}`."
            f" {self.last_lines()}"
        )
        return PlayerBuildFailed(told) if phase == BUILD else BuildPlatformError(told)

    def error(self, phase: str, status: int) -> PlayerBuildFailed | BuildPlatformError:
        """Say whose fault it is that the script ended with this status."""
        said = "\n".join(self._recent)
        told = f"`{self.step}` ended with status {status}. {self.last_lines()}"
        if _DISK_FULL.search(said) and self._room:
            return PlayerBuildFailed(f"The build needs more room than the {self._room} that it has: {told}")
        if _DISK_FULL.search(said):
            return BuildPlatformError(f"The disk is full: {told}")
        if phase == INSTALLATION and self.step.startswith(_INSTALL_STEPS) and (why := self._network_failure()):
            return BuildPlatformError(f"{why}: {told}")
        if status in _KILLED:
            return BuildPlatformError(f"The build was killed from outside, most likely for want of memory: {told}")
        return PlayerBuildFailed(told)
