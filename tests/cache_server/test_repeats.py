"""What is remembered of specs by their text never says anything else than reading them does."""

import copy
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_changes import MISFITS, NOT_SEMANTIC, SEMANTIC
from step_edits import main, set_env, template

from cache_server.admission import Admission, Policy, admit, run_of
from cache_server.review import PodText
from memopod.steps import names, read_step
from memopod.steps.key import KeyRules, base_digest
from memopod.steps.repeats import Repeats

SAMPLES = Path(__file__).parents[1] / "samples"
RECORDED = {
    str(path.relative_to(SAMPLES)): json.loads(path.read_text())["request"]["object"]
    for path in sorted(SAMPLES.glob("*/*.admission.json"))
}
CHANGES = {**SEMANTIC, **NOT_SEMANTIC}
CREATOR = "system:serviceaccount:argo:argo"
POLICY = Policy(secret=b"s" * 32, trusted_creators=frozenset({CREATOR}), hold_seconds=30.0)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
GIVEN = {"namespace": "kubeflow", "username": CREATOR, "now": NOW, "controller_alive": True}
MAKE = RECORDED["argo-4.1.2/parameters.make.admission.json"]
BIG = RECORDED["argo-4.1.2/offloaded.admission.json"]
USE = RECORDED["argo-4.1.2/artifacts.use.admission.json"]


def text_of(pod):
    return msgspec.json.decode(msgspec.json.encode(pod), type=PodText)


def another_run(pod, n):
    """The Pod of another run of the step: other names, ids, trace and token, wherever they are written."""
    metadata = pod["metadata"]
    owner = metadata["ownerReferences"][0]
    text = json.dumps(pod)
    for old, new in (
        (metadata["name"], f"again-{n}-step-{n}000"),
        (owner["name"], f"again-{n}"),
        (owner["uid"], f"uid-{n}"),
        (metadata["annotations"].get("workflows.argoproj.io/trace-id"), f"{n:032x}"),
    ):
        text = text.replace(old, new) if old else text
    return json.loads(re.sub(r"kube-api-access-\w+", f"kube-api-access-r{n}", text))


def outcome(judge):
    """A verdict, or the kind of error that keeps it from being made."""
    try:
        return judge()
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        return type(error)


def same(admission, pod):
    """Whether the Pod gets the verdict that it would get from one who remembers nothing."""
    given_to = {**GIVEN, "namespace": pod.metadata.namespace or "kubeflow"}
    read = outcome(lambda: admit(pod.decoded(), policy=POLICY, **given_to))
    return outcome(lambda: admission.admit(pod, **given_to)) == read


def is_remembered(repeats, pod):
    text = text_of(pod)
    run = run_of(text.metadata, "kubeflow")
    return (
        repeats.look(bytes(text.spec), run.pod_name, run.workflow, text.metadata.annotations).told is not None
    )


def learned(pod, rules=POLICY.rules):
    """A memory that was shown two runs of a step."""
    repeats = Repeats(rules)
    for n in (1, 2):
        run = another_run(pod, n)
        text = text_of(run)
        sight = repeats.look(
            bytes(text.spec),
            text.metadata.name,
            run_of(text.metadata, "kubeflow").workflow,
            text.metadata.annotations,
        )
        repeats.learn(bytes(text.spec), sight, read_step(run, namespace="kubeflow"))
    return repeats


SHARED = Admission(POLICY)


@pytest.mark.parametrize("path", RECORDED)
def test_each_run_of_a_recorded_step_gets_the_verdict_that_reading_it_gives(path):
    for n in range(4):
        pod = RECORDED[path]
        assert same(SHARED, text_of(another_run(pod, n) if pod["metadata"].get("ownerReferences") else pod))


@pytest.mark.parametrize("kind", CHANGES)
def test_each_change_of_a_remembered_step_gets_the_verdict_that_reading_it_gives(kind):
    admission = Admission(POLICY)
    for pod in (
        MAKE,
        RECORDED["argo-4.1.2/script.s.admission.json"],
        RECORDED["argo-4.1.2/containerset.admission.json"],
    ):
        for n in range(3):
            assert same(admission, text_of(another_run(pod, n)))
        for run, n in ((4, 1), (5, 1), (6, 1), (7, 2)):
            changed = another_run(pod, run)
            try:
                CHANGES[kind](changed, n)
            except MISFITS:
                continue
            assert same(admission, text_of(changed))


