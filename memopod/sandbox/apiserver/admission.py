"""Mutating admission webhooks, called for CREATE as Kubernetes calls them.

https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
Not modelled: UPDATE and DELETE, reinvocation, `matchConditions` (CEL) and `clientConfig.service`; the
last two count as a failed call, so `failurePolicy` decides. Audit annotations are ignored.
"""

import asyncio
import base64
import binascii
import io
import ssl
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import structlog

from memopod.kube import MUTATING_WEBHOOKS, NAMESPACES, Resource
from memopod.sandbox.apiserver import defaults
from memopod.sandbox.apiserver.patching import apply_json_patch
from memopod.sandbox.apiserver.selectors import all_met, label_selector
from memopod.sandbox.apiserver.statuses import StatusError, internal
from memopod.sandbox.apiserver.storage import Storage

Object = dict[str, Any]

_VERSIONS = ("v1", "v1beta1")
_LARGEST_ANSWER = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class User:
    """Who sent a request."""

    name: str
    groups: tuple[str, ...]

    def info(self) -> Object:
        """The `userInfo` of an AdmissionReview."""
        return {"username": self.name, "groups": [*self.groups, "system:authenticated"]}


@dataclass(frozen=True, slots=True)
class Creation:
    """One CREATE that webhooks are asked about."""

    resource: Resource
    namespace: str | None
    user: User
    dry_run: bool


class CallFailed(Exception):
    """A webhook gave no usable answer; its failure policy decides what that means."""


class Admission:
    """Calls the webhooks that are registered in `storage`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._log = structlog.get_logger()

    async def close(self) -> None:
        """Close the connections to the webhooks."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def mutate(self, creation: Creation, item: Object) -> tuple[Object, list[str]]:
        """The object after all webhooks, and their warnings.

        Raises StatusError: 403 (or what the webhook says) if one denies it, 500 if one with
        `failurePolicy: Fail` gives no answer, 422 if a patch does not fit.
        """
        warnings: list[str] = []
        for configuration in self._storage.items(MUTATING_WEBHOOKS):
            for webhook in configuration.get("webhooks") or []:
                if not self._concerned(webhook, creation, item):
                    continue
                try:
                    response = await self._call(webhook, creation, item)
                except CallFailed as error:
                    self._failed(webhook, error)
                    continue
                warnings += response.get("warnings") or []
                item = _apply(webhook["name"], creation, item, response)
        return item, warnings

    def _concerned(self, webhook: Mapping[str, Any], creation: Creation, item: Object) -> bool:
        if not any(_rule_matches(rule, creation.resource) for rule in webhook.get("rules") or []):
            return False
        if not all_met(label_selector(webhook.get("objectSelector")), item["metadata"].get("labels")):
            return False
        if creation.namespace is None:
            return True
        namespace = self._storage.get(NAMESPACES, None, creation.namespace) or {"metadata": {}}
        requirements = label_selector(webhook.get("namespaceSelector"))
        return all_met(requirements, namespace["metadata"].get("labels"))

    def _failed(self, webhook: Mapping[str, Any], error: CallFailed) -> None:
        name = webhook["name"]
        self._log.warning("webhook call failed", webhook=name, error=str(error))
        if webhook.get("failurePolicy") != "Ignore":
            raise internal(f'failed calling webhook "{name}": {error}')

    async def _call(self, webhook: Mapping[str, Any], creation: Creation, item: Object) -> Object:
        """The `response` of a webhook; raises CallFailed."""
        url = _url(webhook, creation)
        version = next((v for v in webhook.get("admissionReviewVersions") or [] if v in _VERSIONS), None)
        if version is None:
            raise CallFailed(f"expected admissionReviewVersions with one of {', '.join(_VERSIONS)}")
        seconds = float(webhook["timeoutSeconds"])
        review = _review(version, creation, item)
        try:
            async with asyncio.timeout(seconds):
                answer = await self._post(webhook, f"{url}?timeout={seconds:g}s", review)
        except TimeoutError as error:
            raise CallFailed(f"no answer from {url} in {seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ssl.SSLError) as error:
            raise CallFailed(f"cannot call {url}: {type(error).__name__}: {error}") from error
        return _checked(answer, review)

    async def _post(self, webhook: Mapping[str, Any], url: str, review: Object) -> Any:
        session = self._session(webhook["clientConfig"].get("caBundle") or "")
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        data = io.BytesIO(msgspec.json.encode(review))
        async with session.post(url, data=data, headers=headers) as response:
            body = await response.content.read(_LARGEST_ANSWER)
            while not response.content.at_eof() and len(body) < _LARGEST_ANSWER:
                body += await response.content.read(_LARGEST_ANSWER - len(body))
            if response.status != 200:
                raise CallFailed(f"expected HTTP 200, got {response.status}")
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise CallFailed(f"expected JSON: {error}") from error

    def _session(self, ca_bundle: str) -> aiohttp.ClientSession:
        if ca_bundle not in self._sessions:
            try:
                authority = base64.b64decode(ca_bundle).decode() if ca_bundle else None
                context = ssl.create_default_context(cadata=authority)
            except (ValueError, ssl.SSLError) as error:
                raise CallFailed(f"caBundle: expected certificates in base64 PEM: {error}") from error
            self._sessions[ca_bundle] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context), timeout=aiohttp.ClientTimeout(total=None)
            )
        return self._sessions[ca_bundle]


