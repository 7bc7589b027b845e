"""Settings of the buckets: built studies, videos, archives."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from domain.errors import InvalidRequest
from domain.models.responses import BUCKET_LENGTH
from lookit_ops.settings.general import GeneralSettings
from lookit_ops.settings.values import (
    PREFIX,
    BaseUrl,
    CommaSeparated,
    Endpoint,
    File,
    Folder,
    without_tilde,
)

_GCS_BUCKET = re.compile(r"gs://(?P<name>[a-z0-9][a-z0-9._-]{1,220}[a-z0-9])")
_S3_BUCKET = re.compile(r"s3://(?P<name>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])")


class BucketSettings(GeneralSettings):
    """Where files are kept: in a cloud, or in folders of this machine."""

    bucket: str = Field(
        "", description="Bucket of built studies in Google Cloud Storage, as in `gs://name`; empty: a folder."
    )
    bucket_folder: Folder = Field(
        None, description="Folder that is the bucket of built studies; empty: `buckets/{environment}` in the home."
    )
    gcs_credentials_file: File = Field(
        None, description="Key of a service account of Google Cloud; empty: the application default credentials."
    )
    gcs_endpoint: Endpoint = Field("", description="Base URL of another server that speaks Google's JSON API.")
    videos_bucket: str = Field(
        "", description="Bucket of study videos in Amazon S3, as in `s3://name`; empty: a folder."
    )
    videos_folder: Folder = Field(
        None, description="Folder that is the bucket of study videos; empty: `videos/{environment}` in the home."
    )
    videos_other_buckets: CommaSeparated = Field(
        [],
        description="Other buckets that have videos, as in `s3://one,s3://two`, with the same credentials; a folder by"
        " its absolute path.",
    )
    videos_region: str = Field("", description="Region of the videos' bucket in Amazon S3, such as `us-east-1`.")
    videos_endpoint: Endpoint = Field("", description="Base URL of another server that speaks S3.")
    videos_access_key_id: SecretStr | None = Field(
        None, description="Access key for the videos' bucket; empty: what Amazon's library finds on this machine."
    )
    videos_secret_access_key: SecretStr | None = Field(None, description="Secret key that belongs to it.")
    archives_bucket: str = Field(
        "", description="Bucket of video archives in Google Cloud Storage, as in `gs://name`; empty: a folder."
    )
    archives_folder: Folder = Field(
        None, description="Folder that is the bucket of archives; empty: `archives/{environment}` in the home."
    )
    archives_url: BaseUrl = Field(
        "http://localhost:8003/", description="Base URL of the links to archives that are in a folder."
    )
    archives_kept_days: float = Field(
        30, gt=0, le=3650, description="Days after which archives of videos are removed; they can be made again."
    )

    @field_validator("bucket", "archives_bucket")
    @classmethod
    def _is_google_bucket(cls, value: str) -> str:
        if value and not _GCS_BUCKET.fullmatch(value):
            raise ValueError(
                "must be the address of a bucket in Google Cloud Storage such as gs://name, without a path; a folder"
                " is set by the setting whose name ends in _FOLDER"
            )
        return value

    @field_validator("videos_bucket")
    @classmethod
    def _is_amazon_bucket(cls, value: str) -> str:
        if value and not _S3_BUCKET.fullmatch(value):
            raise ValueError("must be the address of a bucket in Amazon S3 such as s3://name, without a path")
        return value

    @field_validator("videos_other_buckets")
    @classmethod
    def _are_buckets_of_videos(cls, value: list[str]) -> list[str]:
        # As rows of videos name them: two spellings of one folder would be two buckets there.
        named = [os.path.normpath(address) if address.startswith("/") else address for address in value]
        for address in named:
            if not (_S3_BUCKET.fullmatch(address) or address.startswith("/")) or named.count(address) > 1:
                raise ValueError(
                    "must be addresses of buckets in Amazon S3 such as s3://name, or absolute paths of folders, each"
                    f" once; {address!r} is not"
                )
            if len(address) > BUCKET_LENGTH:
                raise ValueError(f"must be of at most {BUCKET_LENGTH} characters each; {address!r} has {len(address)}")
        return named

    @field_validator("gcs_credentials_file")
    @classmethod
    def _is_a_key_file(cls, value: Path | None) -> Path | None:
        if value is not None and not without_tilde(value).is_file():
            raise ValueError("must be the JSON file of a service account's key, and there is no such file")
        return value

    @model_validator(mode="after")
    def _each_bucket_is_in_one_place(self) -> Self:
        for name, bucket, folder in (
            (("BUCKET", "BUCKET_FOLDER"), self.bucket, self.bucket_folder),
            (("VIDEOS_BUCKET", "VIDEOS_FOLDER"), self.videos_bucket, self.videos_folder),
            (("ARCHIVES_BUCKET", "ARCHIVES_FOLDER"), self.archives_bucket, self.archives_folder),
        ):
            if bucket and folder is not None:
                raise ValueError(f"{PREFIX}{name[0]} ({bucket}) and {PREFIX}{name[1]} ({folder}) are both set; set one")
        first = self.videos_bucket or str(self.local_videos)
        if first in self.videos_other_buckets:
            raise ValueError(f"{PREFIX}VIDEOS_OTHER_BUCKETS names {first}, which is the first bucket of videos already")
        if (self.videos_access_key_id is None) != (self.videos_secret_access_key is None):
            raise ValueError(
                f"{PREFIX}VIDEOS_ACCESS_KEY_ID and {PREFIX}VIDEOS_SECRET_ACCESS_KEY belong together; set both or none"
            )
        return self

    @property
    def gcs_bucket(self) -> str | None:
        """The name of the bucket in Google Cloud Storage; None if the bucket is a folder."""
        return self.bucket.removeprefix("gs://") or None

    @property
    def local_bucket(self) -> Path:
        """The folder that is the bucket. Raises InvalidRequest if the bucket is no folder."""
        if self.gcs_bucket:
            raise InvalidRequest(f"the bucket of built studies is {self.bucket}, not a folder of this machine")
        folder = self.bucket_folder or self.home_folder / "buckets" / self.environment
        return folder.expanduser().resolve()

    @property
    def s3_videos(self) -> str | None:
        """The name of the videos' bucket in Amazon S3; None if it is a folder."""
        return self.videos_bucket.removeprefix("s3://") or None

    @property
    def local_videos(self) -> Path:
        """The folder that is the videos' bucket, where there is no S3."""
        return (self.videos_folder or self.home_folder / "videos" / self.environment).expanduser().resolve()

    @property
    def gcs_archives(self) -> str | None:
        """The name of the archives' bucket in Google Cloud Storage; None if it is a folder."""
        return self.archives_bucket.removeprefix("gs://") or None

    @property
    def local_archives(self) -> Path:
        """The folder that is the archives' bucket, where there is no Google Cloud Storage."""
        return (self.archives_folder or self.home_folder / "archives" / self.environment).expanduser().resolve()
