"""What went wrong where no answer came, as sentences: `registry.transport` passes httpx's exceptions on to here."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import httpx

from registry.errors import RemoteUnreachable
from registry.reply import Origin, Timeouts


def as_remote_error(error: Exception, origin: Origin, timeouts: Timeouts, proxy: str) -> RemoteUnreachable:
    """The sentence for a request that got no answer.

    Args:
        proxy: host of the proxy on the way, "" where there is none.
    """
    causes = list(_causes(error))
    way = f"{origin} through the proxy {proxy}" if proxy else str(origin)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RemoteUnreachable(
                f"the certificate of {origin} cannot be trusted ({cause.verify_message}); set SSL_CERT_FILE to the "
                "certificates of its authority, or take it as it is with --insecure"
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            reason = (cause.reason or "TLS error").lower().replace("_", " ")
            return RemoteUnreachable(
                f"no secure connection to {way} ({reason}); if it is a registry without TLS, use --insecure"
            )
    if isinstance(error, httpx.ProxyError):
        return RemoteUnreachable(f"cannot reach {way}: {error}; look at HTTPS_PROXY, HTTP_PROXY and NO_PROXY")
    if isinstance(error, httpx.ConnectTimeout):
        what = f"cannot reach {way}: no connection within {timeouts.connect_s:g} s"
    elif isinstance(error, httpx.TimeoutException):
        what = f"{way} did not answer within {timeouts.silence_s:g} s"
    elif isinstance(error, httpx.ConnectError):
        what = f"cannot reach {way}: {_reason(causes)}"
    else:
        what = f"the connection to {way} broke before an answer came"
    return RemoteUnreachable(f"{what}; check the name and the network", is_temporary=True)


def _reason(causes: list[BaseException]) -> str:
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return "its name is not known to the DNS"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    return "no connection"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what httpx and httpcore made it of; httpcore hides the cause, but the context stays."""
    while error is not None:
        yield error
        is_wrapper = type(error).__module__.partition(".")[0] in ("httpx", "httpcore")
        error = error.__cause__ or error.__context__ if is_wrapper else None
