import asyncio
import base64
import re
import ssl
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest
import structlog
from aiohttp import web
from cryptography import x509

from cache_server.authority import Lifetimes, Material, found
from cache_server.own_certificates import OwnCertificates, Place
from memopod.kube import MUTATING_WEBHOOKS, SECRETS, Client, NotFound

PLACE = Place(
    namespace="memopod", secret="memopod-cache-certificates", configuration="memopod-cache",
    names=("localhost", "127.0.0.1"),
)  # fmt: skip
LONG = Lifetimes()
RULE = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}


def configuration(*bundles):
    return {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "memopod-cache"},
        "webhooks": [
            {
                "name": f"w{number}.memopod.io", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": "https://127.0.0.1:1/mutate", "caBundle": bundle},
                "objectSelector": {"matchLabels": {"nobody": "has"}},
                "rules": [RULE],
            }
            for number, bundle in enumerate(bundles)
        ],
    }  # fmt: skip


def make(client, lifetimes=LONG):
    return OwnCertificates(client, PLACE, lifetimes, look_seconds=0.02)


@asynccontextmanager
async def keeping(own, leads=True):
    task = asyncio.create_task(own.keep(lambda: leads), name="keep")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def serving(own):
    async def hello(_request):
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=own.context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def until(condition):
    async with asyncio.timeout(30):
        while not (answer := await condition()):  # noqa: ASYNC110 (polls another process)
            await asyncio.sleep(0.02)
    return answer


async def bundles(client):
    found_ = await client.get(MUTATING_WEBHOOKS, "memopod-cache")
    return [base64.b64decode(w["clientConfig"].get("caBundle", "")) for w in found_["webhooks"]]


async def stored(client):
    secret = await client.get(SECRETS, PLACE.secret, namespace=PLACE.namespace)
    return Material.read({name: base64.b64decode(value) for name, value in secret["data"].items()})


async def served(port, authorities):
    """Serial number of the certificate, as a client that trusts the authorities sees it."""
    context = ssl.create_default_context(cadata=authorities.decode())
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return x509.load_der_x509_certificate(der).serial_number


async def test_the_first_makes_the_secret_and_all_serve_it(cluster):
    first, second = make(cluster.client), make(cluster.client)
    made, read = await asyncio.gather(first.obtain(), second.obtain())
    assert made == read == await stored(cluster.client)
    async with serving(first) as one, serving(second) as other:
        assert await served(one, made.authorities) == await served(other, made.authorities)


async def test_the_leader_writes_the_bundle_into_every_webhook_whenever_it_differs(cluster):
    own = make(cluster.client)
    material = await own.obtain()
    other = base64.b64encode(
        found(PLACE.names, LONG, material.leaf.not_valid_before_utc).authorities
    ).decode()
    await cluster.client.create(MUTATING_WEBHOOKS, configuration(other, other))
    async with keeping(own):

        async def in_step():
            return await bundles(cluster.client) == [material.authorities] * 2

        await until(in_step)
        patch = [{"op": "replace", "path": "/webhooks/1/clientConfig/caBundle", "value": other}]
        await cluster.client.patch(MUTATING_WEBHOOKS, "memopod-cache", patch)
        await until(in_step)


async def test_a_follower_writes_nothing(cluster):
    own = make(cluster.client)
    await own.obtain()
    bundle = base64.b64encode((await stored(cluster.client)).authorities).decode()
    await cluster.client.create(MUTATING_WEBHOOKS, configuration(bundle))
    cluster.client.writes.clear()
    short = make(cluster.client, Lifetimes(certificate=timedelta(milliseconds=1)))
    await short.obtain()
    async with keeping(short, leads=False):
        await asyncio.gather(*(stored(cluster.client) for _ in range(20)))
    assert cluster.client.writes == []


