import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from cache_server.entries import Entry, open_entries
from cache_server.entries.candidates import InDatabase
from cache_server.preview import REUSE, RUN, UNKNOWN, Preview
from memopod.steps import names, read_step
from memopod.steps.key import KEY_VERSION, base_components, component_digest
from memopod.steps.manifest import BadManifest, Known, planned_steps
from memopod.steps.outputs import read_outputs, select_declared

VERSIONS = ["3.4.17", "3.5.15", "3.7.18", "4.0.10", "4.1.2"]
NOW = datetime(2026, 11, 24, tzinfo=UTC)
STEPS = {
    # Recorded workflow -> its recorded steps, and what each would do if run again.
    "parameters": {"make": REUSE, "use": REUSE},
    "script": {"s": REUSE, "use": REUSE},
    "containerset": {"": REUSE},
    "fanout": {"one-0": REUSE},
    "retry": {"1": REUSE},
    "resource": {"": RUN},
    "rich": {"": RUN},
}


@pytest.fixture
async def entries(tmp_path):
    async with open_entries(f"sqlite:///{tmp_path / 'cache.db'}") as opened:
        yield opened


def entry_of(pod, result, finished=NOW):
    step = read_step(pod)
    known = {n: component_digest(v) for n, v in base_components(step).items()}
    outputs = read_outputs((result or {}).get("outputs") or {}, (step.template or {}).get("archiveLocation"))
    return Entry(
        id=uuid.uuid4().hex, namespace="kubeflow", key=uuid.uuid4().hex, key_version=KEY_VERSION,
        components=known, template_name=step.template_name, workflow=step.workflow,
        workflow_uid=step.workflow_uid, node_id=step.node_id, pod_name=step.pod_name,
        pod_uid=step.pod_uid, image_id="i", outputs=select_declared(step, outputs), execution_id=None,
        started_at=finished, finished_at=finished, recorded_at=finished,
    )  # fmt: skip


@pytest.fixture
def record(sample, entries):
    """Make entries of a recorded workflow's steps, as if each had been recorded."""

    async def record(version, name, steps):
        for step in steps:
            recording = ".".join(filter(None, (name, step)))
            pod = sample(version, f"{recording}.pod")
            try:
                result = sample(version, f"{recording}.taskresult")
            except FileNotFoundError:
                result = None
            assert await entries.put(entry_of(pod, result))

    return record


