"""Whole jobs with a bucket in Google Cloud Storage, by setting: Google's client against the strict server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.models import BuildKind, RequestStatus, State
from lookit_ops.deployments.manifest import folder_of, live_deployment
from lookit_ops.maintenance.prune_deployments import prune_deployments
from lookit_ops.maintenance.public_list import KEY, refresh_public_list
from lookit_ops.runs.reconcile import reconcile_builds
from lookit_ops.runs.rollback import roll_back
from lookit_ops.storage.errors import StorageError, WrongEnvironment
from lookit_ops.storage.gcs.experiments import GcsExperimentBucket
from tests.support.strict_gcs import StrictGcs
from tests.support.workshop import GOOD_BUILD, Workshop

BUCKET = "lookit-studies"


@pytest.fixture
def gcs() -> Iterator[StrictGcs]:
    with StrictGcs(BUCKET) as server:
        yield server


@pytest.fixture
def cloud(workshop: Workshop, gcs: StrictGcs) -> Workshop:
    """The workshop, whose settings name a bucket in Google Cloud Storage."""
    workshop.settings.update(bucket=f"gs://{BUCKET}", gcs_endpoint=gcs.url)
    assert isinstance(workshop.faults.real, GcsExperimentBucket)
    return workshop


def served(workshop: Workshop, gcs: StrictGcs, kind: BuildKind = BuildKind.DEPLOYMENT) -> dict[str, bytes]:
    """What a family gets: the page and all that it names, past our adapter."""
    folder = folder_of(kind, workshop.site.study().uuid)
    there = gcs.objects(BUCKET)
    page = there[f"{folder}/index.html"].content
    names = [name.split("/", 3)[3] for name in page.decode().split('"') if name.startswith("/studies/")]
    assert names
    return {"index.html": page, **{name: there[f"{folder}/{name}"].content for name in names}}


def build(workshop: Workshop, name: str, kind: BuildKind = BuildKind.DEPLOYMENT) -> None:
    workshop.build_by(GOOD_BUILD.replace("var version", f"var {name}"))
    assert workshop.build(kind).success


def holds(served: dict[str, bytes], name: str) -> bool:
    return any(name.encode() in content for content in served.values())


def test_a_build_goes_from_the_claim_to_the_finish(cloud: Workshop, gcs: StrictGcs) -> None:
    build(cloud, "preview_one", BuildKind.PREVIEW)
    build(cloud, "version_one")
    build(cloud, "version_two")
    assert holds(served(cloud, gcs), "version_two")
    assert holds(served(cloud, gcs, BuildKind.PREVIEW), "preview_one")
    assert gcs.objects(BUCKET)[".bucket/environment"].content == b"development\n"
    folder = folder_of(BuildKind.DEPLOYMENT, cloud.site.study().uuid)
    headers = {
        key.rpartition(".")[2]: stored.resource["cacheControl"]
        for key, stored in gcs.objects(BUCKET).items()
        if key.startswith(folder) and "/.deployments/" not in key
    }
    assert headers == {"js": "public, max-age=31536000, immutable", "html": "no-cache", "txt": "no-cache"}
    assert cloud.site.study().state == State.ACTIVE
    facts = cloud.site.logs()[-1].extra["facts"]
    assert (facts["bucket"], facts["folder"], facts["files"]) == (f"gs://{BUCKET}", folder, 3)
    assert not (cloud.services.settings.home_folder / "buckets").exists(), "nothing goes into the folder"


def test_the_public_list_is_written_and_kept(cloud: Workshop, gcs: StrictGcs) -> None:
    build(cloud, "version_one")
    assert json.loads(gcs.objects(BUCKET)[KEY].content) == {"studies": []}
    with cloud.site.sessions.begin() as session:
        session.get_one(type(cloud.site.study()), cloud.site.study_id).is_discoverable = True
    assert refresh_public_list(cloud.services).names == ("Apples and oranges",)
    assert not refresh_public_list(cloud.services).rewritten
    assert json.loads(gcs.objects(BUCKET)[KEY].content)["studies"][0]["name"] == "Apples and oranges"


def test_an_earlier_deployment_is_put_back_and_nothing_is_uploaded_but_its_manifest(
    cloud: Workshop, gcs: StrictGcs
) -> None:
    build(cloud, "version_one")
    first = served(cloud, gcs)
    build(cloud, "version_two")
    done = roll_back(cloud.services, cloud.site.study_id, cloud.site.study_admin, None, origin="a test")
    assert served(cloud, gcs) == first
    assert cloud.site.request(done.request_id).status == RequestStatus.SUCCEEDED
    assert prune_deployments(cloud.services).removed == ()


def test_a_worker_that_died_after_its_page_is_rolled_forward(cloud: Workshop, gcs: StrictGcs) -> None:
    build(cloud, "version_one")
    cloud.build_by(GOOD_BUILD.replace("var version", "var version_two").replace("User-agent: *", "other"))
    cloud.faults.refuse("copy")

    def die(_key: str) -> None:  # the session cannot end the request: the bucket is gone for it
        cloud.faults.refuse("page")

    cloud.faults.after("write_page", die)
    request_id = cloud.request()
    assert not cloud.run(request_id=request_id).success
    assert cloud.site.request(request_id).status == RequestStatus.RUNNING
    cloud.faults.allow("copy")
    cloud.faults.allow("page")
    cloud.site.end_leases()
    assert reconcile_builds(cloud.services).rolled_forward == (request_id,)
    assert holds(served(cloud, gcs), "version_two")
    folder = folder_of(BuildKind.DEPLOYMENT, cloud.site.study().uuid)
    assert gcs.objects(BUCKET)[f"{folder}/robots.txt"].content == b"other\n"


def test_a_build_that_is_given_up_is_fenced_by_the_generation(cloud: Workshop, gcs: StrictGcs) -> None:
    build(cloud, "version_one")
    folder = folder_of(BuildKind.DEPLOYMENT, cloud.site.study().uuid)
    before = live_deployment(cloud.services.bucket, folder)
    cloud.ledger.claim(cloud.request(), "a run", cloud.services.settings.lease_duration)
    cloud.site.end_leases()
    assert len(reconcile_builds(cloud.services).expired) == 1
    after = live_deployment(cloud.services.bucket, folder)
    assert after.generation > before.generation
    assert after.request_id == before.request_id
    assert holds(served(cloud, gcs), "version_one")


def test_faults_in_passing_are_no_failure_of_the_build(cloud: Workshop, gcs: StrictGcs) -> None:
    faults = [
        gcs.fault("status", "POST", "assets/player"),
        gcs.fault("lost", "POST", "index.html", after=1),
        gcs.fault("status", "GET", "index.html", status=429),
        gcs.fault("cut", "POST", "manifest.json", bytes=20),
    ]
    build(cloud, "version_one")
    assert all(fault.seen > fault.after for fault in faults)
    assert holds(served(cloud, gcs), "version_one")


def test_another_environments_bucket_is_refused_before_anything_is_claimed(cloud: Workshop, gcs: StrictGcs) -> None:
    build(cloud, "version_one")
    cloud.services.bucket.close()
    del cloud.services
    cloud.settings.update(environment="staging")
    with pytest.raises(
        WrongEnvironment, match=r"gs://lookit-studies belongs to the environment 'development'.*LOOKIT_"
    ):
        _ = cloud.services.bucket


def test_a_bucket_that_is_not_there_is_named_with_the_setting(workshop: Workshop, gcs: StrictGcs) -> None:
    workshop.settings.update(bucket="gs://no-such-bucket", gcs_endpoint=gcs.url)
    with pytest.raises(StorageError, match=r"gs://no-such-bucket.*LOOKIT_BUCKET"):
        _ = workshop.services.bucket


def test_a_key_that_is_none_is_named(workshop: Workshop, gcs: StrictGcs, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    key.write_text("{}")
    workshop.settings.update(bucket=f"gs://{BUCKET}", gcs_credentials_file=key)
    with pytest.raises(StorageError, match=r"key\.json cannot be used as the key of a service account"):
        _ = workshop.services.bucket
