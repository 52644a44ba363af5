import pytest

from memopod.kube import ApiError, Conflict, Forbidden, Gone, Invalid, NotFound, Unavailable
from memopod.kube.errors import from_status


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (400, ApiError),
        (401, Forbidden),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (410, Gone),
        (415, ApiError),
        (422, Invalid),
        (429, Unavailable),
        (500, Unavailable),
        (504, Unavailable),
    ],
)
def test_each_status_has_its_error(code, cls):
    error = from_status("GET /x", code, {"reason": "Because"})
    assert type(error) is cls
    assert (error.status, error.reason) == (code, "Because")


@pytest.mark.parametrize("code", [400, 422])
def test_what_was_sent_is_not_repeated(code):
    status = {
        "reason": "Invalid",
        "message": 'Pod "a" is invalid: spec: Forbidden: core.PodSpec{Env: "s3cret"}',
        "details": {"causes": [{"field": "spec", "reason": "FieldValueForbidden", "message": "s3cret"}]},
    }
    text = str(from_status("PATCH /pods/a", code, status))
    assert "s3cret" not in text
    assert text == f"PATCH /pods/a: {code} Invalid: spec (FieldValueForbidden)"


def test_a_status_without_anything_still_says_what_was_asked():
    assert str(from_status("GET /x", 502, {})) == "GET /x: 502 Unknown"
