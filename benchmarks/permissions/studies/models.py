"""People, labs and studies as Django models, and the permissions that can be held on them."""

from __future__ import annotations

import uuid

from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import PermissionsMixin, UserManager
from django.db import models
from django.db.models.functions import Now

from domain.permissions.codes import LAB_PERMISSIONS, STUDY_PERMISSIONS, UMBRELLA_PERMISSIONS, Permission


def codename(permission: Permission) -> str:
    """What Django calls the permission."""
    return permission.value.partition(".")[2]


def umbrella(permission: Permission) -> str:
    """What Django calls the study permission if it is held on a lab."""
    return f"{codename(permission)}_in_lab"


class User(AbstractBaseUser, PermissionsMixin):
    """A person with an account."""

    USERNAME_FIELD = "email"

    uuid = models.UUIDField(default=uuid.uuid4, unique=True)
    email = models.EmailField(max_length=254, unique=True)
    name = models.CharField(max_length=200)
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(db_default=Now())

    objects = UserManager()

    class Meta:
        default_permissions = ()


class Lab(models.Model):
    """A group of researchers."""

    uuid = models.UUIDField(default=uuid.uuid4, unique=True)
    name = models.CharField(max_length=200, unique=True)
    created_at = models.DateTimeField(db_default=Now())

    objects = models.Manager()

    class Meta:
        default_permissions = ()
        permissions = (
            *((codename(permission), permission.value) for permission in sorted(LAB_PERMISSIONS)),
            *((umbrella(permission), f"{permission.value} in lab") for permission in sorted(UMBRELLA_PERMISSIONS)),
        )


class Study(models.Model):
    """A study."""

    pk: int
    uuid = models.UUIDField(default=uuid.uuid4, unique=True)
    name = models.CharField(max_length=255)
    lab = models.ForeignKey(Lab, on_delete=models.PROTECT)
    creator = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, db_index=False)
    state = models.CharField(max_length=20, default="created", db_index=True)
    state_before_build = models.CharField(max_length=20, null=True)
    state_changed_at = models.DateTimeField(db_default=Now())
    fencing_token = models.IntegerField(default=0)
    deployed_at = models.DateTimeField(null=True)
    is_discoverable = models.BooleanField(default=False)
    metadata = models.JSONField(default=dict)
    purpose = models.TextField(default="")
    duration = models.TextField(default="")
    contact = models.TextField(default="")
    image = models.TextField(default="")
    structure = models.JSONField(default=dict)
    generator = models.TextField(default="")
    exit_url = models.TextField(default="")
    compensation = models.TextField(default="")
    created_at = models.DateTimeField(db_default=Now())

    objects = models.Manager()

    class Meta:
        default_permissions = ()
        permissions = tuple((codename(permission), permission.value) for permission in sorted(STUDY_PERMISSIONS))
