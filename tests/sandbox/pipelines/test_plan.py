import copy
from importlib.resources import as_file, files

import pytest

from memopod.sandbox.pipelines import Constant, FromRun, FromTask, PipelineError, read_pipeline
from memopod.sandbox.pipelines.plan import Joined

ARTIFACT = {"artifactType": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}}


def example(name):
    with as_file(files("memopod.sandbox") / "examples" / name) as path:
        return read_pipeline(path)


def add(document, name, *, component=None, after=(), inputs=None, **task):
    """Adds one more task of `component` (by default that of `work`) to the root DAG."""
    document["root"]["dag"]["tasks"][name] = {
        "componentRef": {"name": component or "comp-work"},
        "dependentTasks": list(after),
        "inputs": {"parameters": inputs or {"n": {"componentInputParameter": "n"}}},
        **task,
    }
    return document


def work(document):
    return document["root"]["dag"]["tasks"]["work"]


def container(document):
    return document["deploymentSpec"]["executors"]["exec-work"]["container"]


def test_the_example_is_one_cached_task_whose_input_and_output_are_the_pipelines():
    plan = example("pipeline.yaml")
    assert plan.name == "my-pipeline"
    (task,) = plan.tasks
    assert (task.name, task.image, task.cached, task.after) == ("comp", "python:3.9", True, frozenset())
    assert task.parameters["message"].source == FromRun("message")
    assert plan.outputs == {"Output": FromTask("comp", "Output")}


def test_an_artifact_between_two_tasks_orders_them():
    plan = example("two_steps.yaml")
    assert [task.name for task in plan.tasks] == ["split", "count"]
    assert plan.tasks[1].after == {"split"}
    assert plan.tasks[1].artifacts["words"].source == FromTask("split", "words")
    assert plan.output_artifacts == {"words": FromTask("split", "words")}
    assert plan.parameters["message"].default == "one two three"


def test_data_alone_orders_tasks_and_constants_and_defaults_are_values(plan_of, pipeline):
    document = pipeline()
    add(
        document,
        "a-last",
        inputs={"n": {"taskOutputParameter": {"producerTask": "work", "outputParameterKey": "out"}}},
    )
    add(document, "fixed", inputs={"n": {"runtimeValue": {"constant": "always"}}})
    definition = document["components"]["comp-work"]["inputDefinitions"]["parameters"]
    definition["extra"] = {"parameterType": "NUMBER_DOUBLE", "defaultValue": 2}
    definition["absent"] = {"parameterType": "STRING", "isOptional": True}
    plan = plan_of(document)
    tasks = {task.name: task for task in plan.tasks}
    order = [task.name for task in plan.tasks]
    assert order.index("work") < order.index("a-last")
    assert tasks["a-last"].parameters["n"].source == FromTask("work", "out")
    assert tasks["fixed"].parameters["n"].source == Constant("always")
    assert tasks["fixed"].parameters["extra"].source == Constant(2.0)
    assert tasks["fixed"].parameters["absent"].source is None


def test_a_constant_may_hold_another_input(plan_of, pipeline):
    document = pipeline()
    definitions = document["components"]["comp-work"]["inputDefinitions"]["parameters"]
    definitions["greeting"] = {"parameterType": "STRING"}
    work(document)["inputs"]["parameters"]["greeting"] = {
        "runtimeValue": {"constant": "hello {{$.inputs.parameters['n']}}!"}
    }
    (task,) = plan_of(document).tasks
    assert task.parameters["greeting"].source == Joined(("hello ", FromRun("n"), "!"))


def test_a_task_is_cached_only_if_it_says_so(plan_of, pipeline):
    document = pipeline()
    add(document, "silent")
    add(document, "off", cachingOptions={"enableCache": False})
    add(document, "empty", cachingOptions={})
    assert {task.name for task in plan_of(document).tasks if task.cached} == {"work"}


def nested(pipeline):
    """`before`, then a DAG `outer` of `inner` and `second`, then `behind`."""
    document = pipeline()
    document["components"]["comp-outer"] = {
        "inputDefinitions": {"parameters": {"m": {"parameterType": "STRING"}}},
        "outputDefinitions": {"parameters": {"result": {"parameterType": "STRING"}}},
        "dag": {
            "tasks": {
                "inner": {
                    "componentRef": {"name": "comp-work"},
                    "inputs": {"parameters": {"n": {"componentInputParameter": "m"}}},
                },
                "second": {
                    "componentRef": {"name": "comp-work"},
                    "dependentTasks": ["inner"],
                    "inputs": {"parameters": {"n": {"runtimeValue": {"constant": "x"}}}},
                },
            },
            "outputs": {
                "parameters": {
                    "result": {
                        "valueFromParameter": {"producerSubtask": "inner", "outputParameterKey": "out"}
                    }
                }
            },
        },
    }
    output = {"producerTask": "work", "outputParameterKey": "out"}
    add(document, "outer", component="comp-outer", inputs={"m": {"taskOutputParameter": output}})
    result = {"producerTask": "outer", "outputParameterKey": "result"}
    add(document, "behind", inputs={"n": {"taskOutputParameter": result}})
    return document