async def preview(entries, manifest, **parameters):
    return await Preview(InDatabase(entries.database), "kubeflow", now=NOW).judge(
        planned_steps(manifest, parameters)
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", STEPS)
async def test_a_recorded_workflow_would_be_reused_where_its_steps_can_be(
    sample, entries, record, version, name
):
    if set(STEPS[name].values()) == {REUSE}:
        await record(version, name, STEPS[name])
    verdicts = await preview(entries, sample(version, f"{name}.workflow"))
    told = {verdict.path: (verdict.verdict, verdict.why) for verdict in verdicts}
    assert {verdict for verdict, _ in told.values()} == set(STEPS[name].values()), told


async def test_what_depends_on_a_step_that_would_run_is_unknown_until_it_ran(sample, entries, record):
    await record("4.1.2", "parameters", ["use"])
    make, use = await preview(entries, sample("4.1.2", "parameters.workflow"))
    assert (make.verdict, make.why) == (RUN, "no entry of this template stands")
    assert (use.verdict, use.why) == (UNKNOWN, f"unknown until {make.path} ran")


def changed(manifest, old, new):
    text = json.dumps(manifest)
    assert old in text
    return json.loads(text.replace(old, new))


async def test_a_change_of_the_manifest_is_named(sample, entries, record):
    await record("4.1.2", "parameters", ["make", "use"])
    manifest = changed(sample("4.1.2", "parameters.workflow"), "python:3.9", "python:3.12")
    verdict = (await preview(entries, manifest))[0]
    assert (verdict.verdict, verdict.why) == (RUN, "image of main changed")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t["metadata"]["labels"].clear(), "opt-in"),
        (lambda t: t["metadata"].update(annotations={names.BYPASS: "true"}), "asks to run"),
        (lambda t: t["metadata"].update(annotations={names.MAX_STALENESS: "P0D"}), "zero"),
        (lambda t: t["metadata"].update(annotations={names.MAX_STALENESS: "PT1S"}), "older"),
        (lambda t: t["metadata"].update(annotations={names.SALT: "x"}), "salt"),
        (lambda t: t.update(daemon=True), "daemon"),
        (lambda t: t["container"].update(args=["{{workflow.name}}"]), "differs in each"),
        (lambda t: t["container"].update(args=["{{=sprig.now()}}"]), "not known before a run"),
        (
            lambda t: (
                t.update(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]),
                t["container"].update(volumeMounts=[{"name": "v", "mountPath": "/v"}]),
            ),
            "volume",
        ),
        (lambda t: t.update(sidecars=[{"name": "s", "image": "i"}]), "sidecars"),
        (lambda t: t["outputs"]["parameters"][0].update(globalName="g"), "output parameters"),
        (lambda t: t["container"].update(env=[{"name": "A", "value": "1"}]), "environment"),
    ],
)
async def test_why_a_step_would_run(sample, entries, record, change, reason):
    await record("4.1.2", "parameters", ["make", "use"])
    manifest = sample("4.1.2", "parameters.workflow")
    template = next(t for t in manifest["spec"]["templates"] if t["name"] == "make")
    change(template)
    steps = planned_steps(manifest, {})
    make = (
        await Preview(InDatabase(entries.database), "kubeflow", now=NOW + timedelta(hours=1)).judge(steps)
    )[0]
    assert make.verdict != REUSE
    assert reason in make.why


def workflow(*templates, arguments=None, **spec):
    return {
        "kind": "Workflow",
        "spec": {"entrypoint": "main", "templates": list(templates), "arguments": arguments or {}, **spec},
    }


def leaf(name, *args):
    return {
        "name": name,
        "metadata": {"labels": {names.OPT_IN_LABEL: "true"}},
        "inputs": {"parameters": [{"name": "x", "default": "d"}]},
        "container": {"image": "i", "command": ["c"], "args": list(args)},
    }


def collected(manifest, **parameters):
    """The steps that a manifest asks for, of which none is known to have run."""
    steps, found = planned_steps(manifest, parameters), []
    try:
        step = next(steps)
        while True:
            found.append(step)
            step = steps.send(Known(unknown=f"unknown until {step.path} ran"))
    except StopIteration:
        return found


def test_parameters_are_filled_in_from_arguments_defaults_and_the_command_line():
    manifest = workflow(
        {"name": "main", "steps": [[{"name": "a", "template": "t", "arguments": {
            "parameters": [{"name": "x", "value": "{{workflow.parameters.p}}-{{item.k}}"}]},
            "withItems": [{"k": 1}, {"k": "two"}]}], [{"name": "b", "template": "t"}]]},
        leaf("t", "{{inputs.parameters.x}}"),
        arguments={"parameters": [{"name": "p", "value": "v"}]},
    )  # fmt: skip
    args = {step.path: step.template["container"]["args"] for step in collected(manifest)}
    assert args == {"main.a(0)": ["v-1"], "main.a(1)": ["v-two"], "main.b": ["d"]}
    assert collected(manifest, p="w")[0].template["container"]["args"] == ["w-1"]
    with pytest.raises(BadManifest, match="no parameter 'q'; it has p"):
        collected(manifest, q="1")


