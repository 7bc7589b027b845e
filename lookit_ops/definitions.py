"""The Definitions object. It loads without any secret and touches no network: settings wait for a run."""

from __future__ import annotations

import dagster as dg

from lookit_ops.assets.deployment_pruning import deployment_pruning
from lookit_ops.assets.disk import build_disk_usage, cleanup_assets
from lookit_ops.assets.experiments import experiment_deployment, experiment_preview, studies_asset, video_archive
from lookit_ops.assets.public_list import discoverable_studies_asset
from lookit_ops.assets.video_catalogue import refresh_video_catalogue, video_catalogue_asset
from lookit_ops.assets.watch import WATCHED, watched_checks
from lookit_ops.assets.workflow import study_workflow_diagram, workflow_diagram
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.jobs.build_zipfile_of_videos import build_zipfile_of_videos
from lookit_ops.jobs.cleanups import cleanup_jobs
from lookit_ops.jobs.deliver_mails import deliver_mails
from lookit_ops.jobs.end_dead_work import end_dead_work_job
from lookit_ops.jobs.measure_disk_usage import measure_disk_usage
from lookit_ops.jobs.prune_deployments import prune_deployments
from lookit_ops.jobs.prune_runs import prune_runs
from lookit_ops.jobs.set_availability import set_availability
from lookit_ops.resources import archive_run_resource, build_run_resource, services_resource
from lookit_ops.schedules import schedules
from lookit_ops.sensors.availability import availability
from lookit_ops.sensors.leases import leases
from lookit_ops.sensors.outbox import outbox
from lookit_ops.sensors.public_list import public_list_sensor
from lookit_ops.sensors.requests import archive_requests, build_requests
from lookit_ops.sensors.runs import cancelled_runs, failed_runs
from lookit_ops.sensors.study_partitions import study_partitions_sensor
from lookit_ops.sensors.watch import watch


def definitions(services: dg.ResourceDefinition = services_resource) -> dg.Definitions:
    """All that Dagster knows of us, on this platform."""
    return dg.Definitions(
        assets=[
            build_disk_usage,
            *cleanup_assets.values(),
            deployment_pruning,
            discoverable_studies_asset,
            experiment_deployment,
            experiment_preview,
            studies_asset,
            study_workflow_diagram,
            video_archive,
            video_catalogue_asset,
            workflow_diagram,
            *(watched.spec for watched in WATCHED),
        ],
        asset_checks=watched_checks,
        jobs=[
            build_experiment,
            build_zipfile_of_videos,
            *cleanup_jobs.values(),
            deliver_mails,
            end_dead_work_job,
            measure_disk_usage,
            prune_runs,
            refresh_video_catalogue,
            set_availability,
            prune_deployments,
        ],
        sensors=[
            archive_requests,
            availability,
            build_requests,
            cancelled_runs,
            failed_runs,
            leases,
            outbox,
            public_list_sensor,
            study_partitions_sensor,
            watch,
        ],
        schedules=schedules(),
        executor=dg.in_process_executor,
        resources={
            "archive_run": archive_run_resource,
            "services": services,
            "build_run": build_run_resource,
            "io_manager": dg.mem_io_manager,  # steps hand over frozen dataclasses within one process
        },
    )


defs = definitions()