def test_a_nested_dag_is_flattened_and_waits_as_a_whole(plan_of, pipeline):
    document = nested(pipeline)
    document["root"]["dag"]["outputs"] = {
        "parameters": {
            "r": {"valueFromParameter": {"producerSubtask": "outer", "outputParameterKey": "result"}}
        }
    }
    plan = plan_of(document)
    tasks = {task.name: task for task in plan.tasks}
    assert set(tasks) == {"work", "outer.inner", "outer.second", "behind"}
    assert tasks["outer.inner"].parameters["n"].source == FromTask("work", "out")
    assert tasks["outer.second"].after == {"work", "outer.inner"}
    assert tasks["behind"].after == {"outer.inner", "outer.second"}
    assert tasks["behind"].parameters["n"].source == FromTask("outer.inner", "out")
    assert plan.outputs == {"r": FromTask("outer.inner", "out")}


def test_artifacts_pass_into_and_out_of_a_nested_dag(plan_of, pipeline):
    document = pipeline()
    document["components"]["comp-work"]["outputDefinitions"]["artifacts"] = {"data": ARTIFACT}
    document["components"]["comp-read"] = {
        "executorLabel": "exec-work",
        "inputDefinitions": {"artifacts": {"data": ARTIFACT}},
        "outputDefinitions": {"artifacts": {"model": ARTIFACT}},
    }
    document["components"]["comp-outer"] = {
        "inputDefinitions": {"artifacts": {"given": ARTIFACT}},
        "dag": {
            "tasks": {
                "read": {
                    "componentRef": {"name": "comp-read"},
                    "inputs": {"artifacts": {"data": {"componentInputArtifact": "given"}}},
                }
            },
            "outputs": {
                "artifacts": {
                    "best": {"artifactSelectors": [{"producerSubtask": "read", "outputArtifactKey": "model"}]}
                }
            },
        },
    }
    output = {"producerTask": "work", "outputArtifactKey": "data"}
    document["root"]["dag"]["tasks"]["outer"] = {
        "componentRef": {"name": "comp-outer"},
        "inputs": {"artifacts": {"given": {"taskOutputArtifact": output}}},
    }
    document["root"]["dag"]["outputs"] = {
        "artifacts": {
            "best": {"artifactSelectors": [{"producerSubtask": "outer", "outputArtifactKey": "best"}]}
        }
    }
    plan = plan_of(document)
    tasks = {task.name: task for task in plan.tasks}
    assert tasks["outer.read"].artifacts["data"].source == FromTask("work", "data")
    assert plan.output_artifacts == {"best": FromTask("outer.read", "model")}


def test_what_is_ignored_is_said(plan_of, pipeline):
    document = pipeline()
    work(document)["retryPolicy"] = {"maxRetryCount": 3}
    assert plan_of(document).notices == ("task 'work': its retry policy is ignored: a step is tried once",)