def _rule_matches(rule: Mapping[str, Any], resource: Resource) -> bool:
    def has(field: str, value: str) -> bool:
        return bool({"*", value} & set(rule.get(field) or ()))

    scope = rule.get("scope") or "*"
    return (
        has("operations", "CREATE")
        and has("apiGroups", resource.group)
        and has("apiVersions", resource.version)
        and (has("resources", resource.plural) or "*/*" in rule.get("resources", ()))
        and scope in ("*", "Namespaced" if resource.namespaced else "Cluster")
    )


def _url(webhook: Mapping[str, Any], creation: Creation) -> str:
    if webhook.get("matchConditions"):
        raise CallFailed("matchConditions are not supported in the sandbox")
    if creation.dry_run and webhook.get("sideEffects") not in ("None", "NoneOnDryRun"):
        raise CallFailed("a webhook with side effects is not called for a dry run")
    url = webhook["clientConfig"].get("url")
    if not url:
        raise CallFailed("clientConfig.service is not supported in the sandbox; use clientConfig.url")
    return str(url)


def _review(version: str, creation: Creation, item: Object) -> Object:
    resource = creation.resource
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    plural = {"group": resource.group, "version": resource.version, "resource": resource.plural}
    request = {
        "uid": str(uuid.uuid4()),
        "kind": kind,
        "resource": plural,
        "requestKind": kind,
        "requestResource": plural,
        "name": item["metadata"].get("name", ""),
        "namespace": creation.namespace,
        "operation": "CREATE",
        "userInfo": creation.user.info(),
        "object": item,
        "oldObject": None,
        "dryRun": creation.dry_run,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }
    if creation.namespace is None:
        del request["namespace"]
    return {"kind": "AdmissionReview", "apiVersion": f"admission.k8s.io/{version}", "request": request}


def _checked(answer: Any, review: Object) -> Object:
    """The `response` of a well-formed answer; raises CallFailed."""
    response = answer.get("response") if isinstance(answer, dict) else None
    if not isinstance(response, dict):
        raise CallFailed("expected an AdmissionReview with a response")
    if review["apiVersion"].endswith("/v1"):
        if (answer.get("kind"), answer.get("apiVersion")) != (review["kind"], review["apiVersion"]):
            raise CallFailed(f"expected an AdmissionReview of {review['apiVersion']}")
        if response.get("uid") != review["request"]["uid"]:
            raise CallFailed("expected the request's uid in the response")
        if response.get("patch") and response.get("patchType") != "JSONPatch":
            raise CallFailed(f"expected patchType JSONPatch, got {response.get('patchType')!r}")
    return response


def _apply(name: str, creation: Creation, item: Object, response: Object) -> Object:
    if response.get("allowed") is not True:
        raise _denied(name, response.get("status") or {})
    if not response.get("patch"):
        return item
    try:
        operations = msgspec.json.decode(base64.b64decode(response["patch"], validate=True))
    except (binascii.Error, msgspec.DecodeError) as error:
        raise internal(f'webhook "{name}": expected a base64 JSON patch') from error
    changed = apply_json_patch(item, operations)
    defaults.fill_in(creation.resource, changed)
    return changed


def _denied(name: str, status: Mapping[str, Any]) -> StatusError:
    text = f'admission webhook "{name}" denied the request'
    why = status.get("message") or status.get("reason")
    code = status.get("code")
    return StatusError(
        code if isinstance(code, int) and 400 <= code < 600 else 403,
        status.get("reason") or "Forbidden",
        f"{text}: {why}" if why else f"{text} without explanation",
    )
