"""What Django and django-guardian make of the models at run time, where no type checker looks."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Group
from django.contrib.auth.models import Permission as DjangoPermission
from django.contrib.contenttypes.models import ContentType
from guardian.shortcuts import get_groups_with_perms
from guardian.utils import get_group_obj_perms_model, get_user_obj_perms_model

from benchmarks.permissions.studies.models import Lab, Study, User

_User: Any = User
_Group: Any = Group

MEMBERSHIP: Any = _User.groups.through
"""A user is in a group."""


def held_by_groups(model: Any) -> Any:
    """The model of "this group holds this permission on that object"."""
    return get_group_obj_perms_model(model)


def is_generic(keys: Any) -> bool:
    """Whether it names objects by content type and text, and not by foreign keys."""
    return keys.objects.is_generic()


def groups_holding(name: str, place: Any) -> list[Group]:
    """The groups that hold the permission on the object."""
    groups: Any = get_groups_with_perms(place, only_with_perms_in=[name])
    return list(groups)


def groups_of(user: Any) -> Any:
    """The groups that the user is in."""
    return user.groups


def table_of(model: Any) -> str:
    """The name of the model's table."""
    return model._meta.db_table  # public in all but its name


def tables_of_permissions() -> list[str]:
    """The tables that tell who holds what."""
    models = {
        *map(held_by_groups, (Study, Lab)),
        *map(_held_by_users, (Study, Lab)),
        *(Group, _Group.permissions.through, MEMBERSHIP, _User.user_permissions.through),
        *(DjangoPermission, ContentType),
    }
    return sorted(map(table_of, models))


def _held_by_users(model: Any) -> Any:
    return get_user_obj_perms_model(model)
