"""The admission webhook: HTTPS in, AdmissionReview out. No database, no waiting, and never a refusal.

The order of checks and the texts of its errors are those of Kubeflow's cache server, so that whoever
monitors one can monitor the other.
"""

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from aiohttp import web
from prometheus_client import Counter, Histogram

from cache_server.admission import Policy, Verdict, admit

_log = structlog.get_logger()
_DECISIONS = Counter("memopod_admissions_total", "Pods seen at admission.", ["held", "reason"])
_SECONDS = Histogram(
    "memopod_admission_seconds", "Time to answer an admission request.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)  # fmt: skip
_BODY_LIMIT = 8 * 1024 * 1024
"""Bytes. An object in Kubernetes is at most 3 MiB, and a review holds it up to twice."""
_VERSIONS = ("admission.k8s.io/v1", "admission.k8s.io/v1beta1")

decode_template: Callable[[str], Any] = msgspec.json.decode
"""Decodes a template's text; raises msgspec.DecodeError, a ValueError."""


def build_webhook(policy: Policy, controller_alive: Callable[[], bool]) -> web.Application:
    """The application that answers POST /mutate."""
    webhook = _Webhook(policy, controller_alive)
    app = web.Application(client_max_size=_BODY_LIMIT)
    app.router.add_route("*", "/mutate", webhook.mutate)
    return app


class _Webhook:
    def __init__(self, policy: Policy, controller_alive: Callable[[], bool]) -> None:
        self._policy = policy
        self._controller_alive = controller_alive

    async def mutate(self, request: web.Request) -> web.Response:
        with _SECONDS.time():
            if request.method != "POST":
                return web.Response(status=405, text=f"Invalid method {request.method}. Expected POST.\n")
            if request.headers.get("Content-Type") != "application/json":
                return _bad(f"Unsupported content type {request.headers.get('Content-Type', '')!r}, "
                            "only \"application/json\" is supported")  # fmt: skip
            body = await request.read()
            try:
                review = msgspec.json.decode(body)
            except (msgspec.DecodeError, RecursionError):
                return _bad("Could not deserialize request")
            if not isinstance(review, dict) or not isinstance(review.get("request"), dict):
                return _bad("Malformed admission review request: request body is nil")
            return web.Response(
                body=msgspec.json.encode(self._answer(review)), content_type="application/json"
            )

    def _answer(self, review: dict[str, Any]) -> dict[str, Any]:
        """The AdmissionReview that answers, in the version that was asked."""
        verdict = self._judge(review["request"])
        _DECISIONS.labels(str(verdict.held).lower(), verdict.reason).inc()
        response: dict[str, Any] = {
            "uid": review["request"].get("uid", ""),
            "allowed": True,
            "auditAnnotations": {
                "decision": "hold" if verdict.held else "run",
                "reason": verdict.reason,
            },
        }
        if verdict.patch:
            response["patchType"] = "JSONPatch"
            response["patch"] = base64.b64encode(msgspec.json.encode(verdict.patch)).decode()
        version = review.get("apiVersion")
        return {
            "apiVersion": version if version in _VERSIONS else _VERSIONS[0],
            "kind": "AdmissionReview",
            "response": response,
        }

    def _judge(self, request: dict[str, Any]) -> Verdict:
        resource = request.get("resource") or {}
        if (resource.get("group", ""), resource.get("version"), resource.get("resource")) != (
            "",
            "v1",
            "pods",
        ) or request.get("operation", "CREATE") != "CREATE":
            return Verdict(held=False, reason="not-a-pod")
        pod = request.get("object")
        try:
            pod = _checked(pod)
            return admit(
                pod,
                namespace=str(request.get("namespace") or ""),
                username=str((request.get("userInfo") or {}).get("username") or ""),
                now=datetime.now(UTC),
                controller_alive=self._controller_alive(),
                policy=self._policy,
                decode=decode_template,
            )
        except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:
            # Of a shape that no API server sends. Whatever it is, it must not be refused by us.
            _log.warning("cannot read the Pod of an admission request", error=type(error).__name__)
            return Verdict(held=False, reason="pod-unreadable")


def _checked(pod: Any) -> dict[str, Any]:
    if not isinstance(pod, dict) or not isinstance(pod.get("metadata"), dict):
        raise ValueError("expected a Pod with metadata")  # noqa: TRY004 (bad input, not a bug)
    if not isinstance(pod.get("spec"), dict) or not isinstance(pod["spec"].get("containers"), list):
        raise ValueError("expected a Pod with containers")  # noqa: TRY004
    return pod


def _bad(text: str) -> web.Response:
    return web.Response(status=400, text=text + "\n")
