"""Builds by stamping: when a template serves, what proves it, and what sends a study back to a full build."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from domain.models import BuildKind, State
from lookit_ops.deployments.manifest import folder_of
from lookit_ops.deployments.templates import KEPT_UNUSED, TEMPLATES, Templates, prune_templates
from tests.support.workshop import Workshop

EMBER = """
echo "a build"
mkdir -p "$OUTPUT_DIR/assets"
script="var root = '$STUDY_PREFIX'; EXTRA"
md5=$(printf '%s' "$script" | md5sum | cut -d' ' -f1)
printf '%s' "$script" > "$OUTPUT_DIR/assets/player-$md5.js"
echo "<html><script src=\\"${STUDY_PREFIX}assets/player-$md5.js\\"></script></html>" > "$OUTPUT_DIR/index.html"
echo "User-agent: *" > "$OUTPUT_DIR/robots.txt"
"""
RANDOM = EMBER.replace("EXTRA", "var made = '$(head -c 8 /dev/urandom | md5sum | cut -c1-16)';")
BASE64 = EMBER.replace("EXTRA", "var hidden = '$(printf %s $STUDY_PREFIX | base64 -w 0)';")


@pytest.fixture
def studies(workshop: Workshop) -> list[int]:
    workshop.settings |= {"stamp_builds": True, "stamp_audit_share": 0}
    workshop.build_by(EMBER.replace("EXTRA", ""))
    names = ("One", "Two", "Three", "Four")
    return [workshop.site.another_study(name, State.APPROVED) for name in names]


def build(workshop: Workshop, study: int, *, full: bool = False) -> dict[str, str]:
    """Build a preview of a study and return what the run's page says of the way."""
    request = workshop.ledger.request(study, workshop.site.study_admin, BuildKind.PREVIEW)
    run: dg.ExecuteInProcessResult = workshop.run(request_id=request, full=full)
    assert run.success
    (event,) = [event for event in run.events_for_node("build") if event.is_successful_output]
    assert workshop.leftovers() == []
    return {name: str(value.value) for name, value in event.step_output_data.metadata.items()}


def bundle(workshop: Workshop, study: int) -> dict[str, bytes]:
    folder = workshop.services.settings.local_bucket / folder_of("preview", workshop.site.study(study).uuid)
    files = (path for path in folder.rglob("*") if path.is_file() and ".deployments" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.startswith(".")}


def test_the_second_full_build_proves_and_the_third_study_is_stamped_as_it_would_be_built(
    workshop: Workshop, studies: list[int]
) -> None:
    one, two, three, _ = studies
    first = build(workshop, one)
    assert (first["way"], first["why this way"]) == ("full", "there is no template of this commit yet")
    assert "kept as a template" in first["template"]
    again = build(workshop, one)
    assert (again["way"], again["why this way"]) == ("reused", "a full build of this commit for this study was there")
    assert "built for this study, too" in build(workshop, one, full=True)["template"]
    assert "it equals this build byte for byte" in build(workshop, two)["template"]
    stamped = build(workshop, three)
    assert stamped["way"] == "stamped"
    assert "a build" in first["end of the output"]
    assert "a build" not in stamped["end of the output"]
    made = bundle(workshop, three)
    assert str(workshop.site.study(three).uuid).encode() in b"".join(made.values())
    assert str(workshop.site.study(one).uuid).encode() not in b"".join(made.values())
    logs = workshop.site.logs(three)
    assert logs[-1].extra["facts"]["way"] == "stamped"
    assert (workshop.services.settings.local_bucket / TEMPLATES / logs[-1].extra["facts"]["template"]).is_dir()
    full = build(workshop, three, full=True)
    assert (full["way"], full["why this way"]) == ("full", "the run was asked for a full build")
    assert full["template"] == "the template still gives what a full build gives"
    assert bundle(workshop, three) == made, "the same files, byte for byte"


