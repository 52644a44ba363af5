"""Whether memopod may write WorkflowTaskResults is asked of an API server, again and again."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cache_server.completion import ResultsPermission
from memopod.kube import Client


class Reviews:
    """An API server that answers access reviews: yes, no, or not at all."""

    def __init__(self):
        self.allowed = True
        self.status = 201
        self.asked = []

    async def answer(self, request):
        self.asked.append((await request.json())["spec"]["resourceAttributes"])
        if self.status != 201:
            return web.json_response({"kind": "Status", "status": "Failure"}, status=self.status)
        return web.json_response({"status": {"allowed": self.allowed}}, status=201)


@pytest.fixture
async def reviews(tmp_path):
    reviews = Reviews()
    app = web.Application()
    app.router.add_post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", reviews.answer)
    async with TestServer(app) as server:
        named = [{"name": "x", "cluster": {"server": str(server.make_url(""))}}]
        context = [{"name": "x", "context": {"cluster": "x", "user": "x"}}]
        config = {
            "apiVersion": "v1", "kind": "Config", "clusters": named, "contexts": context,
            "users": [{"name": "x", "user": {"token": "t"}}], "current-context": "x",
        }  # fmt: skip
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps(config))
        async with Client.from_kubeconfig(str(path)) as client:
            reviews.client = client
            yield reviews


@contextlib.asynccontextmanager
async def asking(reviews, **arguments):
    permission = ResultsPermission(
        reviews.client, "pipelines", **{"wanted": True, "every": 0.01, **arguments}
    )
    task = asyncio.create_task(permission.ask())
    try:
        yield permission
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (polls another task)
            await asyncio.sleep(0.005)


async def test_a_permission_that_is_taken_away_is_noticed_and_one_given_back_too(reviews):
    async with asking(reviews, clock=lambda: 1.0) as permission:
        await until(lambda: permission.granted)
        reviews.allowed = False
        await until(lambda: not permission.granted)
        reviews.allowed = True
        await until(lambda: permission.granted)
    wanted = {
        "group": "argoproj.io", "resource": "workflowtaskresults", "verb": "create", "namespace": "pipelines",
    }  # fmt: skip
    assert reviews.asked[0] == wanted


async def test_a_yes_does_not_hold_for_ever_where_nobody_answers(reviews):
    now = [100.0]
    async with asking(reviews, clock=lambda: now[0]) as permission:
        await until(lambda: permission.granted)
        reviews.status = 500
        now[0] += 0.02
        asked = len(reviews.asked)
        await until(lambda: len(reviews.asked) > asked + 1)
        assert permission.granted
        now[0] += 0.02
        assert not permission.granted


async def test_nobody_asks_where_nobody_wants_to_know(reviews):
    async with asking(reviews, wanted=False) as permission:
        assert not permission.granted
    assert reviews.asked == []
