"""The admission webhook: HTTPS in, AdmissionReview out, and never a refusal.

What is decided about a Pod is up to a `Judge`: `holding` (the Pod waits for the controller; no I/O), or
that of `cache_server.placeholder`. The order of checks and the texts of errors are those of Kubeflow's
cache server, so that whoever monitors one can monitor the other.
"""

import base64
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import msgspec
import structlog
from aiohttp import web

from cache_server.admission import Admission, Policy, Verdict
from cache_server.admissions import ADMISSIONS
from cache_server.review import VERSIONS, AdmissionRequest, decode_review

_log = structlog.get_logger()
_BODY_LIMIT = 8 * 1024 * 1024
"""Bytes. An object in Kubernetes is at most 3 MiB, and a review holds it up to twice."""
_JSON = "application/json"

Judge = Callable[[AdmissionRequest], Awaitable[Verdict]]
"""Decides about one request. May raise the errors that a Pod of an odd shape leads to: then it runs."""

decode_template: Callable[[str], Any] = msgspec.json.decode
"""Decodes a template's text; raises msgspec.DecodeError, a ValueError."""


def holding(policy: Policy, controller_alive: Callable[[], bool]) -> Judge:
    """The judge of gate mode: Pods are marked, and held while a controller is alive to decide."""
    admission = Admission(policy, decode_template)

    async def judge(request: AdmissionRequest) -> Verdict:
        return admission.admit(
            request.pod(),
            namespace=request.namespace,
            username=request.username,
            now=datetime.now(UTC),
            controller_alive=controller_alive(),
        )

    return judge


def build_webhook(judge: Judge, client_names: Collection[str] = ()) -> web.Application:
    """The application that answers POST /mutate.

    `client_names`: common names that a client certificate may have, where TLS asks for one; empty for any.
    """
    webhook = _Webhook(judge, frozenset(client_names))
    app = web.Application(client_max_size=_BODY_LIMIT)
    app.router.add_route("*", "/mutate", webhook.mutate)
    return app


class _Webhook:
    def __init__(self, judge: Judge, client_names: frozenset[str]) -> None:
        self._judge = judge
        self._client_names = client_names

    async def mutate(self, request: web.Request) -> web.Response:
        begun, dry_run = perf_counter(), False
        try:
            review = await self._read(request)
            if isinstance(review, web.Response):
                return review
            version, asked = review
            dry_run = bool(asked.dryRun)
            verdict = await self._judged(asked)
            if not dry_run:
                ADMISSIONS.tally.decisions[_decision(verdict), verdict.reason] += 1
            return web.Response(body=_answer(version, asked, verdict), content_type=_JSON)
        finally:
            # A dry run leaves no trace, and no Pod waited for it.
            if not dry_run:
                ADMISSIONS.tally.took(perf_counter() - begun)

    async def _read(self, request: web.Request) -> tuple[str, AdmissionRequest] | web.Response:
        """The review's version and what it asks, or the answer to what is no review."""
        if self._client_names and _common_name(request) not in self._client_names:
            return _error(403, "The client certificate is not one that may call this webhook")
        if request.method != "POST":
            return _error(405, f'Invalid method "{request.method}", only POST requests are allowed')
        try:
            body = await request.read()
        except (web.RequestPayloadError, ConnectionError) as error:
            return _error(400, f"Could not read request body: {type(error).__name__}")
        content_type = request.headers.get("Content-Type", "")
        if content_type != _JSON:
            return _error(400, f'Unsupported content type "{content_type}", only "{_JSON}" is supported')
        try:
            review = decode_review(body)
        except (ValueError, RecursionError) as error:
            return _error(400, f"Could not deserialize request: {_cause(error)}")
        if review.request is None:
            return _error(400, "Malformed admission review request: request body is nil")
        return review.apiVersion, review.request

    async def _judged(self, request: AdmissionRequest) -> Verdict:
        if not request.is_new_pod:
            return Verdict(held=False, reason="not-a-pod")
        try:
            return await self._judge(request)
        except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:
            # Of a shape that no API server sends. Whatever it is, it must not be refused by us.
            _log.warning("cannot read the Pod of an admission request", error=type(error).__name__)
            return Verdict(held=False, reason="pod-unreadable")


def _answer(version: str, request: AdmissionRequest, verdict: Verdict) -> bytes:
    """The AdmissionReview that answers, in the version that was asked."""
    response: dict[str, Any] = {
        "uid": request.uid,
        "allowed": True,
        "auditAnnotations": {"decision": _decision(verdict), "reason": verdict.reason},
    }
    if verdict.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(msgspec.json.encode(verdict.patch)).decode()
    answer = {
        "apiVersion": version if version in VERSIONS else VERSIONS[0],
        "kind": "AdmissionReview",
        "response": response,
    }
    return msgspec.json.encode(answer)


def _decision(verdict: Verdict) -> str:
    if verdict.held:
        return "hold"
    return "reuse" if verdict.reason == "hit" else "run"


def _common_name(request: web.Request) -> str | None:
    """The name on the client's certificate; TLS has checked the certificate itself."""
    certificate = request.get_extra_info("peercert") or {}
    return next((v for rdn in certificate.get("subject", ()) for n, v in rdn if n == "commonName"), None)


def _error(status: int, text: str) -> web.Response:
    headers = {"Allow": "POST"} if status == 405 else None
    return web.Response(status=status, text=text, headers=headers)


def _cause(error: Exception) -> str:
    """What is wrong with the JSON, without a value of it."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(" - at")[0]
