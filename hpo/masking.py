"""Secrets in text: passwords of URLs and of libpq's settings, keys and tokens are replaced before it is shown."""

from __future__ import annotations

import re

MASK = "***"

_NAME = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|signature|credential|access_?key|api_?key|private_?key)"
    r"[\w.-]*"
)
_QUOTED = r"(?:'(?:[^'\\]|\\.)*'?|\"(?:[^\"\\]|\\.)*\"?)"

_NEXT_URL = r"\s['\"(]*(?:[\w-]+=)?[a-z][\w+.-]*://"

_WITHOUT_PASSWORD = (
    # A user, a host or an address of IPv6, a port and a path, if no @ stands between them and the next URL.
    r"://(?:[^:@\s]*@)?(?:\[[\da-f:.]*\]|[^:@\s\[\]/?]*)(?::\d{1,5}[.,;)'\"]*)?(?:/(?:[a-z]:/)?[^:@\s]*|\?[^:@\s]*)?"
    rf":?(?=\s)(?:(?!{_NEXT_URL})[^@\n])*{_NEXT_URL}"
)

_SECRET = re.compile(
    # From the first colon to the last @ before the next URL, or else of the line: a password that nobody escaped may
    # hold any other character. What is masked already, or what stands for a password in a hint, ends it.
    rf"(?P<url>(?!{_WITHOUT_PASSWORD})://[^:\s]*:)(?!(?:\*{{3}}|PASSWORD)@)(?:(?:(?!{_NEXT_URL}).)*|.*)(?=@)"
    r"|(?P<bare>(?:^|(?<=[\s='\"(]))[\w.%+-]*:(?!//))[^\s'\"]\S*(?=@)"
    rf"|(?P<query>[?&]{_NAME}=)[^\s&]*"
    rf"|(?P<setting>{_NAME}(?:\s*=\s*|['\"]\s*:\s*)){_QUOTED}?\S*",
    re.IGNORECASE | re.MULTILINE,
)


def mask_secrets(text: str) -> str:
    """Replace the secrets in a text by `***`: of URLs, well-formed or not, and of settings such as `password=`.

    Where a password holds an @ that should have been escaped, more than the password may be replaced, never less. Only
    one that holds a space and then a whole URL is taken for two URLs.
    """
    return _SECRET.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    return next(kept for kept in match.groups() if kept is not None) + MASK
