"""Object permissions with direct foreign keys, as django-guardian's manual recommends for speed."""

from __future__ import annotations

from django.db import models
from guardian.models import GroupObjectPermissionBase, UserObjectPermissionBase

from benchmarks.permissions.studies.models import Lab, Study


class StudyUserPermission(UserObjectPermissionBase):
    """A user holds a permission on a study; there is none, since all is held through groups."""

    content_object = models.ForeignKey(Study, on_delete=models.CASCADE)


class StudyGroupPermission(GroupObjectPermissionBase):
    """A group holds a permission on a study."""

    content_object = models.ForeignKey(Study, on_delete=models.CASCADE)


class LabUserPermission(UserObjectPermissionBase):
    """A user holds a permission on a lab; there is none."""

    content_object = models.ForeignKey(Lab, on_delete=models.CASCADE)


class LabGroupPermission(GroupObjectPermissionBase):
    """A group holds a permission on a lab."""

    content_object = models.ForeignKey(Lab, on_delete=models.CASCADE)
