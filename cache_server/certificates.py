"""The webhook's TLS certificate, read from files and read again when they change; and whose calls it takes.

Kubernetes replaces a mounted Secret's files in place when a certificate is renewed. New connections
get the new certificate; those that are open keep theirs.
"""

import asyncio
import math
import ssl
from collections.abc import Callable
from pathlib import Path

import structlog
from cryptography import x509
from prometheus_client import Gauge

_EXPIRES = Gauge(
    "memopod_certificate_expiration_timestamp_seconds",
    "When the certificate that the webhook shows ends, in seconds since 1970.",
)
_log = structlog.get_logger()


class FileCertificates:
    """The certificate of two files, which somebody else renews."""

    def __init__(self, cert_file: str, key_file: str) -> None:
        self.context = server_context(cert_file, key_file)
        self._files = cert_file, key_file

    async def keep(self, _leads: Callable[[], bool]) -> None:
        """Follow the files; runs until cancelled."""
        await reload_on_change(self.context, *self._files)


Stamp = tuple[tuple[int, int, int], ...]
"""Inode, time of change (nanoseconds) and size of each file."""


def server_context(cert_file: str, key_file: str) -> ssl.SSLContext:
    """A context for a server (TLS 1.2 and later) with the certificate chain and key of two PEM files.

    Raises OSError for a file that cannot be read, and ValueError for one that is not PEM, for an
    encrypted key, or if certificate and key do not belong together.
    """
    context = new_context()
    load(context, cert_file, key_file)
    return context


def new_context() -> ssl.SSLContext:
    """A context for a server, TLS 1.2 and 1.3, without a certificate yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def require_clients(context: ssl.SSLContext, ca_file: str) -> None:
    """Refuse clients without a certificate of these authorities: only the API server calls the webhook.

    Raises OSError for a file that cannot be read, and ValueError for one that is not PEM.
    """
    with Path(ca_file).open("rb"):
        pass
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise ValueError(f"expected PEM in {ca_file} (certificates): {error.reason}") from error
    context.verify_mode = ssl.CERT_REQUIRED


async def reload_on_change(
    context: ssl.SSLContext,
    cert_file: str,
    key_file: str,
    *,
    interval: float = 5.0,
    on_reload: Callable[[], None] = lambda: None,
) -> None:
    """Load the files into `context` again whenever they change; runs until it is cancelled.

    Looks every `interval` seconds: a Secret's files take up to a minute to change anyway. What cannot
    be loaded (a certificate whose key is still to come) is logged once and tried again, and the
    server goes on with what it has. `on_reload` is called after each success.
    """
    # None makes the first look load the files: they can have changed since the context was made.
    loaded: Stamp | None = None
    reported: str | None = None
    while True:
        try:
            loaded = _reload_changed(context, cert_file, key_file, loaded, on_reload)
            reported = None
        except (OSError, ValueError) as error:
            if str(error) != reported:
                reported = str(error)
                _log.warning("certificate not reloaded, the one before stays", error=reported)
        await asyncio.sleep(interval)


def _reload_changed(
    context: ssl.SSLContext,
    cert_file: str,
    key_file: str,
    loaded: Stamp | None,
    on_reload: Callable[[], None],
) -> Stamp:
    """Load what changed since `loaded`, and return what is loaded now."""
    # Taken before the files are read: a change in between is seen at the next look.
    now = _stamp(cert_file, key_file)
    if now != loaded:
        # A failed load leaves a context without a key, so a new one has to succeed first.
        server_context(cert_file, key_file)
        load(context, cert_file, key_file)
        if loaded is not None:
            _log.info("certificate reloaded", file=cert_file)
        on_reload()
    return now


def _stamp(*files: str) -> Stamp:
    return tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in (Path(file).stat() for file in files))


def load(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    """Load a certificate chain and its key into a context. Raises as `server_context` does."""
    for file in (cert_file, key_file):
        # OpenSSL's own errors do not say which file is missing.
        with Path(file).open("rb"):
            pass

    def refuse_encrypted() -> str:
        raise ValueError(f"{key_file}: expected a private key without a password, got an encrypted one")

    try:
        context.load_cert_chain(cert_file, key_file, password=refuse_encrypted)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"the private key in {key_file} does not belong to the certificate in {cert_file}"
        else:
            message = f"expected PEM in {cert_file} (certificates) and {key_file} (key): {error.reason}"
        raise ValueError(message) from error
    _EXPIRES.set(_end_of(Path(cert_file).read_bytes()))


def _end_of(chain: bytes) -> float:
    """When the first certificate of a chain ends, as Unix time."""
    try:
        return x509.load_pem_x509_certificates(chain)[0].not_valid_after_utc.timestamp()
    except ValueError:
        # OpenSSL took it, and takes more than others can read: it is served, and nobody knows until when.
        return math.nan
