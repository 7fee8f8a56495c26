"""Who asks over HTTP: whether he has the token, and whether he sits on this machine. Needs no Ray."""

import hmac
import ipaddress

from starlette.requests import Request


def bears(request: Request, token: str) -> bool:
    """Return whether a request carries a bearer token; nobody carries an empty one."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # In constant time, so that its duration does not tell how much of a guess was right.
    return bool(token) and scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def is_loopback(request: Request) -> bool:
    """Return whether a request comes by the loopback interface."""
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