def test_without_the_setting_each_study_is_built_in_full(workshop: Workshop, studies: list[int]) -> None:
    workshop.settings["stamp_builds"] = False
    for study in studies[:3]:
        assert build(workshop, study)["why this way"] == "LOOKIT_STAMP_BUILDS is off"
    assert not (workshop.services.settings.local_bucket / TEMPLATES).exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [(RANDOM, "differs between the stamped bundle and a full build"), (BASE64, "holds the study's UUID in base64")],
)
def test_a_player_that_cannot_be_stamped_is_built_in_full_and_the_run_says_why(
    workshop: Workshop, studies: list[int], script: str, reason: str
) -> None:
    workshop.build_by(script)
    one, two, three, _ = studies
    build(workshop, one)
    proof = build(workshop, two)
    assert proof["template"].startswith("the template is refused: assets/player-")
    later = build(workshop, three)
    assert later["way"] == "full"
    assert later["why this way"].startswith("the template of this commit is refused: assets/player-")
    for told in (proof["template"], later["why this way"], later["template"]):
        assert reason in told


def test_a_full_build_that_differs_withdraws_a_proved_template(workshop: Workshop, studies: list[int]) -> None:
    """A hostile repository may let two studies agree and a third differ."""
    one, two, three, four = studies
    build(workshop, one)
    build(workshop, two)
    uuid = workshop.site.study(three).uuid
    workshop.build_by(EMBER.replace("EXTRA", f"$(case $STUDY_PREFIX in *{uuid}*) echo evil;; esac)"))
    assert build(workshop, four)["way"] == "stamped"
    told = build(workshop, three, full=True)["template"]
    assert told.startswith("the template is refused: assets/player-")
    assert told.endswith("Stamped from it before: Four; build those again")
    assert build(workshop, four, full=True)["template"].startswith("no template: assets/player-")
    assert build(workshop, four)["way"] == "full"


def test_an_audit_builds_in_full_what_could_be_stamped(workshop: Workshop, studies: list[int]) -> None:
    workshop.settings["stamp_audit_share"] = 1
    one, two, three, four = studies
    build(workshop, one)
    build(workshop, two)
    audit = build(workshop, three)
    assert audit["way"] == "full"
    assert "chosen to check it" in audit["why this way"]
    assert audit["template"] == "the template still gives what a full build gives"
    workshop.build_by(EMBER.replace("EXTRA", "var later = true;"))
    assert build(workshop, four)["template"].startswith("the template is refused: assets/player-")


def test_a_damaged_template_and_a_bucket_that_fails_cost_a_full_build_and_no_failure(
    workshop: Workshop, studies: list[int]
) -> None:
    one, two, three, four = studies
    build(workshop, one)
    build(workshop, two)
    folder = workshop.services.settings.local_bucket / TEMPLATES
    (record,) = folder.glob("*/template.json")
    for file in record.parent.iterdir():
        if file != record and file.is_file():
            file.write_bytes(file.read_bytes() + b" ")
    damaged = build(workshop, three)
    assert damaged["way"] == "full"
    assert "has other contents than its name says" in damaged["why this way"]
    record.write_bytes(b"[]")
    unreadable = build(workshop, four)
    assert unreadable["way"] == "full"
    assert "is no record of a template" in unreadable["why this way"]


def test_a_template_goes_a_month_after_its_last_use(workshop: Workshop, studies: list[int]) -> None:
    one, two, three, _ = studies
    build(workshop, one)
    build(workshop, two)
    bucket, now = workshop.services.bucket, datetime.now(UTC)
    before = {file.key: file.updated_at for file in bucket.files(f"{TEMPLATES}/")}
    (key,) = (key for key in before if key.endswith("template.json"))
    record = Templates(bucket).find(key.split("/")[1])
    assert record is not None
    Templates(bucket).note_use(record, now + timedelta(hours=1))
    assert {file.key: file.updated_at for file in bucket.files(f"{TEMPLATES}/")} == before, "noted today already"
    Templates(bucket).note_use(record, now + timedelta(days=2))
    assert prune_templates(bucket, now=now + KEPT_UNUSED - timedelta(hours=1), dry_run=False) == ([], {})
    later = now + KEPT_UNUSED + timedelta(hours=1)
    would_go, failed = prune_templates(bucket, now=later, dry_run=True)
    assert ({file.key for file in would_go}, failed) == (before.keys(), {})
    assert prune_templates(bucket, now=later, dry_run=False) == (would_go, {})
    assert list(bucket.files(f"{TEMPLATES}/")) == []
    assert build(workshop, three)["why this way"] == "there is no template of this commit yet"
