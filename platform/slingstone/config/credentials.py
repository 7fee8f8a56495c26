"""What of a URI or of the environment is secret, and texts without it."""

import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, unquote_plus

_NAME = (
    r"password|passwd|pwd|passphrase|token|secret|credential|signature|sig|api[-_]?key|access[-_]?key|sslkey|accountkey"
)
_PAIR = re.compile(rf"([\w.-]*(?:{_NAME})[\w.-]*)\s*=\s*([^&;\s]*)", re.IGNORECASE)
_VARIABLE = re.compile(r"_(TOKEN|PASSWORD|SECRET|KEY)$|^PGPASSWORD$")
URI_VARIABLE = "MLFLOW_TRACKING_URI"
HIDDEN = "***"


def has_credentials(uri: str) -> bool:
    """Return whether a URI, of whatever scheme, holds a password, token or user; also one that is not encoded well."""
    return any(True for _ in _secrets(uri))


def redacted(uri: str) -> str:
    """Return a URI without the credentials that it may carry, nor query and fragment, to be written down or shown."""
    scheme, separator, rest = uri.partition("://")
    if scheme.startswith("sqlite") and not has_credentials(uri):
        return uri
    if not separator:
        return HIDDEN if has_credentials(uri) else uri
    return f"{scheme}://{re.split('[?#]', rest[len(_user(rest)) :], maxsplit=1)[0]}"


def concealed(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return a text, such as a traceback, without what is secret in the environment: in URIs, tokens and passwords."""
    given = os.environ if environment is None else environment
    found = set(_secrets(given.get(URI_VARIABLE, "")))
    found |= {value for name, value in given.items() if value and _VARIABLE.search(name)}
    for secret in sorted(found | {unquote(one) for one in found}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _user(rest: str) -> str:
    """Return what stands before the host, up to its `@`: a password that is not encoded may hold / ? # and @."""
    if rest.startswith("/"):
        return ""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # Without a colon a user has no password, and an @ behind the host belongs to a path.
    until = rest if ":" in authority else authority
    return until[: until.rfind("@") + 1]


def _secrets(uri: str) -> Iterator[str]:
    """Yield what is secret in a URI, as it is written and decoded."""
    user = _user(uri.partition("://")[2]).removesuffix("@")
    if user:
        yield user
        if password := user.partition(":")[2]:
            yield password
            # Who reads such a URI as it stands complains of a part: "port could not be cast to integer: 'pass'".
            yield from (part for part in re.split(r"[/?#@:]", unquote(password)) if len(part) > 2)
    for text in (uri, unquote_plus(uri), unquote_plus(unquote_plus(uri))):
        yield from (value for _, value in _PAIR.findall(text) if value)
