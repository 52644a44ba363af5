"""Which reviews are asked of the API server, and how long they hold."""

import asyncio
import contextlib

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
        self.shared, self.readers = "shared", None

    async def create(self, resource, body, *, timeout):  # noqa: ASYNC109 (the client's)
        self.asked.append((resource, body["spec"]))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.go.wait()
        finally:
            self.at_once -= 1
        if resource == SUBJECT_ACCESS_REVIEWS:
            spec = body["spec"]
            known = self.readers is None or spec["user"] in self.readers
            return {"status": {"allowed": known and spec["resourceAttributes"]["namespace"] == self.shared}}
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


async def test_a_known_token_is_asked_for_again_when_its_time_is_up(api, monkeypatch):
    """So an account that is deleted, a token that is over, or a role that is taken back, holds so long."""
    now = 1000.0
    monkeypatch.setattr("metadata_guard.kept.time.monotonic", lambda: now)
    reviews = Reviews(api, audiences=(), seconds=60)
    caller = await reviews.caller("team-a")
    assert await reviews.may_read(caller, "shared")
    api.status, api.shared = {"authenticated": False, "error": "the service account is deleted"}, ""
    now += 59.9
    assert await reviews.caller("team-a") == caller
    assert await reviews.may_read(caller, "shared")
    now += 0.2
    with pytest.raises(Unauthenticated):
        await reviews.caller("team-a")
    assert not await reviews.may_read(caller, "shared")
    await reviews.close()


async def test_without_keeping_each_call_asks(api):
    reviews = Reviews(api, audiences=(), seconds=0)
    for _ in range(3):
        await reviews.caller("team-a")
        assert await reviews.may_read(Caller("jane"), "shared")
    assert (api.count(TOKEN_REVIEWS), api.count(SUBJECT_ACCESS_REVIEWS)) == (3, 3)
    await reviews.close()


async def test_so_many_reviews_are_kept_and_no_more(api, reviews):
    for number in range(10_050):
        caller = await reviews.caller(f"team-{number}")
        await reviews.may_read(caller, "shared")
    assert len(reviews._callers._answers) == len(reviews._access._answers) == 10_000
    assert reviews._callers._asked == reviews._access._asked == {}


async def test_one_users_access_is_not_anothers(api, reviews):
    api.readers = {"jane"}
    assert await reviews.may_read(Caller("jane"), "shared")
    assert not await reviews.may_read(Caller("joe"), "shared")
    assert not await reviews.may_read(Caller("jane"), "other")
    groups = ("system:masters",)
    assert await reviews.may_read(Caller("jane", "uid", groups, (("scopes", ("a", "b")),)), "shared")
    _, spec = api.asked[-1]
    assert (spec["user"], spec["uid"], spec["groups"], spec["extra"]) == (
        "jane", "uid", ["system:masters"], {"scopes": ["a", "b"]},
    )  # fmt: skip
    assert spec["resourceAttributes"] == {
        "namespace": "shared", "verb": "get", "group": "argoproj.io", "resource": "workflows",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "said", "known"),
    [
        ((), None, True), ((), ["anything"], True), (("ours",), ["ours"], True),
        (("ours", "second"), ["second"], True), (("ours",), ["theirs"], False), (("ours",), [], False),
        (("ours",), None, False),
    ],
)  # fmt: skip
async def test_a_token_is_for_an_audience_that_was_asked_for(api, asked, said, known):
    api.status = {"authenticated": True, "user": {"username": "jane"}}
    if said is not None:
        api.status["audiences"] = said
    reviews = Reviews(api, audiences=asked, seconds=60)
    if known:
        assert (await reviews.caller("team-a")).name == "jane"
    else:
        with pytest.raises(Unauthenticated):
            await reviews.caller("team-a")
    assert api.asked[0][1].get("audiences", []) == list(asked)
    await reviews.close()


@pytest.mark.parametrize(
    "token", ["team-a\r\nImpersonate-User: root", 'team-a"}', "team-a\0", "team-ä", "t" * 9000]
)
async def test_a_token_is_asked_about_as_it_is(api, reviews, token):
    with contextlib.suppress(Unauthenticated):
        caller = await reviews.caller(token)
        assert not await reviews.may_read(caller, "team-a")
    assert [spec["token"] for resource, spec in api.asked if resource == TOKEN_REVIEWS] == [token]


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
