"""The checks of `memopod install check`: each asks the cluster one question and says what to do about it.

A check that cannot succeed because an earlier one failed is skipped and names it, so that one fault is one
failure.
"""

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime

from memopod.cli.install_found import FAILED, OK, SKIPPED, UNKNOWN, Check, failed_of
from memopod.cli.install_kubeflow import DATABASE_ADDRESS, database_address
from memopod.cli.install_network import certificate, object_stores
from memopod.cli.install_probe import gates, webhook_answers
from memopod.cli.install_rights import permissions_of
from memopod.cli.installed import DEPLOYMENTS, SERVERS, Installation
from memopod.kube import LEASES, Client, NotFound
from memopod.steps import names

__all__ = ["FAILED", "OK", "SKIPPED", "UNKNOWN", "Check", "examine"]

APPLY = "kubectl apply --server-side -k deploy/overlays/... again"
_LEAST = (1, 27)
_SKEW = 10.0
"""Seconds: a seal holds within 60 s of a Pod's creation, and a Pod is held for 30 s."""
_RENEWALS = 2.5
"""Seconds in which a live leader renews its Lease twice."""
_SCHEMA = re.compile(
    r"MLMD database version|older than library version|written by another version", re.IGNORECASE
)
_STOPPED_BY = {
    "leader": ("cache-server",),
    DATABASE_ADDRESS: ("cache-server", "metadata-store", "metadata-writer"),
}
"""Components that are not ready because of what a check found."""
_CONTROLLERS = ("workflow-controller",)


async def examine(client: Client, path: str | None, namespace: str, pipelines: str | None) -> list[Check]:
    """All checks, in the order in which they are read. Raises ApiError where nothing can be asked."""
    checks = [await version(client)]
    found = await Installation.read(client, namespace)
    checks.append(installed(found))
    if "cache-server" not in found.deployments:
        return checks
    served = found.setting("cache-server", "MEMOPOD_CACHE_WATCH_NAMESPACE")
    place = pipelines or served or "default"
    led = await leader(client, found)
    checks += [*await database_address(client, found), *schemas(found)]
    explained = failed_of([*checks, *led], DATABASE_ADDRESS, "leader")
    checks += [runs(found, name, explained) for name in SERVERS]
    checks.append(await permissions_of(client, found, served))
    controllers = await controllers_of(client)
    trusted = trusted_creators(found)
    checks += [await argo(client, controllers), creators(controllers, trusted), *led]
    checks += [configured(found, place), await certificate(client, found, checks)]
    as_whom = next((c for c in map(account_of, controllers) if c in trusted), trusted[0] if trusted else "")
    checks.append(await gates(path, as_whom, place, checks))
    checks.append(await webhook_answers(path, as_whom, place, checks))
    checks.append(await object_stores(client, found))
    return checks


async def version(client: Client) -> Check:
    """Whether Kubernetes knows scheduling gates by default."""
    import msgspec

    told = msgspec.json.decode(await client.read("/version"))
    numbers = [int(re.sub(r"\D.*", "", told[part]) or 0) for part in ("major", "minor")]
    text = str(told.get("gitVersion", ""))
    if tuple(numbers) < _LEAST:
        return Check(
            "kubernetes", FAILED, f"{text}: scheduling gates need 1.27",
            "upgrade, or set MEMOPOD_CACHE_STRATEGY=placeholder",
        )  # fmt: skip
    return Check("kubernetes", OK, text)


def installed(found: Installation) -> Check:
    """Whether all components are there."""
    missing = [name for name in SERVERS if name not in found.deployments]
    if not missing:
        return Check("manifests", OK, f"all {len(SERVERS)} components in namespace {found.namespace}")
    return Check(
        "manifests", FAILED, f"no {', '.join(missing)} in namespace {found.namespace}",
        f"{APPLY}, or name the right --namespace",
    )  # fmt: skip


def schemas(found: Installation) -> list[Check]:
    """Whether a server ended because its database has another schema."""
    behind = [(name, text) for name in SERVERS for text in last_words(found, name) if _SCHEMA.search(text)]
    if not behind:
        return [Check("database schema", OK, "no server complains")]
    name, text = behind[0]
    advice = (
        "back the database up, then set MEMOPOD_METADATA_STORE_ENABLE_DATABASE_UPGRADE=true and apply again"
        if name == "metadata-store"
        else "use the version of memopod that wrote the database, or another database"
    )
    return [Check("database schema", FAILED, f"{name}: {_short(text)}", advice)]


