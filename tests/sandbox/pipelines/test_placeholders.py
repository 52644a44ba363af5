import json

import pytest

from memopod.sandbox.pipelines import Artifact, Constant, FromTask, PipelineError, Task, render
from memopod.sandbox.pipelines.plan import Input

SCHEMA = {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}


def task(*args, env=()):
    return Task(
        name="work",
        template="work",
        image="python:3.9",
        command=("run",),
        args=args,
        env=env,
        cached=True,
        parameters={"text": Input("STRING", Constant("")), "more": Input("STRUCT", Constant({}))},
        artifacts={"data": Artifact(SCHEMA, FromTask("make", "data"))},
        output_parameters={"out": "STRING"},
        output_artifacts={"model": SCHEMA},
    )


VALUES = {"text": "a {{$}} b", "more": {"b": [1], "a": 2.0}}


def filled(*args):
    return render(task(*args), VALUES, ["data"]).args


def test_each_placeholder_is_filled_with_a_value_or_a_fixed_path():
    assert filled(
        "{{$.inputs.parameters['more']}}",
        "--data={{$.inputs.artifacts['data'].path}}",
        "{{$.inputs.artifacts['data'].uri}}",
        "{{$.outputs.parameters['out'].output_file}}",
        "{{$.outputs.artifacts['model'].path}}",
        "{{$.outputs.artifacts['model'].uri}}",
    ) == (
        '{"a":2.0,"b":[1]}',
        "--data=/memopod/inputs/artifacts/data",
        "/memopod/inputs/artifacts/data",
        "/memopod/outputs/parameters/out",
        "/memopod/outputs/artifacts/model",
        "/memopod/outputs/artifacts/model",
    )


def test_a_value_that_looks_like_a_placeholder_stays_as_it_is():
    assert filled("<{{$.inputs.parameters['text']}}>") == ("<a {{$}} b>",)


def test_the_environment_is_filled_too():
    found = render(task(env=(("TEXT", "{{$.inputs.parameters['text']}}"),)), VALUES, ["data"])
    assert found.env == (("TEXT", "a {{$}} b"),)


def test_the_executor_input_is_the_same_text_for_the_same_inputs():
    (text,) = filled("{{$}}")
    assert json.loads(text) == {
        "inputs": {
            "parameterValues": VALUES,
            "artifacts": {
                "data": {
                    "artifacts": [{"name": "data", "type": SCHEMA, "uri": "/memopod/inputs/artifacts/data"}]
                }
            },
        },
        "outputs": {
            "parameters": {"out": {"outputFile": "/memopod/outputs/parameters/out"}},
            "artifacts": {
                "model": {
                    "artifacts": [
                        {"name": "model", "type": SCHEMA, "uri": "/memopod/outputs/artifacts/model"}
                    ]
                }
            },
            "outputFile": "/memopod/outputs/executor_output.json",
        },
    }
    shuffled = dict(reversed(VALUES.items()))
    assert render(task("{{$}}"), shuffled, ["data"]).args == (text,)


def test_concat_joins_and_if_present_chooses():
    joined = json.dumps({"Concat": ["--x=", "{{$.inputs.parameters['text']}}", {"Concat": ["!", "?"]}]})
    present = json.dumps({"IfPresent": {"InputName": "text", "Then": ["--text", "yes"], "Else": "no"}})
    absent = json.dumps({"IfPresent": {"InputName": "gone", "Then": "yes", "Else": ["no", "way"]}})
    nothing = json.dumps({"IfPresent": {"InputName": "gone", "Then": "yes"}})
    assert filled(joined, present, absent, nothing) == ("--x=a {{$}} b!?", "--text", "yes", "no", "way")


def test_json_that_is_no_placeholder_is_an_ordinary_word():
    word = '{"Concat": ["a"], "other": 1}'
    assert filled(word) == (word,)


def test_a_command_that_needs_an_absent_input_says_so():
    with pytest.raises(PipelineError, match="task 'work': its command needs the input 'text'"):
        render(task("{{$.inputs.parameters['text']}}"), {}, ["data"])
    with pytest.raises(PipelineError, match="task 'work': its command needs the artifact 'data'"):
        render(task("{{$.inputs.artifacts['data'].path}}"), VALUES, [])
