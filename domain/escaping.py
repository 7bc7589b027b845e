"""Escapes text that people or builds wrote for the structured places that it is put into: one function for each.

| sink | function |
| --- | --- |
| a line of text, such as a name in a sentence | `one_line` |
| mail: a display name, a subject | `mail_phrase`, `mail_subject` |
| mail: an address | `deliverable_address` |
| CSV | `csv_cell` |
| Markdown: text, inline code, a block of code | `markdown_text`, `markdown_code`, `markdown_block` |
| a terminal | `visible`; in markup of rich, `lookit_ops.terminal.plain` |
| HTML | Jinja2's own autoescaping |
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from email.errors import HeaderParseError
from email.headerregistry import Address
from textwrap import wrap

import idna

from domain.errors import InvalidRequest

# C0 but tab and line break, DEL, C1, halves of surrogate pairs.
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
# What turns the direction of the text around it, and Unicode's own line breaks.
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029"
_INVISIBLE = re.compile(f"[{_CONTROL}{_BIDIRECTIONAL}]")
_LINE_OR_CONTROL = re.compile(f"[\t\n{_CONTROL}]")

_PLAIN_PHRASE = re.compile(r"[A-Za-z0-9'-]+(?: [A-Za-z0-9'-]+)*")
_PLAIN_SUBJECT = re.compile(r"[!-~]+(?: [!-~]+)*")
_LONGEST_PLAIN = 65
"""Characters of a header that is written as it is, in one line."""
_BYTES_OF_A_WORD = 45
"""That base64 makes 60 characters of: with its frame, an encoded word has 75 at most (RFC 2047, section 2)."""

_FORMULA = "=+@\\-\uff1d\uff0b\uff20\uff0d"
"""What a spreadsheet takes for the beginning of a formula; the last four are full-width forms of the others."""
# Not every spreadsheet separates by commas: what stands after one of these may begin a cell as well.
_CELL_BEGINS = re.compile(f"(^|[;,|\t\r\n\"])(?=[{_FORMULA}'\t\r])")

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+.!|<>&~:$@-])")


def one_line(text: str) -> str:
    """Return the text in one line: blanks of any kind become one space, control characters the replacement sign."""
    return _LINE_OR_CONTROL.sub("\ufffd", " ".join(text.split()))


def mail_phrase(name: str) -> str:
    """Return a display name as ASCII for a header; a parser reads exactly `one_line(name)` from it."""
    text = one_line(name)
    if not text.isascii() or "=?" in text:
        return _encoded_words(text)
    if len(text) <= _LONGEST_PLAIN and _PLAIN_PHRASE.fullmatch(text):
        return text
    quoted = re.sub(r'([\\"])', r"\\\1", text)
    return '"' + "\n ".join(wrap(quoted, _LONGEST_PLAIN, break_long_words=False, break_on_hyphens=False)) + '"'


def mail_subject(subject: str) -> str:
    """Return a subject as ASCII for a header; a parser reads exactly `one_line(subject)` from it."""
    text = one_line(subject)
    is_plain = len(text) <= _LONGEST_PLAIN and _PLAIN_SUBJECT.fullmatch(text) and "=?" not in text
    return text if is_plain else _encoded_words(text)


def _encoded_words(text: str) -> str:
    """Return the text as encoded words of RFC 2047, in lines that a reader joins without a blank."""
    words: list[bytes] = [b""]
    # At blanks first: some readers leave one between two encoded words.
    for piece in re.split("(?= )", text):
        if len(words[-1]) + len(piece.encode()) > _BYTES_OF_A_WORD:
            words.append(b"")
        for character in piece:
            encoded = character.encode()
            if len(words[-1]) + len(encoded) > _BYTES_OF_A_WORD:
                words.append(b"")
            words[-1] += encoded
    return "\n ".join(f"=?utf-8?b?{b64encode(word).decode()}?=" for word in words if word)


def deliverable_address(email: str) -> str:
    """Return the address in ASCII, its domain in the form that name servers know (IDNA 2008).

    Raises:
        InvalidRequest: no mail server could deliver to it.
    """
    local, _, domain = email.rpartition("@")
    if not local.isascii():
        raise InvalidRequest(
            f"no mail can be sent to {email!r}: {local!r}, before the @, has letters outside ASCII, which most mail"
            " servers refuse; give the account another address"
        )
    try:
        host = idna.encode(domain, uts46=True).decode() if not domain.isascii() else domain
        address = f"{local}@{host}"
        is_address = Address(addr_spec=address).addr_spec == address and "." in f".{host}"
    except (idna.IDNAError, ValueError, IndexError, HeaderParseError):
        is_address = False
        address = ""
    if not is_address or not local or not domain or any(not "!" <= letter <= "~" for letter in address):
        raise InvalidRequest(
            f"no mail can be sent to {email!r}: it is no e-mail address; correct the account's address"
        )
    return address


def csv_cell(text: str) -> str:
    """Return a cell of CSV that no spreadsheet takes for a formula, with any separator of cells.

    An apostrophe stands before what could begin a formula, and before an apostrophe in such a place. To read the cell,
    drop one apostrophe at its beginning and after each of `;`, `,`, `|`, `"`, tab and line break.
    """
    return _CELL_BEGINS.sub(r"\1'", text)


def markdown_text(text: str) -> str:
    """Return text for Markdown, in one line, that is shown as it is: no element, link, image or HTML comes of it."""
    return _MARKDOWN.sub(r"\\\1", visible(one_line(text)))


def markdown_list(texts: Iterable[str]) -> str:
    """Return a list with a line for each text, as `markdown_text`."""
    return "\n".join(f"- {markdown_text(text)}" for text in texts)


def markdown_code(text: str) -> str:
    """Return inline code that ends where the text ends, even if it holds backticks."""
    line = visible(one_line(text))
    marks = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith(("`", " ")) or line.endswith(("`", " ")) else ""
    return f"{marks}{pad}{line}{pad}{marks}"


def markdown_block(text: str) -> str:
    """Return a block of code that ends where the text ends, even if it holds fences."""
    shown = visible(text)
    marks = "`" * max(3, _longest_run(shown) + 1)
    return f"{marks}text\n{shown}\n{marks}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def visible(text: str) -> str:
    """Return text for a terminal: what controls it, or turns the direction of the text, becomes signs that one can see.

    Tab and line break stay.
    """
    return _INVISIBLE.sub(_sign, text.replace("\r\n", "\n"))


def _sign(control: re.Match[str]) -> str:
    code = ord(control[0])
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode has a picture of each: ␛ for escape
    if code == 0x7F:
        return "␡"
    if code < 0x100:
        return f"\\x{code:02x}"
    return "\ufffd" if 0xD800 <= code < 0xE000 else f"\\u{code:04x}"