REFUSED = {
    "loop": ({"parameterIterator": {"items": {"raw": "[1]"}, "itemInput": "n"}}, "loops are not supported"),
    "artifact loop": ({"artifactIterator": {"items": {}, "itemInput": "n"}}, "loops are not supported"),
    "condition": ({"triggerPolicy": {"condition": "a == b"}}, "conditions are not supported"),
    "exit handler": (
        {"triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}},
        "exit handlers and tasks that ignore failures are not supported",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_sandbox_cannot_run_is_refused_with_the_tasks_name(plan_of, pipeline, what):
    change, message = REFUSED[what]
    document = pipeline()
    work(document).update(copy.deepcopy(change))
    with pytest.raises(PipelineError, match=rf"task 'work' \(root\.dag\.tasks\.work\): {message}"):
        plan_of(document)


def test_a_refusal_inside_a_nested_dag_names_the_whole_path(plan_of, pipeline):
    document = nested(pipeline)
    document["components"]["comp-outer"]["dag"]["tasks"]["inner"]["triggerPolicy"] = {"condition": "x"}
    with pytest.raises(PipelineError, match=r"task 'outer\.inner'"):
        plan_of(document)


@pytest.mark.parametrize("kind", ["importer", "resolver", "customJob"])
def test_executors_that_are_no_containers_are_refused(plan_of, pipeline, kind):
    document = pipeline()
    document["deploymentSpec"]["executors"]["exec-work"] = {kind: {}}
    with pytest.raises(PipelineError, match=rf"task 'work': the sandbox runs no {kind}"):
        plan_of(document)


def broken(pipeline, change):
    document = pipeline()
    change(document)
    return document


BROKEN = {
    "no tasks": (lambda d: d["root"]["dag"].update(tasks={}), r"root\.dag: there is no task in it"),
    "no component": (
        lambda d: work(d).update(componentRef={"name": "gone"}),
        r"root\.dag\.tasks\.work\.componentRef\.name: there is no component 'gone'",
    ),
    "no executor": (
        lambda d: d["deploymentSpec"].update(executors={}),
        r"components\.comp-work\.executorLabel: there is no executor 'exec-work'",
    ),
    "no command": (lambda d: container(d).pop("command"), "a command is missing"),
    "command of numbers": (
        lambda d: container(d).update(command=[1]),
        r"container\.command\[0\]: expected text, got an integer",
    ),
    "input not given": (
        lambda d: work(d).pop("inputs"),
        r"root\.dag\.tasks\.work: the input 'n' of components\.comp-work is not given",
    ),
    "unknown input": (
        lambda d: work(d)["inputs"]["parameters"].update(x={"runtimeValue": {"constant": 1}}),
        r"inputs\.parameters\.x: components\.comp-work has no input of this name",
    ),
    "unknown pipeline parameter": (
        lambda d: work(d)["inputs"]["parameters"].update(n={"componentInputParameter": "z"}),
        "the pipeline has no parameter 'z'",
    ),
    "unknown neighbour": (
        lambda d: work(d).update(dependentTasks=["gone"]),
        r"dependentTasks\[0\]: there is no task 'gone'",
    ),
    "unknown type": (
        lambda d: d["root"]["inputDefinitions"]["parameters"]["n"].update(parameterType="COLOUR"),
        r"root\.inputDefinitions\.parameters\.n: the sandbox knows no parameter type 'COLOUR'",
    ),
    "mistyped constant": (
        lambda d: (
            d["components"]["comp-work"]["inputDefinitions"]["parameters"]["n"].update(
                parameterType="NUMBER_INTEGER"
            ),
            work(d)["inputs"]["parameters"].update(n={"runtimeValue": {"constant": "five"}}),
        ),
        r"inputs\.parameters\.n: expected a whole number",
    ),
    "unknown placeholder": (
        lambda d: container(d).update(args=["{{$.pipeline_job_name}}"]),
        r"container\.args\[0\]: the sandbox does not know the placeholder \{\{\$\.pipeline_job_name\}\}",
    ),
    "placeholder of no input": (
        lambda d: container(d).update(args=["{{$.inputs.parameters['z']}}"]),
        r"container\.args\[0\]: inputs has no parameter 'z'",
    ),
    "a name that is a path": (
        lambda d: d["components"]["comp-work"]["outputDefinitions"]["parameters"].update(
            {"../evil": {"parameterType": "STRING"}}
        ),
        r"the name '\.\./evil' holds more than letters",
    ),
    "a list for a mapping": (lambda d: d.update(components=[]), "components: expected a mapping, got a list"),
    "output of nobody": (
        lambda d: d["root"]["dag"].update(
            outputs={
                "parameters": {
                    "r": {"valueFromParameter": {"producerSubtask": "no", "outputParameterKey": "out"}}
                }
            }
        ),
        "there is no task 'no' with an output parameter 'out'",
    ),
    "artifact for the pipeline": (
        lambda d: d["root"]["inputDefinitions"].update(artifacts={"data": ARTIFACT}),
        "the pipeline wants the artifact 'data'",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_pipeline_is_refused_with_the_place(plan_of, pipeline, what):
    change, message = BROKEN[what]
    with pytest.raises(PipelineError, match=message):
        plan_of(broken(pipeline, change))


def test_tasks_that_wait_for_each_other_are_refused(plan_of, pipeline):
    document = pipeline()
    add(document, "other", after=["work"])
    work(document)["dependentTasks"] = ["other"]
    with pytest.raises(PipelineError, match=r"root\.dag: its tasks wait for each other"):
        plan_of(document)


def test_a_dag_that_holds_itself_is_refused(plan_of, pipeline):
    document = pipeline()
    document["components"]["comp-loop"] = {
        "dag": {"tasks": {"again": {"componentRef": {"name": "comp-loop"}}}}
    }
    document["root"]["dag"]["tasks"]["start"] = {"componentRef": {"name": "comp-loop"}}
    with pytest.raises(PipelineError, match="nested more than"):
        plan_of(document)
