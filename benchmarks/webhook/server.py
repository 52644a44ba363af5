"""The server under test: `floor` reads the body and allows; the others are a replica's webhook."""

import argparse
import asyncio
import signal
import sys
from contextlib import AsyncExitStack

from aiohttp import web

import cache_server.app  # noqa: F401 (a replica has all of it in memory)
from cache_server import configuration
from cache_server.artifacts import Artifacts
from cache_server.certificates import FileCertificates
from cache_server.entries import open_layered
from cache_server.serving import listen, make_decider, make_judge
from cache_server.settings import Settings
from cache_server.workers import Workers
from memopod.kube import Client
from memopod.service import configure_logs, run

SECRET = b"s" * 32
ALLOWED = (
    b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview",'
    b'"response":{"uid":"00000000-0000-0000-0000-000000000000","allowed":true}}'
)


def floor():
    async def allow(request):
        await request.read()
        return web.Response(body=ALLOWED, content_type="application/json")

    app = web.Application(client_max_size=8 << 20)
    app.router.add_route("*", "/mutate", allow)
    return app


async def serve(arguments, stop):
    settings = Settings(
        listen_host="127.0.0.1", processes=arguments.processes, tls_cert_file=arguments.cert,
        tls_key_file=arguments.key, kubeconfig=arguments.kubeconfig, database=arguments.database,
        redis=arguments.redis, strategy=arguments.mode if arguments.mode != "floor" else "gate",
        trusted_creators=("system:serviceaccount:argo:argo",), cache_image="busybox",
    )  # fmt: skip
    rules = configuration.decision_rules(settings, SECRET)
    certificates = FileCertificates(arguments.cert, arguments.key)
    async with AsyncExitStack() as stack:
        if arguments.mode == "floor":
            runner = web.AppRunner(floor(), access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", arguments.port, ssl_context=certificates.context)
            await site.start()
            await stop.wait()
            return
        decider = None
        if arguments.mode == "placeholder":
            client = await stack.enter_async_context(Client.from_kubeconfig(arguments.kubeconfig))
            entries = await stack.enter_async_context(open_layered(settings.database, redis=settings.redis))
            _, decider = make_decider(settings, rules, Artifacts.from_settings(()), client, entries)
        judge = make_judge(
            settings, configuration.admission_policy(settings, SECRET), decider,
            alive=lambda: True, can_complete=lambda: True,
        )  # fmt: skip
        await listen(settings, judge, certificates.context, arguments.port)
        workers = Workers(settings, rules, arguments.port)
        task = asyncio.create_task(workers.run(lambda: True, lambda: True))
        await stop.wait()
        await workers.stop()
        await task


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["floor", "gate", "placeholder"])
    for flag in ("port", "processes"):
        parser.add_argument(f"--{flag}", type=int, default=1)
    for flag in ("cert", "key", "kubeconfig", "database", "redis"):
        parser.add_argument(f"--{flag}", default="")
    arguments = parser.parse_args()
    configure_logs("bench", level="error")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(run(lambda stop: serve(arguments, stop)))
