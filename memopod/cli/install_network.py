"""Checks of what is served: the webhook's certificate, and what the cache server says of object stores."""

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from memopod.cli.install_found import FAILED, OK, SKIPPED, UNKNOWN, Check, failed_of
from memopod.cli.installed import Installation
from memopod.kube import SECRETS, ApiError, Client, NotFound

_CERT_NAMES = ("tls.crt", "cert.pem")
_UP = re.compile(r'^memopod_object_store_up\{store="([^"]*)"\} (\S+)$', re.MULTILINE)
_NAME = "webhook certificate"
_LATE = timedelta(days=1)
"""Who renews certificates does so at two thirds of their life; less than this, and less than a sixth of it,
is left only if nobody did."""


async def certificate(client: Client, found: Installation, checks: Sequence[Check]) -> Check:
    """Whether the API server would trust what the webhook shows."""
    if len(found.webhooks) != 1:
        return Check(_NAME, SKIPPED, "see webhook")
    own = found.setting("cache-server", "MEMOPOD_CACHE_CERTIFICATES") == "own"
    # Whoever would make it, and mend caBundle, does not run.
    if own and (failed := failed_of(checks, "cache-server", "database address")):
        return Check(_NAME, SKIPPED, f"see {failed}")
    again = (
        f"kubectl -n {found.namespace} rollout restart deploy/cache-server: its leader fills caBundle in"
        if own
        else "look at the Certificate and at cert-manager's cainjector: kubectl describe certificate"
    )
    bundles = {hook["clientConfig"].get("caBundle", "") for hook in found.webhooks[0]["webhooks"]}
    if "" in bundles:
        return Check(_NAME, FAILED, "a webhook has no caBundle", again)
    try:
        trusted = [x509.load_pem_x509_certificates(base64.b64decode(bundle)) for bundle in bundles]
    except ValueError:
        return Check(_NAME, FAILED, "caBundle is no certificate", again)
    name = secret_of(found, own=own)
    try:
        data = (await client.get(SECRETS, name, namespace=found.namespace)).get("data") or {}
    except NotFound:
        return Check(_NAME, FAILED, f"there is no Secret {found.namespace}/{name}", again)
    except ApiError as error:
        return Check(_NAME, UNKNOWN, f"Secret {found.namespace}/{name} cannot be read: {error.reason}")
    try:
        text = next(base64.b64decode(data[key]) for key in _CERT_NAMES if key in data)
        leaf = x509.load_pem_x509_certificates(text)[0]
    except (StopIteration, ValueError):
        return Check(_NAME, FAILED, f"Secret {found.namespace}/{name} holds no certificate", again)
    fault = fault_of(leaf, trusted, f"cache-server.{found.namespace}.svc")
    if fault:
        return Check(_NAME, FAILED, fault, again)
    return Check(_NAME, OK, f"valid until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, trusted by caBundle")


def secret_of(found: Installation, *, own: bool) -> str:
    """The Secret with the certificate that is served."""
    if own:
        return found.setting("cache-server", "MEMOPOD_CACHE_CERTIFICATE_SECRET", "memopod-cache-certificates")
    volumes = found.deployments["cache-server"]["spec"]["template"]["spec"].get("volumes") or ()
    secrets = [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]
    return str(next((name for name in secrets if "seal" not in name), "webhook-server-tls"))


def fault_of(leaf: x509.Certificate, trusted: list[list[x509.Certificate]], name: str) -> str | None:
    """Why an API server with these bundles would not take the certificate; None if it would."""
    now = datetime.now(UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        return f"the certificate is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc}"
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    if leaf.not_valid_after_utc - now < min(_LATE, life / 6):
        return f"the certificate ends at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and nobody renewed it"
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        known = []
    if name not in known:
        return f"the certificate is for {', '.join(known) or 'no name'}, not for {name}"
    if not all(any(signed_by(leaf, authority) for authority in bundle) for bundle in trusted):
        return "caBundle is not the authority that signed the webhook's certificate"
    return None


def signed_by(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether this authority signed the certificate, or is the certificate itself."""
    if leaf == authority:
        return True
    try:
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


async def object_stores(client: Client, found: Installation) -> Check:
    """What the cache server says of the stores that it looks for outputs in."""
    name = "object stores"
    if not found.setting("cache-server", "MEMOPOD_CACHE_OBJECT_STORE"):
        return Check(name, OK, "none is set: outputs are not checked before they are reused")
    path = f"/api/v1/namespaces/{found.namespace}/services/cache-server:health/proxy/metrics"
    try:
        text = (await client.read(path)).decode()
    except ApiError as error:
        return Check(
            name, UNKNOWN, f"the cache server's metrics cannot be reached: {error}",
            f"kubectl -n {found.namespace} port-forward deploy/cache-server 9094; "
            "curl -s localhost:9094/metrics | grep memopod_object_store_up",
        )  # fmt: skip
    stores = dict(_UP.findall(text))
    down = sorted(store for store, up in stores.items() if float(up) == 0)
    if down:
        return Check(
            name, FAILED, f"{', '.join(down)} does not answer the cache server: nothing is reused from there",
            "look at the endpoint, the credentials in the cache server's environment, and network policies",
        )  # fmt: skip
    if not stores:
        return Check(name, UNKNOWN, "no bucket has been asked yet (those with * are asked with each step)")
    return Check(name, OK, f"{', '.join(sorted(stores))} answers")
