"""A service of ours as a process, called by the sandbox's API server."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys

import aiohttp

from memopod.kube import MUTATING_WEBHOOKS
from memopod.steps import names


class Process:
    """A service of ours, as a process; `ports` are those it says it serves on."""

    def __init__(self, process):
        self.process = process
        self.ports = {}
        self.lines = []

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, *arguments, **environ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, stderr=asyncio.subprocess.PIPE, limit=1 << 20,
            env={**os.environ, **environ},
        )  # fmt: skip
        service = cls(process)
        try:
            await asyncio.wait_for(service._serving(), 30)
            reader = asyncio.create_task(service._read(), name="logs")
            yield service
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        await asyncio.wait_for(reader, 10)

    async def _serving(self):
        while True:
            line = await self.process.stderr.readline()
            assert line, self.lines
            self.lines.append(line.decode())
            event = json.loads(line)
            if event["event"] == "serving":
                self.ports = event
                return

    async def _read(self):
        while line := await self.process.stderr.readline():
            self.lines.append(line.decode())

    async def ready(self):
        async with aiohttp.ClientSession() as session:

            async def is_ready():
                url = f"http://127.0.0.1:{self.ports['health_port']}/readyz"
                async with session.get(url) as answer:
                    return answer.status == 200

            await until(is_ready, 15)

    async def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 20)


async def until(condition, seconds):
    async with asyncio.timeout(seconds):
        while not (value := await condition()):  # noqa: ASYNC110 (polls another process)
            await asyncio.sleep(0.05)
    return value


async def register(cluster, port):
    ca = (cluster.state / "cluster" / "tls" / "ca.crt").read_bytes()
    webhook = {
        "name": "cache.memopod.io", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "failurePolicy": "Ignore", "timeoutSeconds": 5,
        "clientConfig": {
            "url": f"https://127.0.0.1:{port}/mutate", "caBundle": base64.b64encode(ca).decode(),
        },
        "objectSelector": {"matchLabels": {names.KFP_OPT_IN_LABEL: "true"}},
        "rules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
        ],
    }  # fmt: skip
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "memopod"}, "webhooks": [webhook],
    }  # fmt: skip
    await cluster.client.create(MUTATING_WEBHOOKS, configuration)


async def decided(cluster, pod):
    async def is_decided():
        found = await cluster.get(pod)
        return found if names.DECISION in found["metadata"]["annotations"] else None

    return await until(is_decided, 15)