@settings(max_examples=150)
@given(
    path=st.sampled_from([path for path, pod in RECORDED.items() if pod["metadata"].get("ownerReferences")]),
    kinds=st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 3)), max_size=3),
    runs=st.lists(st.integers(0, 9), min_size=3, max_size=4),
)
def test_whatever_changes_in_whatever_order_the_verdict_is_the_one_of_reading(path, kinds, runs):
    for run in runs:
        pod = another_run(RECORDED[path], run)
        for kind, n in kinds:
            try:
                CHANGES[kind](pod, n)
            except MISFITS:
                continue
        assert same(SHARED, text_of(pod))


@settings(max_examples=300)
@given(data=st.data())
def test_a_spec_that_differs_in_some_bytes_is_never_taken_for_the_remembered_one(data):
    pod = text_of(data.draw(st.sampled_from([MAKE, USE, BIG])))
    for _ in range(3):
        assert same(SHARED, pod)
    spec = bytearray(bytes(pod.spec))
    start = data.draw(st.integers(0, len(spec) - 1))
    part = data.draw(
        st.sampled_from([b"", b"x", b'"', b"\\", b"\0", b"{", b"memopod-marker", b'","value":"', b"\xff"])
    )
    spec[start : start + data.draw(st.integers(0, 3))] = part
    changed = msgspec.structs.replace(pod, spec=msgspec.Raw(bytes(spec)))
    for _ in range(3):
        assert same(SHARED, changed)


@pytest.mark.parametrize("pod", [MAKE, USE, BIG], ids=["parameters", "artifacts", "offloaded"])
def test_the_third_run_of_a_step_is_not_read_any_more(pod):
    assert is_remembered(learned(pod), another_run(pod, 3))


def test_a_step_that_came_once_takes_no_room():
    repeats = Repeats(KeyRules())
    text = text_of(MAKE)
    repeats.learn(
        bytes(text.spec), repeats.look(bytes(text.spec), "p", "w", {}), read_step(MAKE, namespace="kubeflow")
    )
    assert not is_remembered(repeats, MAKE)


def like_a_variable_of_the_run(pod):
    """In a field that nobody knows: there it counts."""
    main(pod)["someday"] = [{"name": "ARGO_NODE_ID", "value": pod["metadata"]["name"]}]


