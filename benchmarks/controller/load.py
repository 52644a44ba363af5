"""Creates held Pods at a rate and sees what becomes of them, by a watch of its own."""

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime

import jsonpatch

from cache_server.admission import Policy, admit
from memopod.kube import PODS, TASK_RESULTS, WORKFLOWS, Informer
from tests.real.argo import Step, build_pod

CREATOR = "system:serviceaccount:argo:argo"
VERSION = "4.1.2"


@dataclass
class Times:
    """When a watch of this process told of each: what a controller sees, it sees no sooner."""

    created: float | None = None
    lifted: float | None = None
    succeeded: float | None = None


@dataclass
class Load:
    """Pods of one namespace. `pods`: name -> Times."""

    client: object
    namespace: str
    policy: Policy
    pods: dict = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    _what: str = ""
    _left: int = 0

    @classmethod
    def of(cls, client, namespace, secret):
        policy = Policy(secret=secret, trusted_creators=frozenset({CREATOR}), hold_seconds=120.0)
        return cls(client, namespace, policy)

    def watch(self):
        return Informer(self.client, PODS, namespace=self.namespace, on_event=self._see)

    def _see(self, kind, pod):
        times = self.pods.get(pod["metadata"]["name"])
        if times is None or kind == "DELETED":
            return
        now = time.monotonic()
        if times.created is None:
            times.created = now
        if times.lifted is None and not pod["spec"].get("schedulingGates"):
            times.lifted = now
            self._count("lifted")
        if times.succeeded is None and (pod.get("status") or {}).get("phase") == "Succeeded":
            times.succeeded = now
            self._count("succeeded")

    def _count(self, what):
        if what == self._what:
            self._left -= 1
            if self._left == 0:
                self.done.set()

    async def run(self, bodies, *, rate, until):
        """Create Pods, `rate` a second (None: at once), until all are `lifted` or `succeeded`."""
        self._what, self._left = until, len(bodies)
        self.done.clear()
        begun = time.monotonic()
        slots = asyncio.Semaphore(64)

        async def create(number, body):
            if rate:
                await asyncio.sleep(begun + number / rate - time.monotonic())
            async with slots:
                held = self._held(body)
                self.pods[held["metadata"]["name"]] = Times()
                await self.client.create(PODS, held, namespace=self.namespace)

        async with asyncio.TaskGroup() as group:
            for number, body in enumerate(bodies):
                group.create_task(create(number, body), name=f"create:{number}")
        try:
            await asyncio.wait_for(self.done.wait(), 60)
        except TimeoutError:
            raise AssertionError(f"{self._left} of {len(bodies)} Pods were not {until} in 60 s") from None
        return time.monotonic() - begun

    def _held(self, pod):
        """As the webhook of the cache server answers, without a call of it."""
        verdict = admit(
            pod, namespace=self.namespace, username=CREATOR, now=datetime.now(UTC), controller_alive=True,
            policy=self.policy,
        )  # fmt: skip
        if not verdict.held:
            raise AssertionError(f"expected a Pod that is held, got {verdict.reason}")
        return jsonpatch.apply_patch(pod, verdict.patch)

    async def bodies(self, count, messages):
        """So many Pods of one new workflow; `messages` may repeat."""
        body = {
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
            "metadata": {"generateName": "bench-", "namespace": self.namespace}, "spec": {},
        }  # fmt: skip
        workflow = await self.client.create(WORKFLOWS, body, namespace=self.namespace)
        return [self._body(workflow, number, messages[number % len(messages)]) for number in range(count)]

    def _body(self, workflow, number, message):
        step = Step(message=message)
        pod, node = build_pod(VERSION, step, workflow, [step])
        own = f"{workflow['metadata']['name']}-{number}"
        text = json.dumps(pod).replace(node, own).replace(pod["metadata"]["name"], own)
        return json.loads(text)

    async def clear(self):
        """Delete all that this load made, as Argo does in time."""
        self.pods.clear()
        for resource in (PODS, TASK_RESULTS):
            options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
            await self.client._call("DELETE", resource.path(self.namespace), body=options, timeout=60)  # noqa: SLF001


def unique(count):
    """Messages that nobody ran before."""
    return [f"m-{uuid.uuid4().hex}" for _ in range(count)]
