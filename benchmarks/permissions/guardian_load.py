"""Fills the peer's database: rows of people, labs and studies, groups for all roles, and what these hold."""

from __future__ import annotations

from django.contrib.auth.models import Group
from django.contrib.auth.models import Permission as DjangoPermission
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connection, models, transaction

from benchmarks.permissions.guardian_models import MEMBERSHIP, held_by_groups, is_generic, table_of
from benchmarks.permissions.population import Population, email_of, study_name
from benchmarks.permissions.studies.models import Lab, Study, User, codename, umbrella
from domain.models.accounts import RoleScope
from domain.permissions.codes import LAB_PERMISSIONS
from domain.permissions.roles import BUILTIN_ROLES

_BATCH = 1000


def group_name(scope: RoleScope, role: str, place: int | str = "") -> str:
    """The name of the group that is the role on this object."""
    return f"{scope} {role} {place}".rstrip()


def roles_of(scope: RoleScope) -> list[str]:
    """The names of the built-in roles."""
    return [name for of, name in BUILTIN_ROLES if of is scope]


def load(population: Population) -> None:
    """Make the tables and fill them."""
    call_command("migrate", "auth", verbosity=0)  # before what refers to groups and has no migrations
    call_command("migrate", run_syncdb=True, verbosity=0)
    _add_the_index_that_is_missing()
    with transaction.atomic():
        if connection.vendor == "postgresql":  # foreign keys that are true by construction need no check for each row
            _execute("SET LOCAL session_replication_role = replica")
        _insert_people(population)
        for scope, model in ((RoleScope.STUDY, Study), (RoleScope.LAB, Lab)):
            for role in roles_of(scope):
                _insert_groups(scope, role, model)
        _insert_site_groups()
        _insert_members(population)


def _add_the_index_that_is_missing() -> None:
    """With generic keys, "who holds it on this object" would read every row of the permission."""
    keys = held_by_groups(Study)
    if is_generic(keys):
        with connection.schema_editor() as editor:
            editor.add_index(keys, models.Index(fields=["object_pk", "content_type"], name="benchmark_by_object"))


def _insert_people(population: Population) -> None:
    users = (
        User(
            email=email_of(number),
            name=f"Researcher {number}",
            is_active=number not in population.inactive,
            is_superuser=number in population.superusers,
        )
        for number in population.everyone
    )
    User.objects.bulk_create(users, _BATCH)
    Lab.objects.bulk_create(Lab(name=f"Lab {number}") for number in range(1, population.labs + 1))
    studies = (
        Study(name=study_name(number), lab_id=lab, creator_id=creator)
        for number, (lab, creator) in enumerate(
            zip(population.lab_of_study, population.creator_of_study, strict=True), 1
        )
    )
    Study.objects.bulk_create(studies, _BATCH)


def _insert_groups(scope: RoleScope, role: str, model: type[models.Model]) -> None:
    """A group for each object, and its permissions on the object: one INSERT of each, as there are a million."""
    objects, groups = table_of(model), table_of(Group)
    prefix = group_name(scope, role) + " "
    _execute(f"INSERT INTO {groups} (name) SELECT %s || id FROM {objects} ORDER BY id", prefix)  # noqa: S608
    content_type = ContentType.objects.get_for_model(model)
    names = [
        codename(permission) if scope is RoleScope.STUDY or permission in LAB_PERMISSIONS else umbrella(permission)
        for permission in BUILTIN_ROLES[scope, role]
    ]
    marks = ", ".join(["%s"] * len(names))
    keys = held_by_groups(model)
    if is_generic(keys):
        columns, values, parameters = "content_type_id, object_pk", "%s, CAST(o.id AS VARCHAR(255))", [content_type.pk]
    else:
        columns, values, parameters = "content_object_id", "o.id", []
    _execute(
        f"""
        INSERT INTO {table_of(keys)} (group_id, permission_id, {columns})
        SELECT g.id, p.id, {values} FROM {objects} o
        JOIN {groups} g ON g.name = %s || o.id
        JOIN {table_of(DjangoPermission)} p ON p.content_type_id = %s AND p.codename IN ({marks})
        ORDER BY o.id, p.id
        """,  # noqa: S608 - names of tables
        *parameters,
        prefix,
        content_type.pk,
        *names,
    )


def _insert_site_groups() -> None:
    """Platform-wide they hold Django's own permissions, which name no object."""
    ids = {permission.codename: permission.pk for permission in DjangoPermission.objects.all()}
    for role in roles_of(RoleScope.SITE):
        group = Group.objects.create(name=group_name(RoleScope.SITE, role))
        group.permissions.add(*(ids[codename(permission)] for permission in BUILTIN_ROLES[RoleScope.SITE, role]))


def _insert_members(population: Population) -> None:
    grants, group = population.grants, dict(Group.objects.values_list("name", "pk"))
    members = [
        *((user, group_name(RoleScope.STUDY, role, study)) for user, study, role in sorted(grants.on_studies)),
        *((user, group_name(RoleScope.LAB, role, lab)) for user, lab, role in sorted(grants.on_labs)),
        *((user, group_name(RoleScope.SITE, role)) for user, role in sorted(grants.on_site)),
    ]
    MEMBERSHIP.objects.bulk_create((MEMBERSHIP(user_id=user, group_id=group[name]) for user, name in members), _BATCH)


def _execute(statement: str, *parameters: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
