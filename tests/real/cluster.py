"""One test's part of the control plane: namespaces, accounts, services and the webhook of its own."""

import asyncio
import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import aiohttp
import yaml

from memopod.kube import MUTATING_WEBHOOKS, PODS, SERVICE_ACCOUNTS, TASK_RESULTS, Client, NotFound
from memopod.sandbox import guard
from memopod.sandbox.certificates import prepare_state
from memopod.sandbox.control_plane import add_namespace, apply, permissions
from memopod.sandbox.ports import free_ports
from memopod.sandbox.services import webhook_configuration

LIMIT = 30
"""Seconds for anything that a test waits for."""
LEASE = "memopod-cache-controller"
TOKEN_SECONDS = 3600


async def until(condition, what, limit=LIMIT):
    """The first true answer of `condition`, which may be async."""
    deadline = asyncio.get_running_loop().time() + limit
    while True:
        answer = condition()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return answer
        assert asyncio.get_running_loop().time() < deadline, f"waited {limit} s, and still not: {what}"
        await asyncio.sleep(0.03)


@dataclass
class Service:
    """A process of memopod, below the guard, its log in a file."""

    name: str
    process: subprocess.Popen
    port: int | None
    health_port: int
    log: Path

    @property
    def pid(self):
        """The program's own process id: the guard's only child."""
        (program,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(program)

    def signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        """End it at once, as a machine that fails does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)
        self.process.wait(LIMIT)

    async def stop(self):
        """End it in order; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, LIMIT)

    async def ask(self, path):
        """Status and text of its health server."""
        url = f"http://127.0.0.1:{self.health_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()

    async def ready(self):
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(aiohttp.ClientError):
            return (await self.ask("/readyz"))[0] == 200
        return False

    async def metric(self, name, **labels):
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        for line in (await self.ask("/metrics"))[1].splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(f'{k}="{v}"' in head for k, v in labels.items()):
                total += float(value)
        return total

    def lines(self, event=None):
        """Its log, decoded; only the lines of one event if given."""
        found = []
        for text in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(text))
        return [line for line in found if event is None or line.get("event") == event]