async def test_a_certificate_that_is_due_is_renewed_under_open_connections(cluster):
    own = make(cluster.client, Lifetimes(certificate=timedelta(seconds=3)))
    material = await own.obtain()
    bundle = base64.b64encode(material.authorities).decode()
    await cluster.client.create(MUTATING_WEBHOOKS, configuration(bundle))
    async with serving(own) as port:
        context = ssl.create_default_context(cadata=material.authorities.decode())
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        async with keeping(own):

            async def renewed():
                return (await stored(cluster.client)).certificate != material.certificate

            await until(renewed)
        serial = await served(port, material.authorities)
        assert serial != material.leaf.serial_number
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in await asyncio.wait_for(reader.readline(), 20)
        writer.close()
        await writer.wait_closed()


async def test_another_replica_serves_what_the_leader_renewed(cluster):
    material = await make(cluster.client).obtain()
    bundle = base64.b64encode(material.authorities).decode()
    await cluster.client.create(MUTATING_WEBHOOKS, configuration(bundle))
    leader = make(cluster.client, Lifetimes(certificate=timedelta(days=10_000)))
    await leader.obtain()
    follower = make(cluster.client)
    await follower.obtain()
    async with serving(follower) as port, keeping(follower, leads=False):
        # Whoever leads finds the certificate unfit for its names.
        place = Place(
            namespace=PLACE.namespace, secret=PLACE.secret, configuration=PLACE.configuration,
            names=(*PLACE.names, "other"),
        )  # fmt: skip
        renewing = OwnCertificates(cluster.client, place, LONG, look_seconds=0.02)
        async with keeping(renewing):

            async def served_anew():
                return await served(port, material.authorities) != material.leaf.serial_number

            await until(served_anew)


async def test_a_rotated_authority_is_spread_before_it_signs(cluster):
    """Each state of Secret and configuration on the way is one in which the API server trusts the webhook."""
    own = make(cluster.client, Lifetimes(authority=timedelta(seconds=4), certificate=timedelta(days=1)))
    material = await own.obtain()
    await cluster.client.create(
        MUTATING_WEBHOOKS, configuration(base64.b64encode(material.authorities).decode())
    )
    async with keeping(own):

        async def signed_anew():
            now = await stored(cluster.client)
            if now.leaf.issuer != material.signer.subject or now.signer != material.signer:
                (spread,) = await bundles(cluster.client)
                known = [c.subject for c in x509.load_pem_x509_certificates(spread)]
                return now.certificate != material.certificate and now.leaf.issuer in known
            return False

        await until(signed_anew)


async def test_an_unusable_secret_is_named_at_the_start_and_made_anew_by_the_leader(cluster):
    own = make(cluster.client)
    await own.obtain()
    patch = [{"op": "replace", "path": "/data/tls.crt", "value": base64.b64encode(b"no PEM").decode()}]
    await cluster.client.patch(SECRETS, PLACE.secret, patch, namespace=PLACE.namespace)
    with pytest.raises(OSError, match=r"Secret memopod/memopod-cache-certificates: .*delete it"):
        await make(cluster.client).obtain()
    with structlog.testing.capture_logs():
        async with keeping(own):

            async def usable():
                with suppress(ValueError):
                    return await stored(cluster.client)

            await until(usable)


async def test_a_deleted_secret_comes_back(cluster):
    own = make(cluster.client)
    await own.obtain()
    await cluster.client.delete(SECRETS, PLACE.secret, namespace=PLACE.namespace)
    async with keeping(own):

        async def there():
            with suppress(NotFound):
                return await stored(cluster.client)

        await until(there)


async def test_an_account_that_may_not_read_the_secret_is_told_what_to_grant(cluster):
    path = cluster.state / "cluster" / "kubeconfig"
    config = path.read_text()
    stranger = cluster.state / "stranger"
    stranger.write_text(re.sub("token: .*", "token: nobody", config))
    async with Client.from_kubeconfig(str(stranger)) as client:
        with pytest.raises(OSError, match="grant get, create and update"):
            await make(client).obtain()
