import pytest

from metadata_writer.bodies import Bodies


def body(text):
    return {"metadata": {"name": text}}


def test_a_body_comes_back_as_it_was():
    bodies = Bodies(10_000)
    bodies.put("a", body("one"))
    bodies.put("a", body("two"))
    assert bodies.get("a") == body("two")
    assert len(bodies) == 1
    bodies.drop("a")
    bodies.drop("a")
    assert (bodies.get("a"), bodies.size) == (None, 0)


def test_the_oldest_go_where_there_is_no_room():
    bodies = Bodies(1_000)
    dropped = [bodies.put(n, body(str(n))) for n in range(5)]
    assert sum(dropped) == 5 - len(bodies)
    assert bodies.size <= 1_000
    assert 4 in bodies
    assert 0 not in bodies


def test_a_single_body_that_is_too_large_is_kept_all_the_same():
    bodies = Bodies(10)
    assert bodies.put("a", body("x")) == 0
    assert bodies.get("a") == body("x")


@pytest.mark.parametrize("there", [True, False])
def test_a_body_is_handed_over(there):
    one, other = Bodies(1_000), Bodies(1_000)
    if there:
        one.put("a", body("x"))
    one.move("a", other)
    assert len(one) == 0
    assert other.get("a") == (body("x") if there else None)


def test_the_newest_bodies_are_not_packed_and_come_back_all_the_same():
    bodies = Bodies(40_000)
    for n in range(5):
        bodies.put(n, body(str(n)), 8_000)
    assert [bodies.get(n) for n in range(5)] == [body(str(n)) for n in range(5)]
    assert 16_000 < bodies.size < 20_000
    other = Bodies(40_000)
    for n in range(5):
        bodies.move(n, other)
    assert (len(bodies), bodies.size) == (0, 0)
    assert [other.get(n) for n in range(5)] == [body(str(n)) for n in range(5)]