@dataclass
class Cluster:
    """Made by `Cluster.make`; `admin` is a client that may do everything."""

    plane: Path
    port: int
    admin: Client
    folder: Path
    name: str
    services: list = field(default_factory=list)
    _clients: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _kubeconfigs: dict = field(default_factory=dict)
    _numbers: count = field(default_factory=count)

    @property
    def system(self):
        """The namespace in which memopod is installed."""
        return f"memopod-{self.name}"

    @property
    def pipelines(self):
        """The namespace in which workflows run."""
        return f"pipelines-{self.name}"

    @classmethod
    async def make(cls, plane, port, admin, folder, change=lambda documents: documents):
        """New namespaces, and the accounts and permissions of deploy/, which `change` may alter first."""
        cluster = cls(plane, port, admin, folder, secrets.token_hex(4))
        await add_namespace(admin, cluster.pipelines)
        await cluster.permit(change)
        argo = {
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "argo", "namespace": "argo"},
        }  # fmt: skip
        await apply(admin, [argo])
        (folder / "seal.key").write_bytes(secrets.token_bytes(32))
        return cluster

    async def permit(self, change=lambda documents: documents):
        """Install deploy/base/rbac.yaml under this cluster's own names."""
        await apply(self.admin, installed_as(change(permissions()), self.system, self.name))

    async def close(self):
        for service in self.services:
            service.kill()
        with contextlib.suppress(NotFound):
            await self.admin.delete(MUTATING_WEBHOOKS, f"memopod-{self.name}")
        await self._clients.aclose()

    async def kubeconfig(self, account, namespace=None, server=None):
        """A kubeconfig with a new token of a service account: `cache-server`, `janitor`, ..."""
        namespace = namespace or self.system
        key = namespace, account, server
        if key not in self._kubeconfigs:
            request = {
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                "spec": {"audiences": None, "expirationSeconds": TOKEN_SECONDS},
            }  # fmt: skip
            answer = await self.admin.create(
                SERVICE_ACCOUNTS, request, namespace=namespace, name=account, subresource="token"
            )
            path = self.folder / f"{namespace}-{account}-{next(self._numbers)}.kubeconfig"
            path.write_text(kubeconfig(self.plane, server or self.url, answer["status"]["token"]))
            self._kubeconfigs[key] = path
        return self._kubeconfigs[key]

    @property
    def url(self):
        return f"https://127.0.0.1:{self.port}"

    async def client(self, account, namespace=None, kind=Client):
        """A client that may do what a service account may; closed with the cluster."""
        path = await self.kubeconfig(account, namespace)
        return await self._clients.enter_async_context(kind.from_kubeconfig(str(path), timeout=30.0))

    # Services.

    async def start(self, module, *flags, account, server=None, port=None, wait=True, env=None):
        """Start `python -m MODULE` under a service account, and wait until it is ready."""
        health_port = free_ports(1)[0]
        path = await self.kubeconfig(account, server=server)
        log = self.folder / f"{account}-{next(self._numbers)}.log"
        command = [
            *(sys.executable, "-I", "-S", guard.__file__, str(os.getpid())),
            *(sys.executable, "-m", module, "--kubeconfig", str(path), "--log-level", "debug"),
            *("--health-host", "127.0.0.1", "--health-port", str(health_port), *map(str, flags)),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: ASYNC220 (quick)
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, **(env or {})},
            )  # fmt: skip
        service = Service(account, process, port, health_port, log)
        self.services.append(service)
        if wait:
            await until(service.ready, f"{account} is ready: {log}")
        return service

    async def cache_server(
        self, *flags, register=True, server=None, wait=True, database=None, certificate=None, env=None
    ):
        """A cache server for this cluster's Pods; `register` makes the API server call its webhook.

        Not ready before a leader's heartbeat was seen. `server` is another address of the API server,
        `certificate` (certificate, key) others than the control plane's.
        """
        port = free_ports(1)[0]
        files = prepare_state(self.plane, self.port).cache_server
        certificate, key = certificate or (files.certificate, files.key)
        if register:
            await self.register_webhook(port)
        return await self.start(
            "cache_server", "--listen-host", "127.0.0.1", "--listen-port", port,
            "--tls-cert-file", certificate, "--tls-key-file", key,
            "--database", database or f"sqlite:///{self.folder / 'cache.db'}",
            "--seal-key-file", self.folder / "seal.key", "--lease-namespace", self.system,
            "--watch-namespace", self.pipelines, *flags,
            account="cache-server", port=port, server=server, wait=wait, env=env,
        )  # fmt: skip

    async def janitor(self, *flags, **options):
        return await self.start(
            "cache_server.janitor", "--watch-namespace", self.pipelines, *flags, account="janitor", **options
        )

    async def register_webhook(self, port):
        """Have the API server call the webhook on this port for Pods of `pipelines`, and no others."""
        bundle = base64.b64encode((self.plane / "tls" / "ca.crt").read_bytes()).decode()
        body = webhook_configuration(port, bundle)
        body["metadata"]["name"] = f"memopod-{self.name}"
        for webhook in body["webhooks"]:
            webhook["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": self.pipelines}}
        await apply(self.admin, [body])

    # What is there.

    async def pods(self):
        return (await self.admin.list(PODS, namespace=self.pipelines))["items"]

    async def pod(self, name):
        return await self.admin.get(PODS, name, namespace=self.pipelines)

    async def result(self, node_id):
        """The WorkflowTaskResult of a node, None if there is none."""
        try:
            return await self.admin.get(TASK_RESULTS, node_id, namespace=self.pipelines)
        except NotFound:
            return None


def installed_as(documents, system, name):
    """The manifests with `memopod` as their namespace, under other names."""
    for document in documents:
        metadata = document["metadata"]
        if document["kind"] == "Namespace":
            metadata["name"] = system
        if "namespace" in metadata:
            metadata["namespace"] = system
        elif document["kind"] != "Namespace":
            metadata["name"] += f"-{name}"
        if document.get("roleRef", {}).get("kind") == "ClusterRole":
            document["roleRef"]["name"] += f"-{name}"
        for subject in document.get("subjects", ()):
            subject["namespace"] = system
    return documents


def kubeconfig(plane, server, token):
    cluster = {"server": server, "certificate-authority": str(plane / "tls" / "ca.crt")}
    return yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    })  # fmt: skip
