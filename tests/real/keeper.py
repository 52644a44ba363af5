"""Keeps etcd and the API server running for one test session: `python keeper.py PID FOLDER`.

A process of its own, since the tests' workers come and go: it ends, with all that it started and the
folder, when the process PID (the session's first) ends, however that happens.
"""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import aiohttp

from memopod.kube import Client
from memopod.sandbox.certificates import prepare_state
from memopod.sandbox.control_plane import Files, find_programs, furnish
from memopod.sandbox.ports import free_ports
from memopod.sandbox.processes import Process

NAMESPACES = ("argo",)


async def main(parent, folder):
    over = asyncio.Event()
    watched = os.pidfd_open(parent)
    asyncio.get_running_loop().add_reader(watched, over.set)
    processes = []
    try:
        serving = asyncio.create_task(serve(folder, processes))
        await asyncio.wait({serving, asyncio.create_task(over.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
            await over.wait()
        serving.cancel()
    finally:
        for process in processes:
            await process.stop(0)
        shutil.rmtree(folder, ignore_errors=True)


async def serve(folder, processes):
    programs = find_programs()
    etcd_ready, port = free_ports(2)
    state = prepare_state(folder, port)
    files = Files.prepare(folder / "cp", state)
    commands = {
        "etcd": files.etcd(programs, ready_port=etcd_ready),
        "apiserver": files.apiserver(programs, port=port),
    }
    for name, command in commands.items():
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(await Process.start(command, log=log))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
        while not await ready(session, f"https://127.0.0.1:{port}/readyz"):
            assert all(process.running for process in processes), "the control plane has ended"
            await asyncio.sleep(0.1)
    async with Client.from_kubeconfig(str(state.kubeconfig)) as client:
        await furnish(client, NAMESPACES)
    part = folder / "ready.part"
    part.write_text(json.dumps({"port": port}))
    part.rename(folder / "ready.json")


async def ready(session, url):
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
