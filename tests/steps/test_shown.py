import pytest

from memopod.steps.shown import shown


@pytest.mark.parametrize("name", ["input.image", "configmap.image", "input.args", "configmap.my.env"])
def test_what_a_user_named_like_a_field_is_not_taken_for_one(name):
    assert shown(name, ["old"], ["new"]) == (None, None)


def test_a_field_that_holds_no_secret_is_shown():
    assert shown("run.0.main.image", "python:3.9", "python:3.12") == ("python:3.9", "python:3.12")
    assert shown("run.0.main.image", None, "python:3.12", old_known=False) == (None, "python:3.12")