def test_tasks_come_in_the_order_of_their_dependencies():
    tasks = [
        {"name": "c", "template": "t", "depends": "a.Succeeded && b"},
        {"name": "b", "template": "t", "dependencies": ["a"], "when": "{{x}} == 1"},
        {"name": "a", "template": "t"},
    ]
    found = collected(workflow({"name": "main", "dag": {"tasks": tasks}}, leaf("t")))
    assert [(step.path, step.conditional) for step in found] == [
        ("main.a", False),
        ("main.b", True),
        ("main.c", False),
    ]
    tasks[2]["dependencies"] = ["c"]
    with pytest.raises(BadManifest, match="wait for each other"):
        collected(workflow({"name": "main", "dag": {"tasks": tasks}}, leaf("t")))


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ({"templateRef": {"name": "w", "template": "t"}}, "templateRef is not followed"),
        ({"template": "absent"}, "its template absent is not in the manifest"),
        ({"template": "t", "withParam": "[1]"}, "withParam is not followed"),
    ],
)
def test_what_is_not_followed_is_said(member, reason):
    [step] = collected(workflow({"name": "main", "steps": [[{"name": "a", **member}]]}, leaf("t")))
    assert (step.template, step.reason) == (None, reason)


def test_templates_that_call_themselves_end():
    found = collected(workflow({"name": "main", "steps": [[{"name": "a", "template": "main"}]]}))
    assert [step.reason for step in found] == ["templates call each other too deeply"]


KEEPS_PARAMETERS = ["3.4.17", "3.5.15"]


def with_unused_parameter(workflow, **parameter):
    """The recorded workflow, whose first step does not use its parameter where anybody else could see it."""
    make = next(t for t in workflow["spec"]["templates"] if t["name"] == "make")
    make["container"]["args"] = ["echo hello > /tmp/o"]
    main = next(t for t in workflow["spec"]["templates"] if t["name"] == "main")
    main["dag"]["tasks"][0].pop("arguments")
    make["inputs"]["parameters"] = [{"name": "message", **parameter}]
    return workflow


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("parameter", "kept"),
    [
        ({"value": "hello"}, (REUSE, "ran")),
        ({"value": "other"}, (RUN, "input parameters changed")),
        (
            {"valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
            (UNKNOWN, "cannot tell: the parameter"),
        ),
    ],
    ids=["same", "other", "not known"],
)
async def test_an_input_parameter_counts_where_argo_keeps_it_in_the_template(
    sample, entries, record, version, parameter, kept
):
    await record(version, "parameters", ["make"])
    workflow = with_unused_parameter(sample(version, "parameters.workflow"), **parameter)
    make = (await preview(entries, workflow))[0]
    verdict, why = kept if version in KEEPS_PARAMETERS else (REUSE, "ran")
    assert (make.verdict, why in make.why) == (verdict, True), make.why


@pytest.mark.parametrize(("before", "now"), [("3.4.17", "4.1.2"), ("4.1.2", "3.4.17")])
async def test_only_what_the_argo_of_today_made_can_be_reused(sample, entries, before, now):
    def at(version, finished):
        return entry_of(
            sample(version, "parameters.make.pod"), sample(version, "parameters.make.taskresult"), finished
        )

    await entries.put(at(before, NOW - timedelta(days=1)))
    newest = at(now, NOW)
    await entries.put(newest)
    make = (await preview(entries, sample(now, "parameters.workflow")))[0]
    assert (make.verdict, make.entry.id) == (REUSE, newest.id)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", STEPS)
async def test_a_step_that_would_be_reused_has_the_parts_that_admission_gave(
    sample, entries, record, version, name
):
    for step in (step for step, verdict in STEPS[name].items() if verdict == REUSE):
        await record(version, name, STEPS[name])
        recording = ".".join(filter(None, (name, step)))
        admitted = read_step(sample(version, f"{recording}.admission")["request"]["object"])
        parts = {n: component_digest(v) for n, v in base_components(admitted).items()}
        verdicts = await preview(entries, sample(version, f"{name}.workflow"))
        assert parts in [dict(verdict.entry.components) for verdict in verdicts if verdict.verdict == REUSE]
