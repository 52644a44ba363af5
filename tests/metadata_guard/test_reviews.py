"""Which reviews are asked of the API server, and how long they hold."""

import asyncio

import pytest

from memopod.kube import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS, Unavailable
from metadata_guard.reviews import Caller, Reviews, Unauthenticated


class Api:
    """In place of the API server: knows the tokens `team-...`, and lets everybody read `shared`."""

    def __init__(self):
        self.asked = []
        self.at_once = self.most = 0
        self.go = asyncio.Event()
        self.go.set()
        self.status = None

    async def create(self, resource, body, *, timeout):  # noqa: ASYNC109 (the client's)
        self.asked.append((resource, body["spec"]))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.go.wait()
        finally:
            self.at_once -= 1
        if resource == SUBJECT_ACCESS_REVIEWS:
            return {"status": {"allowed": body["spec"]["resourceAttributes"]["namespace"] == "shared"}}
        if self.status is not None:
            return {"status": self.status}
        token = body["spec"]["token"]
        if token == "away":
            raise Unavailable("no answer")
        user = {"username": f"system:serviceaccount:{token}:x", "groups": [f"system:serviceaccounts:{token}"]}
        return {"status": {"authenticated": True, "user": user} if token.startswith("team-") else {}}

    def count(self, resource):
        return sum(asked == resource for asked, _ in self.asked)


@pytest.fixture
async def api():
    return Api()


@pytest.fixture
async def reviews(api):
    made = Reviews(api, audiences=(), seconds=60)
    yield made
    await made.close()


async def test_a_token_that_many_calls_bring_at_once_is_reviewed_once(api, reviews):
    api.go.clear()
    waiting = [asyncio.create_task(reviews.caller("team-a")) for _ in range(20)]
    async with asyncio.timeout(30):
        while not api.asked:  # noqa: ASYNC110 (any condition)
            await asyncio.sleep(0)
    waiting[0].cancel()  # who asked first gives up; the others get their answer
    api.go.set()
    gone, *callers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(gone, asyncio.CancelledError)
    assert {caller.namespace for caller in callers} == {"team-a"}
    assert api.count(TOKEN_REVIEWS) == 1
    await reviews.caller("team-a")
    assert api.count(TOKEN_REVIEWS) == 1


async def test_tokens_that_are_made_up_put_no_known_one_out(api, reviews):
    await reviews.caller("team-a")
    for number in range(12_000):
        with pytest.raises(Unauthenticated):
            await reviews.caller(f"made-up-{number}")
    before = len(api.asked)
    assert (await reviews.caller("team-a")).namespace == "team-a"
    assert len(api.asked) == before
    assert len(reviews._strangers._answers) <= 1000


async def test_an_unknown_token_is_not_asked_for_again_at_once_but_soon(api, reviews, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("metadata_guard.kept.time.monotonic", lambda: now)
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await reviews.caller("new")
    assert api.count(TOKEN_REVIEWS) == 1
    now += 5.1
    with pytest.raises(Unauthenticated):
        await reviews.caller("new")
    assert api.count(TOKEN_REVIEWS) == 2


async def test_a_review_that_failed_is_asked_for_again(api, reviews):
    for times in (1, 2):
        with pytest.raises(Unavailable):
            await reviews.caller("away")
        assert api.count(TOKEN_REVIEWS) == times


async def test_the_api_server_gets_no_flood_of_reviews_and_those_of_access_do_not_wait_behind(api, reviews):
    api.go.clear()
    waiting = [asyncio.create_task(reviews.caller(f"made-up-{number}")) for number in range(100)]
    async with asyncio.timeout(30):
        while api.at_once < 16:  # noqa: ASYNC110 (any condition)
            await asyncio.sleep(0)
    access = asyncio.create_task(reviews.may_read(Caller("jane"), "shared"))
    async with asyncio.timeout(30):
        while api.count(SUBJECT_ACCESS_REVIEWS) < 1:  # noqa: ASYNC110 (any condition)
            await asyncio.sleep(0)
    assert api.most == 17
    api.go.set()
    assert await access
    assert all(
        isinstance(each, Unauthenticated) for each in await asyncio.gather(*waiting, return_exceptions=True)
    )
    assert api.most == 17


@pytest.mark.parametrize(
    "name", ["", "*", "Team", "team.a", "team/a", "-team", "team-", "team\n", "t" * 64, "ä"]
)
async def test_what_is_no_namespaces_name_is_read_by_nobody_and_asked_of_nobody(api, reviews, name):
    caller = Caller(f"system:serviceaccount:{name}:x", groups=(f"system:serviceaccounts:{name}",))
    assert not await reviews.may_read(caller, name)
    assert api.asked == []


async def test_a_name_like_a_service_accounts_without_its_group_has_no_namespace(api, reviews):
    caller = Caller("system:serviceaccount:team-a:x", groups=("system:authenticated",))
    assert caller.namespace is None
    assert not await reviews.may_read(caller, "team-a")
    assert await reviews.may_read(caller, "shared")


@pytest.mark.parametrize(
    "status",
    [
        {}, {"authenticated": "true", "user": {"username": "x"}}, {"authenticated": True},
        {"authenticated": True, "user": {"username": ""}},
        {"authenticated": True, "error": "no", "user": {"username": "x"}},
    ],
)  # fmt: skip
async def test_half_an_answer_is_no_authentication(api, reviews, status):
    api.status = status
    with pytest.raises(Unauthenticated):
        await reviews.caller("team-a")