def reads_its_labels(pod):
    set_env(pod, "L", {"valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}})


def reads_a_config_map_named_as_argos(pod):
    pod["spec"]["volumes"].append({"name": "argo-env-config", "configMap": {"name": "of-a-user"}})
    main(pod)["volumeMounts"].append({"name": "argo-env-config", "mountPath": "/config"})


def mounts_a_second_token(pod):
    pod["spec"]["volumes"].append({"name": "kube-api-access-other", "emptyDir": {}})
    main(pod)["volumeMounts"].append({"name": "kube-api-access-other", "mountPath": "/other"})


def takes_its_key_as_an_argument(pod):
    main(pod)["args"] = [f'{{"key":"{pod["metadata"]["ownerReferences"][0]["name"]}"}}']


@pytest.mark.parametrize(
    "odd",
    [like_a_variable_of_the_run, reads_its_labels, reads_a_config_map_named_as_argos, mounts_a_second_token,
     takes_its_key_as_an_argument],
)  # fmt: skip
def test_what_the_text_between_the_holes_cannot_tell_is_read_each_time(odd):
    pod = copy.deepcopy(MAKE)
    odd(pod)
    assert not is_remembered(learned(pod), another_run(pod, 2))
    admission = Admission(POLICY)
    for n in (1, 1, 1, 2, 3):
        assert same(admission, text_of(another_run(pod, n)))


def test_a_config_map_of_another_pods_name_is_not_what_argo_offloaded():
    admission = Admission(POLICY)
    for n in range(3):
        assert same(admission, text_of(another_run(BIG, n)))
    other = another_run(BIG, 3)
    other["metadata"]["name"] = "another-pod"
    assert same(admission, text_of(other))
    assert not is_remembered(admission._repeats, other)


def test_an_output_below_a_key_that_names_the_new_run_has_no_key():
    def keyed(pod):
        template(
            pod, lambda t: t["outputs"].update(artifacts=[{"name": "a", "s3": {"key": "of/late-run/a"}}])
        )

    pod = copy.deepcopy(MAKE)
    keyed(pod)
    admission = Admission(POLICY)
    for n in range(3):
        assert same(admission, text_of(another_run(pod, n)))
    late = another_run(pod, 3)
    late["metadata"]["name"] = "late-run"
    assert admission.admit(text_of(late), **GIVEN).reason == "output-key-names-run"


def test_a_run_whose_deadline_is_near_is_not_held_though_others_were():
    admission = Admission(POLICY)
    pod = copy.deepcopy(MAKE)
    for deadline, reason in [
        *[("2027-01-01T00:00:00Z", "held")] * 3,
        ("2026-01-01T00:00:10Z", "deadline-near"),
    ]:
        set_env(pod, names.ENV_DEADLINE, {"value": deadline})
        assert admission.admit(text_of(pod), **GIVEN).reason == reason


@pytest.mark.parametrize("name", ["marker", "memopod-marker", "mark"])
def test_a_value_that_looks_like_what_is_tried_in_its_place_counts(name):
    def run_of_workflow(workflow, value):
        pod = copy.deepcopy(MAKE)
        pod["metadata"]["ownerReferences"][0]["name"] = workflow
        main(pod)["args"] = [json.dumps({"key": value}, separators=(",", ":"))]
        return text_of(pod)

    admission = Admission(POLICY)
    for value in ("marker", "memopod-marker", "marker", "memopod-marker"):
        if name in value:
            assert same(admission, run_of_workflow(name, value))
    assert same(admission, run_of_workflow("other", "other"))


@pytest.mark.parametrize("mark", ["marker", "memopod-marker"])
def test_a_field_like_a_variable_of_the_run_counts_whatever_its_value(mark):
    def run_with(value):
        pod = copy.deepcopy(MAKE)
        # One of them stands where its number is the one in its value.
        main(pod)["someday"] = [{"name": "ARGO_NODE_ID", "value": value(n)} for n in range(50)]
        return text_of(pod)

    for shift in range(40):
        admission = Admission(POLICY)
        for _ in range(2):
            assert same(admission, run_with(lambda n, shift=shift: f"{mark}-{n + shift}"))
        assert same(admission, run_with(lambda n: f"other-{n}"))


def test_the_number_of_remembered_steps_is_bounded_the_last_used_ones_stay():
    repeats = Repeats(KeyRules(), entries=2)
    steps = []
    for number in range(3):
        pod = copy.deepcopy(MAKE)
        main(pod)["image"] = f"image:{number}"
        steps.append(pod)
    remember(repeats, steps[0])
    remember(repeats, steps[1])
    assert is_remembered(repeats, steps[0])
    remember(repeats, steps[2])
    assert [is_remembered(repeats, pod) for pod in steps] == [True, False, True]


def test_the_bytes_of_remembered_steps_are_bounded():
    size = len(bytes(text_of(MAKE).spec))
    repeats = Repeats(KeyRules(), size=size + 100)
    other = copy.deepcopy(MAKE)
    main(other)["image"] = "other"
    remember(repeats, MAKE)
    remember(repeats, other)
    assert (is_remembered(repeats, MAKE), is_remembered(repeats, other)) == (False, True)


def test_the_bytes_of_annotations_that_belong_to_what_is_remembered_are_bounded_too():
    repeats = Repeats(KeyRules(), size=len(bytes(text_of(MAKE).spec)) + 100_000)
    salted = copy.deepcopy(MAKE)
    salted["metadata"]["annotations"][names.SALT] = "s" * 200_000
    remember(repeats, salted)
    assert not is_remembered(repeats, salted)
    remember(repeats, MAKE)
    assert is_remembered(repeats, MAKE)


def remember(repeats, pod):
    text = text_of(pod)
    workflow = run_of(text.metadata, "kubeflow").workflow
    for _ in range(2):
        sight = repeats.look(bytes(text.spec), text.metadata.name, workflow, text.metadata.annotations)
        repeats.learn(bytes(text.spec), sight, read_step(pod, namespace="kubeflow"))


def test_what_is_remembered_is_the_key_under_the_clusters_rules():
    pod = copy.deepcopy(MAKE)
    pod["spec"]["containers"].append({"name": "mesh", "image": "mesh:1"})
    rules = KeyRules(ignored_containers=frozenset({"mesh"}))
    repeats = learned(pod, rules)
    text = text_of(another_run(pod, 4))
    told = repeats.look(bytes(text.spec), "p", "again-4", text.metadata.annotations).told
    assert told.digest == base_digest(read_step(pod, namespace="kubeflow"), rules)
