"""The only Definitions object. It loads without any secret and touches no network: settings wait for a run."""

from __future__ import annotations

import dagster as dg

from lookit_ops.assets.experiments import experiment_deployment, experiment_preview
from lookit_ops.assets.public_list import discoverable_studies_asset
from lookit_ops.assets.video_catalogue import refresh_video_catalogue, video_catalogue_asset
from lookit_ops.assets.workflow import study_workflow_diagram, workflow_diagram
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.jobs.build_zipfile_of_videos import build_zipfile_of_videos
from lookit_ops.resources import archive_session_resource, build_session_resource, platform_resource
from lookit_ops.schedules import schedules
from lookit_ops.sensors.public_list import public_list_sensor
from lookit_ops.sensors.study_partitions import study_partitions_sensor

defs = dg.Definitions(
    assets=[
        discoverable_studies_asset,
        experiment_deployment,
        experiment_preview,
        study_workflow_diagram,
        video_catalogue_asset,
        workflow_diagram,
    ],
    jobs=[build_experiment, build_zipfile_of_videos, refresh_video_catalogue],
    sensors=[public_list_sensor, study_partitions_sensor],
    schedules=schedules(),
    executor=dg.in_process_executor,
    resources={
        "archive_session": archive_session_resource,
        "platform": platform_resource,
        "build_session": build_session_resource,
        "io_manager": dg.mem_io_manager,  # steps hand over frozen dataclasses within one process
    },
)