def runs(found: Installation, name: str, explained: str | None) -> Check:
    """Whether a component has a ready replica, where nothing else, as `explained`, is why it has none."""
    if name not in found.deployments:
        return Check(name, SKIPPED, "see manifests")
    deployment = found.deployments[name]
    ready, wanted = _ready(found, name), deployment["spec"]["replicas"]
    if ready:
        return Check(name, OK, f"{ready} of {wanted} ready")
    if wanted == 0:
        return Check(name, FAILED, "scaled to 0", APPLY)
    words = last_words(found, name)
    if any(_SCHEMA.search(text) for text in words):
        return Check(name, SKIPPED, "see database schema")
    if explained and name in _STOPPED_BY[explained]:
        return Check(name, SKIPPED, f"see {explained}")
    if name == "metadata-writer" and not _ready(found, "metadata-store"):
        return Check(name, SKIPPED, "see metadata-store")
    why = _short(words[0]) if words else "no container tells why"
    advice = f"kubectl -n {found.namespace} logs deploy/{deployment['metadata']['name']}"
    return Check(name, FAILED, f"0 of {wanted} ready: {why}", advice)


def _ready(found: Installation, name: str) -> int:
    return int(found.deployments.get(name, {}).get("status", {}).get("readyReplicas") or 0)


def _runs_at_all(found: Installation, name: str) -> bool:
    return any(
        "running" in status.get("state", {})
        for pod in found.pods_of(name)
        for status in (pod.get("status") or {}).get("containerStatuses") or ()
    )


def last_words(found: Installation, name: str) -> list[str]:
    """Why the containers of a component do not run: the last lines of those that ended, else the reason."""
    words = []
    for pod in found.pods_of(name):
        for status in (pod.get("status") or {}).get("containerStatuses") or ():
            ended = [status.get(when, {}).get("terminated") or {} for when in ("state", "lastState")]
            words += [str(e["message"]) for e in ended if e.get("message")]
            waiting = (status.get("state") or {}).get("waiting") or {}
            words += [str(waiting["reason"])] if waiting.get("reason") else []
    return words


def _short(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:240] if lines else ""


def trusted_creators(found: Installation) -> list[str]:
    """The users whose Pods are held."""
    default = "system:serviceaccount:argo:argo,system:serviceaccount:kubeflow:argo"
    text = found.setting("cache-server", "MEMOPOD_CACHE_TRUSTED_CREATORS", default)
    return [part.strip() for part in text.split(",") if part.strip()]


async def controllers_of(client: Client) -> list[dict[str, object]]:
    """The Deployments of Argo's workflow controllers, whatever namespace they are in."""
    listed = (await client.list(DEPLOYMENTS))["items"]
    return [d for d in listed if d["metadata"]["name"].endswith(_CONTROLLERS)]


def account_of(controller: dict[str, object]) -> str:
    """The user as whom a controller creates Pods."""
    spec = controller["spec"]["template"]["spec"]  # type: ignore[index]
    namespace = controller["metadata"]["namespace"]  # type: ignore[index]
    return f"system:serviceaccount:{namespace}:{spec.get('serviceAccountName') or 'default'}"


def creators(controllers: Sequence[dict[str, object]], trusted: Sequence[str]) -> Check:
    """Whether the Pods of all workflow controllers are held."""
    accounts = sorted({account_of(controller) for controller in controllers})
    strangers = [account for account in accounts if account not in trusted]
    if strangers:
        return Check(
            "trusted creators", FAILED, f"{', '.join(strangers)} creates Pods, and is not trusted",
            f"set MEMOPOD_CACHE_TRUSTED_CREATORS={','.join([*trusted, *strangers])} and apply again",
        )  # fmt: skip
    if not accounts:
        return Check(
            "trusted creators", UNKNOWN, f"no workflow controller found; {', '.join(trusted)} trusted"
        )
    return Check("trusted creators", OK, ", ".join(accounts))


async def argo(client: Client, controllers: Sequence[dict[str, object]]) -> Check:
    """Whether Argo is of a version whose layout memopod reads."""
    try:
        text = (await client.read("/apis/argoproj.io/v1alpha1")).decode()
    except NotFound:
        text = ""
    missing = [kind for kind in ("workflows", "workflowtaskresults") if f'"{kind}"' not in text]
    if missing:
        return Check(
            "argo", FAILED, f"the API server does not serve {', '.join(missing)}",
            "install Argo Workflows 3.4 or later, with its CustomResourceDefinitions",
        )  # fmt: skip
    images = {
        container["image"]
        for controller in controllers
        for container in controller["spec"]["template"]["spec"]["containers"]  # type: ignore[index]
    }
    for image in images:
        tag = re.search(r":v?(\d+)\.(\d+)", image)
        if tag and (int(tag[1]), int(tag[2])) < (3, 4):
            return Check("argo", FAILED, f"{image}: memopod reads 3.4 and later", "upgrade Argo Workflows")
    return Check("argo", OK, ", ".join(sorted(images)) or "its kinds are served")


