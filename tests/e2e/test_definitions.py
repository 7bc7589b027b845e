"""The definitions load by themselves: without any setting or secret, and without touching the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg

from lookit_ops.definitions import defs

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

WITHOUT_NETWORK = """
import socket
def refuse(*_): raise AssertionError("the definitions touch the network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from lookit_ops.definitions import defs
job = defs.resolve_job_def("build_experiment")
print([node.name for node in job.graph.nodes_in_topological_order])
"""


def bare_environment(tmp_path: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DAGSTER_HOME": str(tmp_path)}


def test_dagster_validates_the_workspace(tmp_path: Path) -> None:
    validated = subprocess.run(
        [BIN / "dagster", "definitions", "validate", "--workspace", "workspace.yaml"],
        env=bare_environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert validated.returncode == 0, validated.stderr
    assert "Validation successful for code location lookit_ops" in validated.stderr + validated.stdout


def test_the_definitions_load_without_secrets_and_network_and_write_nothing(tmp_path: Path) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK],
        env=bare_environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == "['claim', 'checkout', 'image', 'build', 'upload', 'finish']"
    assert list(tmp_path.iterdir()) == []


def test_each_asset_and_job_says_whose_and_what_it_is() -> None:
    for spec in defs.resolve_all_asset_specs():
        assert spec.owners, spec.key
        assert spec.kinds, spec.key
        assert spec.description, spec.key
        assert spec.group_name != "default", spec.key
    for job in defs.jobs or []:
        assert job.description, job.name


def test_the_lineage_says_what_depends_on_what() -> None:
    graph = defs.resolve_asset_graph()

    def parents(name: str) -> set[str]:
        return {key.to_user_string() for key in graph.get(dg.AssetKey(name)).parent_keys}

    assert parents("experiment_preview") == parents("experiment_deployment") == {"studies"}
    assert parents("discoverable_studies") == {"studies", "experiment_deployment"}
    assert parents("video_archive") == {"video_catalogue"}
