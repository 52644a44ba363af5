"""Plays the controllers and the kubelet for an installation: its Deployments' Pods are processes here.

For each Deployment there is one Pod, made of the template, and one process with the container's arguments
and environment; only addresses, databases and credentials are this machine's. Statuses tell what is true of
the process, as a kubelet's would; the endpoints of a Service are where it listens.
"""

import asyncio
import contextlib
import copy
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from memopod.cli.installed import DEPLOYMENTS, NAME, PART_OF, SERVICES
from memopod.kube import CONFIG_MAPS, PODS, SERVICE_ACCOUNTS, NotFound
from memopod.kube.resources import Resource
from memopod.sandbox import guard
from memopod.sandbox.ports import free_ports
from tests.conftest import unavailable
from tests.deploy import environment
from tests.real.cluster import kubeconfig, until

ENDPOINTS = Resource("", "v1", "endpoints", "Endpoints")
SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
LAST_BYTES = 2048
"""What FallbackToLogsOnError keeps of a log."""
PREFIX = {
    "cache-server": "MEMOPOD_CACHE", "janitor": "MEMOPOD_JANITOR", "metadata-writer": "MEMOPOD_WRITER",
    "metadata-store": "MEMOPOD_METADATA_STORE", "metadata-envoy": "MEMOPOD_ENVOY",
}  # fmt: skip
PORTS = {
    "webhook-api": "LISTEN_PORT", "entries-api": "API_PORT", "health": "HEALTH_PORT", "grpc-api": "GRPC_PORT",
    "md-envoy": "LISTEN_PORT", "status": "STATUS_PORT",
}  # fmt: skip


