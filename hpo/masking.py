"""Secrets in text: passwords of URLs and of libpq's settings, keys and tokens are replaced before it is shown."""

from __future__ import annotations

import re

MASK = "***"

_NAME = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|signature|credential|access_?key|api_?key|private_?key)"
    r"[\w.-]*"
)
_QUOTED = r"(?:'(?:[^'\\]|\\.)*'?|\"(?:[^\"\\]|\\.)*\"?)"

_SECRET = re.compile(
    # From the first colon to the last @ of the line: a password that nobody escaped may hold any other character.
    # What is masked already, or what stands for a password in a hint, ends it.
    r"(?P<url>://[^:\s]*:)(?!(?:\*{3}|PASSWORD)@).*(?=@)"
    r"|(?P<bare>(?:^|(?<=[\s='\"(]))[\w.%+-]*:(?!//))[^\s'\"]\S*(?=@)"
    rf"|(?P<query>[?&]{_NAME}=)[^\s&]*"
    rf"|(?P<setting>{_NAME}(?:\s*=\s*|['\"]\s*:\s*)){_QUOTED}?\S*",
    re.IGNORECASE | re.MULTILINE,
)


def mask_secrets(text: str) -> str:
    """Replace the secrets in a text by `***`: of URLs, well-formed or not, and of settings such as `password=`.

    Where a password holds an @ that should have been escaped, more than the password may be replaced, never less.
    """
    return _SECRET.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    return next(kept for kept in match.groups() if kept is not None) + MASK
