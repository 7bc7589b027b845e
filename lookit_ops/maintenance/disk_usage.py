"""How much room builds take, and how much is free, in the home and on the Docker engine."""

from __future__ import annotations

from ember_build.disk import MB, free_mb
from ember_build.removal import size_on_disk
from lookit_ops.services import Services

PARTS = ("checkouts", "deployments", "dependencies", "cache", "toolchain", "scratch")
"""The folders of builds in the home."""


def disk_usage(services: Services) -> dict[str, float]:
    """MB by place: what builds take in the home and on the engine, and what is free on both disks.

    Raises BuildPlatformError if builds run in Docker and the engine is away.
    """
    home = services.settings.home_folder
    told: dict[str, float] = {
        f"home: {part} MB": round(size_on_disk(home / "ember_build" / part) / MB, 1)
        for part in PARTS
        if (home / "ember_build" / part).exists()
    }
    told["home: free MB"] = min(free_mb(home), free_mb(home / "ember_build"))  # which may be a disk of its own
    if services.settings.builder == "docker":
        used, host = services.docker_builder.usage()
        if used:
            told |= {
                "engine: images": used.images,
                "engine: images MB": round(used.image_bytes / MB, 1),
                "engine: volumes": used.volumes,
                "engine: volumes MB": round(used.volume_bytes / MB, 1),
            }
        if host:
            told |= {"engine: free MB": host.free_disk_mb, "engine: available memory MB": host.available_memory_mb}
    return told
