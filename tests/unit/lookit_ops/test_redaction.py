"""Secrets stay out of what is stored and shown: known values, and what looks like a credential."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookit_ops.redaction import MASK, SHORTEST_SECRET, Redactor

# A secret that is itself a piece of the mask could not be hidden by it; no operator has such a one.
SECRETS = st.text(
    st.characters(exclude_characters=set(MASK), exclude_categories=["Cs"]), min_size=SHORTEST_SECRET, max_size=12
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(secrets=st.lists(SECRETS, min_size=1, max_size=4), texts=st.lists(TEXTS, min_size=5, max_size=5))
def test_no_known_secret_is_ever_seen_whatever_stands_around_it(secrets: list[str], texts: list[str]) -> None:
    around, rest = texts[0], texts[1:]
    text = around + "".join(secret + after for secret, after in zip(secrets, rest, strict=False))
    redacted = Redactor(secrets)(text + quote(text, safe=""))
    for secret in secrets:
        assert secret not in redacted
        assert quote(secret, safe="") not in redacted


@given(text=TEXTS)
def test_without_secrets_and_credentials_a_text_stays_as_it_is(text: str) -> None:
    text = text.replace("://", "").replace("uthorization", "").replace("gh", "").replace("itHub", "")
    assert Redactor([])(text) == text


@given(text=TEXTS, secrets=st.lists(SECRETS, max_size=3))
def test_redacting_again_changes_nothing_more(text: str, secrets: list[str]) -> None:
    redact = Redactor(secrets)
    once = redact(text + "".join(secrets))
    assert redact(once) == once


def test_the_rest_of_a_line_stays_readable() -> None:
    redact = Redactor(["s3cret-value", "another one"])
    assert redact("key=s3cret-value; next=another one.") == f"key={MASK}; next={MASK}."


def test_a_secret_that_begins_another_does_not_uncover_the_others_end() -> None:
    assert Redactor(["abcd", "abcdefgh"])("abcdefgh abcd") == f"{MASK} {MASK}"


def test_a_secret_is_taken_literally_and_also_found_as_urls_write_it() -> None:
    redact = Redactor(["p.ss/w+rd?"])
    assert redact("p.ss/w+rd? and p%2Ess, p.ss%2Fw%2Brd%3F") == f"{MASK} and p%2Ess, {MASK}"
    assert redact("pass/w+rd?") == "pass/w+rd?"
    assert Redactor(["two words"])("?key=two+words, two%20words") == f"?key={MASK}, {MASK}"


@pytest.mark.parametrize("short", ["", "a", "abc"])
def test_a_value_too_short_for_a_secret_does_not_hide_the_log(short: str) -> None:
    assert Redactor([short])("abc and a bit more") == "abc and a bit more"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("postgresql://lookit:hunter2@db/lookit", f"postgresql://lookit:{MASK}@db/lookit"),
        ("'postgres://lookit:Abc/def+1@23@db/lookit'", f"'postgres://lookit:{MASK}@db/lookit'"),
        ("http://registry:4873/@scope/pack", "http://registry:4873/@scope/pack"),
        ("redis://:hunter2@cache/0", f"redis://:{MASK}@cache/0"),
        ("postgresql://me:h@nt:er2@db/lookit", f"postgresql://me:{MASK}@db/lookit"),
        (
            "postgresql://db/lookit?password=hunter2&sslmode=require",
            f"postgresql://db/lookit?password={MASK}&sslmode=require",
        ),
        ("'postgresql://db/x?user=me&sslpassword=hunter2'", f"'postgresql://db/x?user=me&sslpassword={MASK}'"),
        ("see https://x-token:abc@github.com/a/b.git now", f"see https://x-token:{MASK}@github.com/a/b.git now"),
        ("url: /o/r/zip/abc?token=ABC123 (Caused by x)", f"url: /o/r/zip/abc?token={MASK} (Caused by x)"),
        ("https://b.test/x?a=1&X-Amz-Signature=ab12&z=1", f"https://b.test/x?a=1&X-Amz-Signature={MASK}&z=1"),
        ("https://b.test/x?X-Goog-Credential=me%40x&y", f"https://b.test/x?X-Goog-Credential={MASK}&y"),
        (
            '<a href="https://b.test/x?a=1&amp;sig=ab12&amp;z=1">',
            f'<a href="https://b.test/x?a=1&amp;sig={MASK}&amp;z=1">',
        ),
        (r"https://b.test/x?a=1\u0026signature=ab12\u0026z=1", rf"https://b.test/x?a=1\u0026signature={MASK}\u0026z=1"),
        ("<Url>https://b.test/x?token=ab12</Url>", f"<Url>https://b.test/x?token={MASK}</Url>"),
        ("token ghp_0123456789abcdefghij0123", f"token {MASK}"),
        ("token github_pat_0123456789abcdefghij_01", f"token {MASK}"),
        ("Authorization: Bearer abc.def-ghi", f"Authorization: Bearer {MASK}"),
        ("{'authorization': 'token abc'}", f"{{'authorization': 'token {MASK}'}}"),
        ('"Authorization": "Basic dXNlcjpwYXNz"', f'"Authorization": "Basic {MASK}"'),
        ("Authorization: abcdef\nContent-Type: text/plain", f"Authorization: {MASK}\nContent-Type: text/plain"),
    ],
)
def test_what_looks_like_a_credential_is_masked_though_nobody_named_it(text: str, redacted: str) -> None:
    assert Redactor([])(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/lookit/player",
        "https://x.test/?passwords=2&q=password",
        "git@github.com:lookit/player",
        "http://localhost:8000/a@b",
        "ghost_writer",
    ],
)
def test_what_only_resembles_a_credential_stays(text: str) -> None:
    assert Redactor([])(text) == text