async def leader(client: Client, found: Installation) -> tuple[Check, Check]:
    """Whether a leader renews its Lease, and whether its clock is the API server's."""
    if not _ready(found, "cache-server") and not _runs_at_all(found, "cache-server"):
        return Check("leader", SKIPPED, "see cache-server"), Check("clock", SKIPPED, "see cache-server")
    name = found.setting("cache-server", "MEMOPOD_CACHE_LEASE_NAME", "memopod-cache-controller")
    place = found.setting("cache-server", "MEMOPOD_CACHE_LEASE_NAMESPACE", found.namespace)
    seen = []
    for pause in (0.0, _RENEWALS):
        await asyncio.sleep(pause)
        try:
            seen.append(await client.get(LEASES, name, namespace=place))
        except NotFound:
            seen.append({"spec": {}, "metadata": {}})
    before, after = (lease["spec"].get("renewTime") for lease in seen)
    holder = seen[1]["spec"].get("holderIdentity")
    if not holder or before == after:
        what = f"{holder} does not renew it" if holder else "nobody holds it"
        return (
            Check(
                "leader", FAILED, f"Lease {place}/{name}: {what}; no Pod is held without a leader",
                f"kubectl -n {found.namespace} rollout restart deploy/cache-server; its log says more",
            ),
            Check("clock", SKIPPED, "see leader"),
        )  # fmt: skip
    return Check("leader", OK, str(holder)), clock(seen[1])


def clock(lease: dict[str, object]) -> Check:
    """The leader wrote `renewTime` by its clock, and the API server, by its own, when it took that."""
    fields = lease["metadata"].get("managedFields") or ()  # type: ignore[attr-defined]
    times = [_seconds(entry["time"]) for entry in fields if entry.get("time")]
    if not times:
        return Check("clock", UNKNOWN, "the API server does not tell when the Lease was written")
    skew = _seconds(lease["spec"]["renewTime"]) - max(times)  # type: ignore[index]
    # The API server tells whole seconds.
    if abs(skew) > _SKEW:
        return Check(
            "clock", FAILED, f"the leader's clock is {skew:+.0f} s from the API server's",
            "set the nodes' clocks (NTP, chrony): seals and hold-until are times",
        )  # fmt: skip
    return Check("clock", OK, "the leader's is the API server's, to a second or two")


def _seconds(text: object) -> float:
    return datetime.fromisoformat(str(text)).timestamp()


def configured(found: Installation, place: str) -> Check:
    """Whether the API server is told to ask about both labels, and never to refuse."""
    if not found.webhooks:
        return Check(
            "webhook", FAILED, f"no configuration calls Service cache-server of {found.namespace}", APPLY
        )
    if len(found.webhooks) > 1:
        listed = ", ".join(hook["metadata"]["name"] for hook in found.webhooks)
        return Check(
            "webhook", FAILED, f"several configurations call the cache server: {listed}",
            "delete all but memopod's (its label is app.kubernetes.io/part-of=memopod)",
        )  # fmt: skip
    hooks = found.webhooks[0]["webhooks"]
    labels = {label for hook in hooks for label in (hook.get("objectSelector", {}).get("matchLabels") or {})}
    missing = {names.OPT_IN_LABEL, names.KFP_OPT_IN_LABEL} - labels
    if missing:
        return Check("webhook", FAILED, f"nobody asks about Pods with {', '.join(sorted(missing))}", APPLY)
    if any(hook.get("failurePolicy") != "Ignore" for hook in hooks):
        return Check("webhook", FAILED, "failurePolicy is not Ignore: a fault would refuse Pods", APPLY)
    for hook in hooks:
        for rule in hook.get("namespaceSelector", {}).get("matchExpressions") or ():
            if rule["key"] == "kubernetes.io/metadata.name" and (
                (place in rule.get("values", ())) == (rule["operator"] == "NotIn")
            ):
                return Check(
                    "webhook", FAILED, f"its namespaceSelector leaves {place} out",
                    f"change {found.webhooks[0]['metadata']['name']}, or name another --pipelines",
                )  # fmt: skip
    return Check("webhook", OK, str(found.webhooks[0]["metadata"]["name"]))
