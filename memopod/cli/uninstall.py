"""`memopod uninstall`: take memopod off a cluster so that no Pod stays held."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cache_server.finish import is_held
from memopod.cli.cluster_options import KubeconfigOption
from memopod.cli.ending import fail
from memopod.cli.installed import (
    CLAIMS,
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    IN_ORDER,
    OTHERS,
    PART_OF,
    ROLE_BINDINGS,
    webhooks_of,
)
from memopod.cli.release import let_go_all
from memopod.kube import (
    LEASES,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    PODS,
    SECRETS,
    ApiError,
    Client,
    ConfigurationError,
    NotFound,
)
from memopod.kube.resources import Resource

OWN_LEASES = ("memopod-cache-controller", "memopod-metadata-writer")
OWN_SECRET = "memopod-cache-certificates"  # noqa: S105 (a name)
_FOLLOWS = 3.0
"""Seconds after which every API server has stopped calling a webhook whose configuration is gone."""
_ROUNDS = 5

Found = tuple[Resource, str]


def uninstall(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Where memopod is installed.")
    ] = "memopod",
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only tell what would go.")] = False,
    data: Annotated[
        bool, typer.Option("--data", help="Volumes and certificates go too, and the namespace memopod.")
    ] = False,
    kubeconfig: KubeconfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON: what went, or would go.")] = False,
) -> None:
    """Take memopod off the cluster: the webhook first, then held Pods are let go, then the rest.

    It can be stopped at any time and run again. Databases, volumes and the Secrets that you made stay.

    Examples:  memopod uninstall (tells what would go)

    memopod uninstall --namespace kubeflow --yes
    """
    console = Console(stderr=True, quiet=as_json)
    try:
        done, stuck = asyncio.run(_uninstall(kubeconfig, namespace, yes=yes, data=data, console=console))
    except ConfigurationError as error:
        fail(f"{error}; give --kubeconfig FILE")
    except ApiError as error:
        fail(f"{error}; run it again to go on")
    if as_json:
        typer.echo(json.dumps({"removed": yes, "objects": done, "held": stuck}, indent=2))
    else:
        _show(done, stuck, removed=yes, data=data)
    if stuck and yes:
        raise typer.Exit(1)


async def _uninstall(
    kubeconfig: Path | None, namespace: str, *, yes: bool, data: bool, console: Console
) -> tuple[list[dict[str, str]], list[str]]:
    """What went (or would go), in order, and which Pods are still held at the end."""
    path = str(kubeconfig) if kubeconfig else None
    async with Client.from_kubeconfig(path, user_agent="memopod-uninstall") as client:
        done = []
        hooks = [
            (MUTATING_WEBHOOKS, hook["metadata"]["name"]) for hook in await webhooks_of(client, namespace)
        ]
        done += [_line(resource, "", name) for resource, name in hooks]
        for resource, name in hooks if yes else ():
            await _delete(client, resource, name, None)
        if hooks and yes:
            console.print(f"webhook removed; waiting {_FOLLOWS:g} s until no API server calls it any more")
            await asyncio.sleep(_FOLLOWS)
        stuck = await (_let_go if yes else _held)(client, console)
        if stuck and yes:
            # The janitor and the servers stay: they are what can still let these go.
            return done, stuck
        async for resource, name in _rest(client, namespace, data=data):
            done.append(_line(resource, namespace, name))
            if yes:
                await _delete(client, resource, name, namespace)
        # An API server that took longer to hear of the webhook's end may have had a Pod held meanwhile.
        return done, await (_let_go if yes else _held)(client, console)


async def _let_go(client: Client, console: Console) -> list[str]:
    """Let all held Pods go; those that are held all the same."""
    for round_ in range(_ROUNDS):
        held = [pod for pod in (await client.list(PODS))["items"] if is_held(pod)]
        if not held:
            break
        console.print(f"letting {len(held)} held Pods go" + (", once more" if round_ else ""))
        await let_go_all(client, held, console=console)
    return await _held(client, console)


async def _held(client: Client, _console: Console) -> list[str]:
    pods = (await client.list(PODS))["items"]
    return [f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" for pod in pods if is_held(pod)]


async def _rest(client: Client, namespace: str, *, data: bool) -> AsyncIterator[Found]:
    shared = await _is_elsewhere_too(client, namespace)
    # An alert that nobody answers would fire for ever; a Certificate would be made again.
    for resource in (*OTHERS, *IN_ORDER):
        if resource == CLUSTER_ROLES and shared:
            continue
        for item in await _ours(client, resource, namespace if resource.namespaced else None):
            if resource.namespaced or _is_of(item, namespace):
                yield resource, item["metadata"]["name"]
    for lease in (await client.list(LEASES, namespace=namespace))["items"]:
        if lease["metadata"]["name"].startswith(OWN_LEASES):
            yield LEASES, lease["metadata"]["name"]
    if not data:
        return
    for claim in (await client.list(CLAIMS, namespace=namespace, label_selector=PART_OF))["items"]:
        yield CLAIMS, claim["metadata"]["name"]
    if await _is_there(client, SECRETS, OWN_SECRET, namespace):
        yield SECRETS, OWN_SECRET
    for place in (await client.list(NAMESPACES, label_selector=PART_OF))["items"]:
        if place["metadata"]["name"] == namespace:
            yield NAMESPACES, namespace


async def _ours(client: Client, resource: Resource, place: str | None = None) -> list[dict[str, Any]]:
    try:
        return list((await client.list(resource, namespace=place, label_selector=PART_OF))["items"])
    except NotFound:
        return []  # the cluster does not know the kind


async def _is_elsewhere_too(client: Client, namespace: str) -> bool:
    """Whether an installation in another namespace is bound to the ClusterRoles, which all have in common:
    without them it could let no Pod go.
    """
    bindings = [item for kind in (CLUSTER_ROLE_BINDINGS, ROLE_BINDINGS) for item in await _ours(client, kind)]
    return any(not _is_of(binding, namespace) for binding in bindings)


def _is_of(item: dict[str, Any], namespace: str) -> bool:
    """Whether a cluster-wide object is of this installation: a binding names the namespace."""
    subjects = item.get("subjects")
    return not isinstance(subjects, Sequence) or any(s.get("namespace") == namespace for s in subjects)


async def _is_there(client: Client, resource: Resource, name: str, namespace: str) -> bool:
    try:
        await client.get(resource, name, namespace=namespace)
    except NotFound:
        return False
    return True


async def _delete(client: Client, resource: Resource, name: str, namespace: str | None) -> None:
    try:
        await client.delete(resource, name, namespace=namespace if resource.namespaced else None)
    except NotFound:
        return


def _line(resource: Resource, namespace: str, name: str) -> dict[str, str]:
    return {"kind": resource.kind, "namespace": namespace if resource.namespaced else "", "name": name}


def _show(done: list[dict[str, str]], stuck: list[str], *, removed: bool, data: bool) -> None:
    console = Console()
    if not done and not stuck:
        console.print("nothing of memopod is there, and no Pod is held", highlight=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("REMOVED" if removed else "WOULD GO", "NAMESPACE", "NAME"):
        table.add_column(column)
    for line in done:
        table.add_row(line["kind"], line["namespace"], line["name"])
    console.print(table)
    if not removed:
        console.print(f"{len(stuck)} held Pods would be let go; nothing was changed, --yes does it")
        return
    if stuck:
        only_webhooks = all(line["kind"] == MUTATING_WEBHOOKS.kind for line in done)
        stay = ", so memopod's servers stay" if only_webhooks else ""
        typer.echo(f"error: {len(stuck)} Pods are still held{stay}: {stuck[:5]}", err=True)
        typer.echo("next: memopod cache release, then memopod uninstall --yes again", err=True)
        return
    kept = "databases elsewhere" if data else "databases, volumes and Secrets of yours"
    console.print(f"no Pod is held; {kept} are as they were", highlight=False)
