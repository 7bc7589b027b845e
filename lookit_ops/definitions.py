"""The only Definitions object. It loads without any secret and touches no network: settings wait for a run."""

from __future__ import annotations

import dagster as dg

from lookit_ops.assets.experiments import experiment_deployment, experiment_preview
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.resources import build_session_resource, platform_resource

defs = dg.Definitions(
    assets=[experiment_preview, experiment_deployment],
    jobs=[build_experiment],
    resources={
        "platform": platform_resource,
        "build_session": build_session_resource,
        "io_manager": dg.mem_io_manager,  # steps hand over frozen dataclasses within one process
    },
)
