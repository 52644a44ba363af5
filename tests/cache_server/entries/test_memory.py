import pytest

from cache_server.entries.layer import Place, Reading
from cache_server.entries.leases import Leases
from cache_server.entries.memory import MemoryLayer
from memopod.steps import Outputs


def at(key, token="t"):
    return Place("pipelines", key, token)


@pytest.fixture
def reading(make_entry):
    return lambda size=0, token="t": Reading(make_entry(outputs=Outputs(parameters={"x": "x" * size})), token)


async def test_it_is_bounded_and_forgets_what_was_asked_for_longest_ago(reading):
    memory = MemoryLayer(most=3)
    kept = [reading() for _ in range(4)]
    for n in range(3):
        await memory.keep(at(f"{n}"), kept[n])
    await memory.look(at("0"))
    await memory.keep(at("3"), kept[3])
    assert [await memory.look(at(f"{n}")) for n in range(4)] == [kept[0], None, kept[2], kept[3]]


async def test_it_is_bounded_in_bytes_and_keeps_nothing_huge(reading):
    memory = MemoryLayer(most_bytes=1 << 20)
    for n in range(100):
        await memory.keep(at(f"{n}"), reading(25_000))
    assert 5 < len(memory) < 15
    await memory.keep(at("huge"), reading(1 << 20))
    assert await memory.look(at("huge")) is None
    assert len(memory) > 5


async def test_what_was_read_with_another_token_is_not_known(reading):
    memory = MemoryLayer()
    await memory.keep(at("0"), reading(token="old"))
    assert await memory.look(at("0", None)) is None
    assert await memory.look(at("0", "new")) is None
    await memory.keep(at("0"), reading(token=None))
    assert await memory.look(at("0", None)) is None


async def test_an_absence_is_remembered_for_a_shorter_time(reading):
    now = [0.0]
    memory = MemoryLayer(seconds=60, absent_seconds=1, clock=lambda: now[0])
    there, absent = reading(), Reading(None, "t")
    await memory.keep(at("there"), there)
    await memory.keep(at("absent"), absent)
    assert await memory.look(at("absent")) == absent
    now[0] = 1.0
    assert [await memory.look(at("there")), await memory.look(at("absent"))] == [there, None]
    now[0] = 60.0
    assert await memory.look(at("there")) is None


def test_a_token_is_known_from_before_it_was_asked_for_until_its_lease_ends():
    now = [10.0]
    leases = Leases(seconds=1, clock=lambda: now[0])
    leases.learn("n", "t", asked_at=9.5)
    assert leases.token("n") == "t"
    now[0] = 10.5
    assert leases.token("n") is None


def test_what_was_asked_before_a_change_is_no_answer_after_it():
    now = [10.0]
    leases = Leases(seconds=1, clock=lambda: now[0])
    for forget in (lambda: leases.forget("n"), leases.forget_all):
        forget()
        leases.learn("n", "old", asked_at=now[0] - 0.1)
        assert leases.token("n") is None
        leases.learn("n", "new", asked_at=now[0] + 0.1)
        assert leases.token("n") == "new"
        now[0] += 0.5


def test_of_two_answers_the_one_that_was_asked_for_later_counts():
    now = [10.0]
    leases = Leases(seconds=1, clock=lambda: now[0])
    leases.learn("n", "new", asked_at=9.9)
    leases.learn("n", "old", asked_at=9.8)
    assert leases.token("n") == "new"
