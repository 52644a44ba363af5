import json

import pytest
from step_changes import MISFITS, SEMANTIC

from memopod.steps import read_step
from memopod.steps.explain import causes, distance, nearest, split
from memopod.steps.key import base_key

FIRST_CAUSES = {
    # Kind of change (see the catalogue) -> what is named first.
    "image": "image of main changed",
    "image of the template only": "the template's container, in what the Pod does not show changed",
    "image of the Pod only (podSpecPatch)": "image of main changed",
    "command": "command of main changed",
    "args": "arguments of main changed",
    "number of arguments": "arguments of main changed",
    "working directory": "workingDir of main added",
    "literal environment": "environment of main changed",
    "environment from a Secret": "environment of main changed",
    "environment from a ConfigMap": "environment of main changed",
    "all of a Secret": "environment from ConfigMaps or Secrets of main changed",
    "whether the result is taken": "whether the step's result is used changed",
    "user of the container": "securityContext of main added",
    "user of the Pod": "securityContext of the Pod changed",
    "service account": "serviceAccountName of the Pod changed",
    "host network": "hostNetwork of the Pod added",
    "host aliases": "hostAliases of the Pod added",
    "runtime class": "runtimeClassName of the Pod added",
    "image pull secrets": "imagePullSecrets of the Pod added",
    "a Secret mounted": "sources of the mounted volumes changed",
    "a ConfigMap mounted": "sources of the mounted volumes changed",
    "an input artifact mounted once more": "volume mounts of main changed",
    "a block device": "block devices of main changed",
    "a sidecar": "container proxy-1 added",
    "an init container": "init container prep-1 added",
    "name of an input parameter": "input parameters changed",
    "value of an input parameter": "input parameters changed",
    "path of an input artifact": "declared input artifacts changed",
    "a raw artifact": "declared input artifacts changed",
    "an output artifact": "declared output artifacts changed",
    "archive of an output": "declared output artifacts changed",
    "global name of an output": "declared output parameters changed",
    "default of an output": "declared output parameters changed",
    "path of an output parameter": "declared output parameters changed",
    "a template field that nobody knows yet": "novelty1 of the template added",
    "a Pod field that nobody knows yet": "novelty1 of the Pod added",
    "a container field that nobody knows yet": "novelty of main added",
    "field imagePullPolicy of the container": "imagePullPolicy of main changed",
    "field restartPolicy of the Pod": "restartPolicy of the Pod changed",
    "source of a recorded script": "script source of main changed",
    "graph of a container set": "graph of the container set changed",
    "salt": "salt (annotation memopod.io/salt) changed",
}


def components(pod):
    return base_key(read_step(pod)).components


def changed(sample, version, kind):
    """Components of a recorded step before and after a change of that kind."""
    for name in ("parameters.make", "script.s", "containerset"):
        pod = sample(version, f"{name}.pod")
        before = components(pod)
        try:
            SEMANTIC[kind](pod, 1)
        except MISFITS:
            continue
        return before, components(pod)
    raise AssertionError(f"{kind}: fits no recording")


@pytest.mark.parametrize("version", ["3.5.15", "4.1.2"])
@pytest.mark.parametrize("kind", FIRST_CAUSES)
def test_the_first_cause_is_what_was_changed(sample, version, kind):
    assert causes(*changed(sample, version, kind))[0].sentence == FIRST_CAUSES[kind]


@pytest.mark.parametrize("kind", SEMANTIC)
def test_every_change_has_a_cause_and_none_is_said_twice(sample, kind):
    before, after = changed(sample, "4.1.2", kind)
    subjects = [cause.subject for cause in causes(before, after)]
    assert subjects
    assert len(set(subjects)) == len(subjects)
    assert causes(after, after) == []


def edited(sample, edit, version="4.1.2", name="parameters.use"):
    """Components before and after an edit of the manifest: Argo writes it into the template and the Pod."""
    pod = sample(version, f"{name}.pod")
    return components(pod), components(json.loads(edit(json.dumps(pod))))


def test_a_change_of_the_manifest_is_named_where_it_shows_and_not_again_for_the_template(sample):
    before, after = edited(sample, lambda text: text.replace("python:3.9", "python:3.12"))
    assert {"template.container", "run.0.main.image"} <= {n for n in after if after[n] != before.get(n)}
    assert [cause.sentence for cause in causes(before, after)] == ["image of main changed"]


def test_another_value_of_a_parameter_is_named_before_the_command_that_holds_it(sample):
    before, after = edited(sample, lambda text: text.replace("hello", "goodbye"), version="3.5.15")
    assert [c.subject for c in causes(before, after)] == ["input parameters", "command of main"]


KNOWN = {"configmap.a.b": "1", "input.data": "1", "ignored-inputs": "1", "offloaded.args": "1"}


@pytest.mark.parametrize(
    ("moved", "sentences"),
    [
        ({"configmap.a.b": "2"}, ["content of ConfigMap a.b changed"]),
        ({"input.data": "2"}, ["input artifact data changed"]),
        ({"offloaded.args": "2"}, ["arguments, which Argo keeps in a ConfigMap changed"]),
        (
            {"ignored-inputs": "2", "input.data": None},
            ["ignored inputs (annotation memopod.io/ignore-inputs) changed"],
        ),
        ({"configmap.a.b": None}, ["content of ConfigMap a.b removed"]),
    ],
)
def test_what_was_asked_for_is_named_too(moved, sentences):
    new = {name: digest for name, digest in {**KNOWN, **moved}.items() if digest}
    assert [cause.sentence for cause in causes(KNOWN, new)] == sentences


def test_containers_are_matched_by_name_and_their_order_is_a_cause_of_its_own():
    old = {"run.0.a.image": "1", "run.1.b.image": "2"}
    assert causes(old, {"run.0.a.image": "1", "run.1.x.image": "3", "run.2.b.image": "2"}) == causes(
        {}, {"run.1.x.image": "3"}
    )
    [cause] = causes(old, {"run.0.b.image": "2", "run.1.a.image": "1"})
    assert cause.sentence == "order of the containers changed"


def test_the_nearest_is_what_differs_least_and_of_equals_the_first():
    new = {"a": "1", "b": "1", "c": "1"}
    far, near, equal = {"a": "2", "b": "2"}, {**new, "c": "2"}, {**new, "b": "2"}
    assert nearest([far, near, equal], new) == 1
    assert nearest([], new) is None
    assert (distance(new, new), distance(near, new), distance(far, new)) == (0, 1, 3)


def test_names_are_split_where_they_were_joined():
    assert split("run.1.main.image") == ("run", "1", "main", "image")
    assert split(r"template.a\.b.c\\") == ("template", "a.b", "c\\")
    assert split("configmap.a.b") == ("configmap", "a.b")
