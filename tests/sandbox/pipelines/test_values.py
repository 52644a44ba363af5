import pytest

from memopod.sandbox.pipelines import Parameter, PipelineError, as_text, from_text, parse_parameters


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("STRING", "5", "5"),
        ("STRING", "", ""),
        ("NUMBER_INTEGER", "5", 5),
        ("NUMBER_INTEGER", "5.0", 5),
        ("NUMBER_INTEGER", "-1", -1),
        ("NUMBER_DOUBLE", "5", 5.0),
        ("NUMBER_DOUBLE", "1e-3", 0.001),
        ("BOOLEAN", "True", True),
        ("BOOLEAN", "false", False),
        ("LIST", "[1, 2]", [1, 2]),
        ("STRUCT", '{"a": {"b": 1}}', {"a": {"b": 1}}),
    ],
)
def test_text_becomes_a_value_of_its_type(kind, text, value):
    found = from_text(text, kind)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("NUMBER_INTEGER", "five"),
        ("NUMBER_INTEGER", "5.5"),
        ("NUMBER_INTEGER", "true"),
        ("NUMBER_DOUBLE", "NaN"),
        ("NUMBER_DOUBLE", "1e999"),
        ("BOOLEAN", "yes"),
        ("BOOLEAN", "1"),
        ("LIST", '{"a": 1}'),
        ("STRUCT", "[1]"),
        ("STRUCT", "{"),
    ],
)
def test_text_of_another_type_is_refused_without_repeating_it(kind, text):
    with pytest.raises(ValueError, match=kind) as caught:
        from_text(text, kind)
    assert text not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (5, "5"),
        (5.0, "5"),
        (0.5, "0.5"),
        (1e-07, "0.0000001"),
        (1e21, "1000000000000000000000"),
        (True, "true"),
        ([1, "a"], '[1,"a"]'),
        ({"b": 1, "a": "ä"}, '{"a":"ä","b":1}'),
    ],
)
def test_values_stand_in_commands_as_kubeflows_launcher_writes_them(value, text):
    assert as_text(value) == text


DECLARED = {
    "name": Parameter("STRING"),
    "count": Parameter("NUMBER_INTEGER", default=3),
    "note": Parameter("STRING", optional=True),
}


def test_defaults_are_filled_in_and_optional_parameters_may_be_absent():
    assert parse_parameters(["name=a=b"], DECLARED) == {"name": "a=b", "count": 3}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], r"parameter 'name': is missing: give it with -p name=VALUE \(STRING\)"),
        (["name"], "-p name: expected name=value"),
        (["=5"], "expected name=value"),
        (["name=a", "other=1"], r"parameter 'other': .* no such parameter \(known: count, name, note\)"),
        (["name=a", "name=b"], "parameter 'name': is given twice"),
        (["name=a", "count=many"], "parameter 'count': expected a whole number"),
    ],
)
def test_bad_parameters_are_named(words, problem):
    with pytest.raises(PipelineError, match=problem):
        parse_parameters(words, DECLARED)
