"""The buckets that deployments are tried on: a folder, and Google's client against the strict server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from lookit_ops.storage.experiments import ExperimentBucket
from lookit_ops.storage.gcs.client import GcsAccess
from lookit_ops.storage.gcs.experiments import GcsExperimentBucket
from lookit_ops.storage.local.experiments import LocalExperimentBucket
from tests.support.strict_gcs import StrictGcs

BUCKET = "studies"


@pytest.fixture
def gcs() -> Iterator[StrictGcs]:
    """A Google Cloud Storage with an empty bucket."""
    with StrictGcs(BUCKET) as server:
        yield server


@pytest.fixture
def gcs_bucket(gcs: StrictGcs) -> Iterator[GcsExperimentBucket]:
    """That bucket, by a client that gives up after three seconds."""
    bucket = GcsExperimentBucket(BUCKET, GcsAccess(endpoint=gcs.url, patience=3))
    yield bucket
    bucket.close()


@pytest.fixture(params=["local", "gcs"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> ExperimentBucket:
    """Each bucket in turn."""
    if request.param == "local":
        return LocalExperimentBucket(tmp_path / "bucket")
    return request.getfixturevalue("gcs_bucket")


@pytest.fixture
def headers_of(request: pytest.FixtureRequest, bucket: ExperimentBucket) -> Callable[[str], Mapping[str, str]]:
    """Content type and cache header of an object of the bucket."""
    if isinstance(bucket, LocalExperimentBucket):
        return bucket.headers

    def headers(key: str) -> Mapping[str, str]:
        resource = request.getfixturevalue("gcs").objects(BUCKET)[key].resource
        return {"content_type": resource["contentType"], "cache_control": resource["cacheControl"]}

    return headers
