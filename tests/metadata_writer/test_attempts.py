import grpc
import pytest

from memopod.kube import ApiError
from memopod.mlmd.errors import error
from metadata_writer.attempts import Attempts, as_json, said
from metadata_writer.observer import TemplateUnreadable


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
    assert as_json(attempts.quarantine()["a"])["error"].startswith("ValueError: not foreseen")
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


@pytest.mark.parametrize("kind", [ValueError, KeyError, TypeError, UnicodeEncodeError])
def test_the_text_of_an_error_that_nobody_foresaw_is_told_to_nobody(attempts, kind):
    value = "hunter2"
    trouble = kind("utf-8", value, 0, 1, value) if kind is UnicodeEncodeError else kind(value)
    attempts.failed("a", trouble, hopeless=True)
    shown = said(trouble), as_json(attempts.last_error())["error"]
    assert all(kind.__name__ in text and value not in text for text in shown)


def test_of_an_error_that_is_foreseen_its_text_is_told():
    assert said(ApiError("GET /api/v1/pods: 500")) == "ApiError: GET /api/v1/pods: 500"
    assert said(TemplateUnreadable("template-unreadable")) == "TemplateUnreadable: template-unreadable"
    refused = error("PutExecutions", grpc.StatusCode.INVALID_ARGUMENT, "hunter2")
    assert said(refused) == "StoreError: PutExecutions: INVALID_ARGUMENT"