def own_address():
    """An address of this machine that is not its loopback: endpoints may not be that."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        address = probe.getsockname()[0]
        if not address.startswith("127."):
            return address
    return unavailable("this machine has no network interface; `make control-plane` builds it, not that")


@dataclass
class Node:
    """`secrets` stands for the Secrets that the guides tell to create."""

    plane: object
    admin: object
    folder: object
    namespace: str = "memopod"
    extra: dict = field(default_factory=dict)
    processes: dict = field(default_factory=dict)
    ports: dict = field(default_factory=dict)
    starts: int = 0

    def __post_init__(self):
        self.address = own_address()

    async def deployments(self):
        chosen = {"namespace": self.namespace, "label_selector": PART_OF}
        listed = (await self.admin.list(DEPLOYMENTS, **chosen))["items"]
        return {d["metadata"]["labels"][NAME]: d for d in listed}

    async def start(self, *names, env=None):
        """Start the processes of these components (default: all) as their Deployments say."""
        deployments = await self.deployments()
        maps = (await self.admin.list(CONFIG_MAPS, namespace=self.namespace))["items"]
        documents = [{**item, "kind": "ConfigMap"} for item in maps]
        for name in names or deployments:
            await self._start(name, deployments[name], documents, env or {})
        await self.publish()

    async def _start(self, name, deployment, documents, env):
        await self._pod(name, deployment)
        template = deployment["spec"]["template"]["spec"]
        (container,) = template["containers"]
        if name not in self.ports:
            named = [port["name"] for port in container["ports"]]
            self.ports[name] = dict(zip(named, free_ports(len(named)), strict=True))
        arguments, variables = environment.started_with(container, self.namespace, documents)
        prefix = PREFIX[name]
        variables |= {f"{prefix}_{PORTS[port]}": str(n) for port, n in self.ports[name].items()}
        variables |= {f"{prefix}_{key}": value for key, value in await self._place(name, template)}
        log = self.folder / f"{name}-{self.starts}.log"
        self.starts += 1
        command = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid())]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: ASYNC220 (quick)
                [*command, sys.executable, "-m", "memopod.cli", *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, **variables, **self.extra, **env},
            )  # fmt: skip
        self.processes[name] = process, log

    async def _place(self, name, template):
        """What differs on this machine: addresses and credentials."""
        store = f"127.0.0.1:{self.ports.get('metadata-store', {}).get('grpc-api', 1)}"
        if name == "metadata-store":
            return [("LISTEN_ADDRESS", "127.0.0.1"), ("WORKERS", "2")]
        if name == "metadata-envoy":
            return [("LISTEN_ADDRESS", "127.0.0.1"), ("STORE", store)]
        body = {
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": None, "expirationSeconds": 3600},
        }  # fmt: skip
        answer = await self.admin.create(
            SERVICE_ACCOUNTS, body, namespace=self.namespace, name=template["serviceAccountName"],
            subresource="token",
        )  # fmt: skip
        path = self.folder / f"{name}.kubeconfig"
        url = f"https://127.0.0.1:{self.plane.port}"
        path.write_text(kubeconfig(self.plane.folder, url, answer["status"]["token"]))
        place = [("KUBECONFIG", str(path)), ("HEALTH_HOST", self.address)]
        if name == "metadata-writer":
            place.append(("STORE", store))
        return [*place, ("LISTEN_HOST", self.address)] if name == "cache-server" else place

    async def _pod(self, name, deployment):
        """The Pod of a Deployment, anew."""
        with contextlib.suppress(NotFound):
            await self.admin.delete(PODS, f"{name}-0", namespace=self.namespace, grace_seconds=0)
        pod = copy.deepcopy(deployment["spec"]["template"])
        pod["metadata"] = {"name": f"{name}-0", "labels": pod["metadata"]["labels"]}
        body = {"apiVersion": "v1", "kind": "Pod", **pod}
        await self.admin.create(PODS, body, namespace=self.namespace)

    def pid(self, name):
        process = self.processes[name][0]
        (program,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(program)

    def signal(self, name, number):
        os.kill(self.pid(name), number)

    async def stop(self, *names):
        """End processes in order, as a kubelet does."""
        for name in names or list(self.processes):
            process, _ = self.processes[name]
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(process.wait, 60)

    def kill(self):
        for process, _ in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGHUP)
            process.wait(30)

    async def ready(self, name):
        process, _ = self.processes[name]
        if process.poll() is not None:
            return False
        host = self.address if name in ("cache-server", "janitor", "metadata-writer") else "127.0.0.1"
        port = self.ports[name].get("health") or self.ports[name]["status"]
        url = f"http://{host}:{port}/{'readyz' if name != 'metadata-envoy' else 'ready'}"
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            limit = aiohttp.ClientTimeout(total=2)
            async with aiohttp.ClientSession(timeout=limit) as session, session.get(url) as answer:
                return answer.status == 200
        return False

    async def all_ready(self, *names):
        for name in names or self.processes:
            log = self.processes[name][1]
            await until(lambda n=name: self.ready(n), f"{name} is ready: {log}")
        await self.publish()

    async def publish(self):
        """Write the statuses of Pods and Deployments, and the endpoints of Services."""
        for name, deployment in (await self.deployments()).items():
            if name not in self.processes:
                continue
            ready = await self.ready(name)
            status = {"status": {"replicas": 1, "readyReplicas": int(ready)}}
            await self.admin.patch(
                DEPLOYMENTS, deployment["metadata"]["name"], status, namespace=self.namespace,
                subresource="status",
            )  # fmt: skip
            await self._publish_pod(name, ready)
        for service in (await self.admin.list(SERVICES, namespace=self.namespace))["items"]:
            name = (service["spec"].get("selector") or {}).get(NAME)
            if name in self.ports:
                await self.endpoints(service, self.ports[name])

    async def _publish_pod(self, name, ready):
        process, log = self.processes[name]
        state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        if process.poll() is not None:
            last = log.read_bytes()[-LAST_BYTES:].decode(errors="replace")
            state = {"terminated": {"exitCode": process.returncode, "reason": "Error", "message": last}}
        container = {
            "name": "main", "image": "memopod", "imageID": "", "restartCount": 0, "ready": ready,
            "state": state,
        }  # fmt: skip
        status = {
            "status": {
                "phase": "Running", "podIP": self.address, "podIPs": [{"ip": self.address}],
                "containerStatuses": [container],
            }
        }  # fmt: skip
        await self.admin.patch(PODS, f"{name}-0", status, namespace=self.namespace, subresource="status")

    async def endpoints(self, service, ports):
        """Where the ports of a Service are; `ports` may be changed to be elsewhere."""
        name = service["metadata"]["name"]
        wanted = [port["name"] for port in service["spec"]["ports"] if port["name"] in ports]
        listed = [{"name": port, "port": ports[port], "protocol": "TCP"} for port in wanted]
        pod = {"kind": "Pod", "name": f"{service['spec']['selector'][NAME]}-0", "namespace": self.namespace}
        subset = {"addresses": [{"ip": self.address, "targetRef": pod}], "ports": listed}
        bodies = {
            ENDPOINTS: {"subsets": [subset]},
            SLICES: {
                "addressType": "IPv4", "ports": listed,
                "endpoints": [{"addresses": [self.address], "conditions": {"ready": True}}],
            },
        }  # fmt: skip
        for resource, body in bodies.items():
            labels = {"kubernetes.io/service-name": name} if resource is SLICES else {}
            whole = {
                "apiVersion": resource.api_version, "kind": resource.kind,
                "metadata": {"name": name, "namespace": self.namespace, "labels": labels}, **body,
            }  # fmt: skip
            try:
                await self.admin.get(resource, name, namespace=self.namespace)
            except NotFound:
                await self.admin.create(resource, whole, namespace=self.namespace)
            else:
                await self.admin.patch(resource, name, whole, namespace=self.namespace)
