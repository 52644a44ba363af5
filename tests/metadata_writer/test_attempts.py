import pytest

from metadata_writer.attempts import Attempts, as_json


@pytest.fixture
def attempts():
    return Attempts()


def test_what_is_missing_is_looked_for_after_longer_and_longer_pauses(attempts):
    delays = [attempts.looked("a") for _ in range(12)]
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (0.25, 30.0)
    assert not attempts.quarantine()


def test_what_fails_again_and_again_goes_to_quarantine_and_is_told_once(attempts):
    told = [attempts.failed("a", ValueError("no"))[1] for _ in range(20)]
    assert told == [False] * 5 + [True] + [False] * 14
    assert attempts.failed("a", ValueError("no"))[0] == 600.0
    assert list(attempts.quarantine()) == ["a"]
    assert as_json(attempts.quarantine()["a"])["error"] == "ValueError: no"
    assert attempts.last_error().failures == 21


def test_what_is_hopeless_goes_there_at_once(attempts):
    assert attempts.failed("a", ValueError("no"), hopeless=True)[1]


def test_what_succeeds_is_forgotten(attempts):
    attempts.failed("a", ValueError("no"), hopeless=True)
    assert attempts.failing == 1
    attempts.done("a")
    assert (attempts.failing, attempts.quarantine(), attempts.last_error()) == (0, {}, None)


def test_a_look_that_went_well_ends_a_row_of_failures(attempts):
    attempts.failed("a", ValueError("no"))
    attempts.looked("a")
    assert attempts.failing == 0
