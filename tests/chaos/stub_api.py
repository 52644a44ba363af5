"""A stub of the Kubernetes API, as fast as the benchmark needs and as unreliable as a test asks for.

Pods, Workflows and WorkflowTaskResults in memory: lists in pages, watches with bookmarks, gets and merge
patches. It checks nothing. Watches can be cut, versions forgotten (410), events repeated, and neighbours
of different objects swapped.
"""

import asyncio
import random
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

KINDS = {
    "pods": ("v1", "Pod"),
    "workflows": ("argoproj.io/v1alpha1", "Workflow"),
    "workflowtaskresults": ("argoproj.io/v1alpha1", "WorkflowTaskResult"),
}
_BOOKMARK_SECONDS = 1.0


@dataclass
class _Collection:
    """Objects as bytes by (namespace, name), and every change: (version, type, key, bytes)."""

    objects: dict = field(default_factory=dict)
    log: list = field(default_factory=list)
    first: int = 0
    """Position of `log[0]` among all changes that ever were."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Disorder:
    """How often, for each event or second: 0 is never."""

    repeat: float = 0.0
    swap: float = 0.0


class StubApi:
    def __init__(self, *, seed=0, disorder=None):
        self.collections = {kind: _Collection() for kind in KINDS}
        self.version = 1
        self.patches = 0
        self.gets = 0
        self.events = []
        self.disorder = disorder or Disorder()
        self._random = random.Random(seed)
        self._cuts = asyncio.Event()
        self._pages = {}
        self._runner = None
        self.port = 0

    async def start(self):
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self):
        self.cut()
        await self._runner.cleanup()

    def kubeconfig(self, path):
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        user = {"name": "u", "user": {"token": "t"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        config = {
            "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [user],
            "contexts": [context], "current-context": "x",
        }  # fmt: skip
        path.write_bytes(msgspec.json.encode(config))
        return path

    def put(self, kind, body):
        """Create or replace an object."""
        metadata = body["metadata"]
        key = metadata["namespace"], metadata["name"]
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        data = msgspec.json.encode(body)
        collection = self.collections[kind]
        event = "MODIFIED" if key in collection.objects else "ADDED"
        collection.objects[key] = data
        self._tell(collection, event, key, data)

    def get(self, kind, namespace, name):
        data = self.collections[kind].objects.get((namespace, name))
        return None if data is None else msgspec.json.decode(data)

    def delete(self, kind, namespace, name):
        collection = self.collections[kind]
        data = collection.objects.pop((namespace, name), None)
        if data is None:
            return
        body = msgspec.json.decode(data)
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self._tell(collection, "DELETED", (namespace, name), msgspec.json.encode(body))

    def _tell(self, collection, event, key, data):
        collection.log.append((self.version, event, key, data))
        collection.changed.set()
        collection.changed = asyncio.Event()

    def cut(self):
        """End all watches as a broken connection does."""
        self._cuts.set()
        self._cuts = asyncio.Event()

    def forget(self):
        """Keep no change that was: whoever watches from an older version gets 410."""
        for collection in self.collections.values():
            collection.first += len(collection.log)
            collection.log.clear()
        self._pages.clear()
        self.version += 1
        self._oldest = self.version

    def trim(self, keep):
        """Keep no more than the newest changes of each kind: whoever is further behind gets 410."""
        for collection in self.collections.values():
            over = len(collection.log) - keep
            if over > 0:
                self._oldest = max(self._oldest, collection.log[over - 1][0])
                collection.first += over
                del collection.log[:over]

    _oldest = 0

    async def _answer(self, request):
        parts = request.path.strip("/").split("/")
        namespace = name = None
        if "namespaces" in parts:
            at = parts.index("namespaces")
            namespace, kind = parts[at + 1], parts[at + 2]
            name = parts[at + 3] if len(parts) > at + 3 else None
        else:
            kind = parts[-1]
        if kind == "events":
            self.events.append(await request.json())
            return web.json_response(self.events[-1], status=201)
        if kind not in self.collections:
            return _status(404, "NotFound")
        collection = self.collections[kind]
        if request.method == "PATCH":
            return await self._patch(request, kind, namespace, name)
        if name is not None:
            self.gets += 1
            data = collection.objects.get((namespace, name))
            return _status(404, "NotFound") if data is None else _json(data)
        if request.query.get("watch"):
            return await self._watch(request, collection, namespace)
        return self._list(request, kind, collection, namespace)

    async def _patch(self, request, kind, namespace, name):
        self.patches += 1
        body = self.get(kind, namespace, name)
        if body is None:
            return _status(404, "NotFound")
        patch = msgspec.json.decode(await request.read())
        if patch["metadata"].get("uid", body["metadata"]["uid"]) != body["metadata"]["uid"]:
            return _status(409, "Conflict")
        for part in ("labels", "annotations"):
            body["metadata"].setdefault(part, {}).update(patch["metadata"].get(part) or {})
        self.put(kind, body)
        return _json(msgspec.json.encode(body))

    def _list(self, request, kind, collection, namespace):
        limit = int(request.query.get("limit", 0)) or 1 << 60
        token = request.query.get("continue")
        if token:
            if token not in self._pages:
                return _status(410, "Expired")
            version, items = self._pages.pop(token)
        else:
            version = self.version
            items = [d for (ns, _), d in collection.objects.items() if namespace in (None, ns)]
        more = ""
        if len(items) > limit:
            more = f"{version}-{len(items) - limit}-{self._random.random()}"
            self._pages[more] = version, items[limit:]
        metadata = msgspec.json.encode({"resourceVersion": str(version), "continue": more})
        api_version, name = KINDS[kind]
        head = f'{{"kind":"{name}List","apiVersion":"{api_version}","metadata":'.encode()
        return _json(head + metadata + b',"items":[' + b",".join(items[:limit]) + b"]}")

    async def _watch(self, request, collection, namespace):
        try:
            return await self._stream(request, collection, namespace)
        except ConnectionError:  # the writer was killed, or the connection cut
            return web.Response()

    async def _stream(self, request, collection, namespace):
        version = int(request.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if version < self._oldest:
            error = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}
            await response.write(msgspec.json.encode(error) + b"\n")
            return response
        cut = self._cuts
        end = asyncio.get_running_loop().time() + float(request.query.get("timeoutSeconds", 60))
        position = collection.first + _after(collection.log, version)
        while not cut.is_set() and asyncio.get_running_loop().time() < end:
            if position < collection.first:  # forgotten before it was sent
                break
            changed = collection.changed
            news = collection.log[position - collection.first :][:200]
            if news:
                position += len(news)
                await response.write(b"".join(self._lines(news, namespace)))
                continue
            waits = [asyncio.create_task(e.wait()) for e in (changed, cut)]
            done, _ = await asyncio.wait(
                waits, timeout=_BOOKMARK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            for task in waits:
                task.cancel()
            if not done:
                bookmark = {
                    "type": "BOOKMARK",
                    "object": {"metadata": {"resourceVersion": str(self.version)}},
                }
                if not collection.log[position - collection.first :]:
                    await response.write(msgspec.json.encode(bookmark) + b"\n")
        if cut.is_set() and request.transport is not None:
            request.transport.abort()
        return response

    def _lines(self, news, namespace):
        news = [item for item in news if namespace in (None, item[2][0])]
        if self.disorder.swap:
            for n in range(len(news) - 1):
                if news[n][2] != news[n + 1][2] and self._random.random() < self.disorder.swap:
                    news[n], news[n + 1] = news[n + 1], news[n]
        for _, event, _, data in news:
            line = b'{"type":"' + event.encode() + b'","object":' + data + b"}\n"
            yield line
            if self.disorder.repeat and self._random.random() < self.disorder.repeat:
                yield line


def _after(log, version):
    low, high = 0, len(log)
    while low < high:
        middle = (low + high) // 2
        if log[middle][0] <= version:
            low = middle + 1
        else:
            high = middle
    return low


def _json(data):
    return web.Response(body=data, content_type="application/json")


def _status(code, reason):
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}
    return web.json_response(body, status=code)
