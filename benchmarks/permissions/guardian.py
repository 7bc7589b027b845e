"""The peer's side: django-guardian as its manual shows it, one Django group for each pair of role and object.

Import it only in a process whose Django is set up (see `site_settings.py`). What is held platform-wide are the plain
permissions of a group of Django's; what is held on a lab for all its studies, permissions on the lab of other names.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from django.contrib.auth.models import Group
from django.contrib.auth.models import Permission as DjangoPermission
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import connection, transaction
from django.db.models import Q, QuerySet
from guardian.shortcuts import get_objects_for_user

from benchmarks.permissions.guardian_load import group_name, load, roles_of
from benchmarks.permissions.guardian_models import (
    MEMBERSHIP,
    groups_holding,
    groups_of,
    held_by_groups,
    is_generic,
    tables_of_permissions,
)
from benchmarks.permissions.population import Population
from benchmarks.permissions.questions import (
    PAGE_LENGTH,
    Answer,
    Check,
    Creation,
    Holders,
    Listing,
    Page,
    Question,
)
from benchmarks.permissions.side import Side
from benchmarks.permissions.studies.models import Lab, Study, User, codename, umbrella
from domain.models.accounts import RoleScope
from domain.permissions.codes import UMBRELLA_PERMISSIONS, Permission
from domain.permissions.roles import BUILTIN_ROLES

_APP = "studies"


def has_permission(user: User, permission: Permission, study: Study) -> bool:
    """Held on the study, on its lab, or platform-wide."""
    if user.has_perm(_full(codename(permission)), study):
        return True
    if permission in UMBRELLA_PERMISSIONS and user.has_perm(_full(umbrella(permission)), study.lab):
        return True
    return user.has_perm(_full(codename(permission)))


def studies_with_permission(user: User, permission: Permission) -> QuerySet:
    """The studies on which the user holds it. Reading the ids first is faster than one query of everything."""
    if not user.is_active:
        return Study.objects.none()
    if user.has_perm(_full(codename(permission))):
        return Study.objects.all()
    granted = get_objects_for_user(user, _full(codename(permission)), Study, accept_global_perms=False)
    if permission not in UMBRELLA_PERMISSIONS:
        return granted
    labs = get_objects_for_user(user, _full(umbrella(permission)), Lab, accept_global_perms=False)
    return Study.objects.filter(Q(pk__in=_ids(granted)) | Q(lab__in=_ids(labs)))


def users_with_permission(permission: Permission, study: Study) -> list[User]:
    """Everyone who holds it, by e-mail address.

    By way of the groups, since nothing is held otherwise: django-guardian's `get_users_with_perms` takes many times
    as long, as it looks at each user.
    """
    groups = groups_holding(codename(permission), study)
    if permission in UMBRELLA_PERMISSIONS:
        groups += groups_holding(umbrella(permission), study.lab)
    content_type = ContentType.objects.get_for_model(Study)
    groups += Group.objects.filter(permissions__codename=codename(permission), permissions__content_type=content_type)
    members = MEMBERSHIP.objects.filter(group__in=groups).values("user_id")
    return list(User.objects.filter(Q(is_superuser=True) | Q(pk__in=members), is_active=True).order_by("email"))


def create_study(lab: Lab, creator: User, name: str) -> Study:
    """A study with its groups, which hold their permissions; the creator is in the group of its admins."""
    with transaction.atomic():
        required = _full(codename(Permission.CREATE_LAB_STUDY))
        if not (creator.has_perm(required, lab) or creator.has_perm(required)):
            raise PermissionDenied(required)
        study = Study.objects.create(name=name, lab=lab, creator=creator)
        groups = {role: Group(name=group_name(RoleScope.STUDY, role, study.pk)) for role in roles_of(RoleScope.STUDY)}
        Group.objects.bulk_create(groups.values())
        content_type = ContentType.objects.get_for_model(Study)
        ids = dict(DjangoPermission.objects.filter(content_type=content_type).values_list("codename", "pk"))
        holds = held_by_groups(study)
        place = (
            {"content_type": content_type, "object_pk": study.pk} if is_generic(holds) else {"content_object": study}
        )
        holds.objects.bulk_create(
            holds(group=group, permission_id=ids[codename(permission)], **place)
            for role, group in groups.items()
            for permission in BUILTIN_ROLES[RoleScope.STUDY, role]
        )
        groups_of(creator).add(groups["admin"])
    return study


def _ids(found: QuerySet) -> list[int]:
    return list(found.values_list("pk", flat=True))


def _full(name: str) -> str:
    return f"{_APP}.{name}"


class GuardianSide(Side):
    """django-guardian in the database that this process's Django is set up for."""

    @property
    def tables(self) -> list[str]:
        """Groups, who is in them, permissions, and who holds them on what."""
        return tables_of_permissions()

    def load(self, population: Population) -> None:
        """By Django's migrations and bulk inserts."""
        load(population)

    @contextmanager
    def request(self) -> Generator[None]:
        """What ATOMIC_REQUESTS does."""
        with transaction.atomic():
            yield

    def prepare(self, question: Question) -> Callable[[], object]:
        """As in a request: new objects, without what earlier questions left in their caches."""
        match question:
            case Check(user, permission, study):
                who, what = User.objects.get(pk=user), Study.objects.select_related("lab").get(pk=study)
                return lambda: has_permission(who, permission, what)
            case Listing(user, permission):
                who = User.objects.get(pk=user)
                return lambda: list(studies_with_permission(who, permission).order_by("pk"))
            case Page(user, permission):
                who = User.objects.get(pk=user)

                def page() -> tuple[int, list[Study]]:
                    pages = Paginator(studies_with_permission(who, permission).order_by("-pk"), PAGE_LENGTH)
                    return pages.count, list(pages.page(1))

                return page
            case Holders(permission, study):
                what = Study.objects.select_related("lab").get(pk=study)
                return lambda: users_with_permission(permission, what)
            case Creation(user, lab, name):
                who, where = User.objects.get(pk=user), Lab.objects.get(pk=lab)
                return lambda: create_study(where, who, name)

    def plain(self, question: Question, result: object) -> Answer:
        """Ids instead of rows."""
        match result:
            case bool():
                return result
            case Study():
                return result.pk
            case int() as count, list() as rows:
                return (count, *(row.pk for row in rows))
            case list() as rows:
                return tuple(row.pk for row in rows)
        raise TypeError(f"{question} was answered with {result!r}")

    @contextmanager
    def recording(self) -> Generator[list[str]]:
        """What goes through Django's connection."""
        statements: list[str] = []

        def record(execute: Callable[..., Any], sql: str, params: object, many: bool, context: object) -> Any:
            statements.append(sql)
            return execute(sql, params, many, context)

        with connection.execute_wrapper(record):
            yield statements
