import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_changes import MISFITS, NOT_SEMANTIC, SEMANTIC
from step_edits import main, set_env, template, volume

from memopod.steps import names, read_step
from memopod.steps.components import own_command
from memopod.steps.framing import canonical
from memopod.steps.inputs import (
    config_map_content,
    config_maps,
    input_artifacts,
    offload_name,
    offloaded_arguments,
)
from memopod.steps.key import (
    KeyRules,
    Unkeyable,
    base_key,
    entry_key,
    evidence,
    names_run,
    with_template,
)

SAMPLES = Path(__file__).parents[1] / "samples"
BASE = json.loads((SAMPLES / "argo-4.1.2" / "parameters.make.admission.json").read_text())["request"][
    "object"
]
VERSIONS = ["3.4.17", "3.5.15", "3.7.18", "4.0.10", "4.1.2"]


def key_of(pod):
    return base_key(read_step(pod, namespace="kubeflow")).digest


def fitting(sample, kind, change, n=0):
    """A recorded Pod before and after a change of that kind, of the first recording that it fits."""
    for name in ("parameters.make", "script.s", "containerset", "artifacts.use"):
        pod = sample("4.1.2", f"{name}.admission")["request"]["object"]
        before = key_of(pod)
        try:
            change(pod, n)
        except MISFITS:
            continue
        return name, before, pod
    raise AssertionError(f"{kind}: fits no recording")


@pytest.mark.parametrize("kind", SEMANTIC)
def test_what_can_decide_the_result_changes_the_key(sample, kind):
    _, before, pod = fitting(sample, kind, SEMANTIC[kind])
    assert key_of(pod) != before


@pytest.mark.parametrize("kind", NOT_SEMANTIC)
def test_what_cannot_decide_the_result_leaves_the_key(sample, kind):
    _, before, pod = fitting(sample, kind, NOT_SEMANTIC[kind])
    assert key_of(pod) == before


def test_different_changes_give_different_keys(sample):
    keys = {}
    for kind, change in SEMANTIC.items():
        name, _, pod = fitting(sample, kind, change)
        keys.setdefault((name, key_of(pod)), []).append(kind)
    twins = [kinds for kinds in keys.values() if len(kinds) > 1]
    assert twins == []


def fitting_kinds(name):
    kinds = []
    for kind, change in {**SEMANTIC, **NOT_SEMANTIC}.items():
        try:
            change(copy.deepcopy(RECORDED[name]), 1)
        except MISFITS:
            continue
        kinds.append(kind)
    return kinds


RECORDED = {
    f"{version} {step}": json.loads((SAMPLES / f"argo-{version}" / f"{step}.admission.json").read_text())[
        "request"
    ]["object"]
    for version in ("3.5.15", "4.1.2")
    for step in ("parameters.make", "script.s", "containerset", "artifacts.use")
}
KINDS = {name: fitting_kinds(name) for name in RECORDED}


@settings(max_examples=150)
@given(data=st.data())
def test_of_any_changes_the_semantic_ones_alone_decide_the_key(data):
    name = data.draw(st.sampled_from(sorted(RECORDED)))
    changes = data.draw(
        st.lists(st.tuples(st.sampled_from(KINDS[name]), st.integers(0, 10**6)), min_size=1, max_size=6)
    )
    changed, decisive = copy.deepcopy(RECORDED[name]), copy.deepcopy(RECORDED[name])
    for kind, n in changes:
        {**SEMANTIC, **NOT_SEMANTIC}[kind](changed, n)
        if kind in SEMANTIC:
            SEMANTIC[kind](decisive, n)
    assert key_of(changed) == key_of(decisive)
    assert (key_of(changed) == key_of(RECORDED[name])) == (decisive == RECORDED[name])


@settings(max_examples=150)
@given(data=st.data(), kind=st.sampled_from(sorted(SEMANTIC)))
def test_two_changes_of_one_kind_share_a_key_only_if_they_are_one_change(data, kind):
    name = data.draw(st.sampled_from([name for name in sorted(RECORDED) if kind in KINDS[name]]))
    first, second = data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 10**6))
    pods = copy.deepcopy(RECORDED[name]), copy.deepcopy(RECORDED[name])
    SEMANTIC[kind](pods[0], first)
    SEMANTIC[kind](pods[1], second)
    assert (key_of(pods[0]) == key_of(pods[1])) == (content_of(pods[0]) == content_of(pods[1]))


def content_of(pod):
    """A Pod's text, where that of its template says no more than its value does."""
    pod = copy.deepcopy(pod)
    template(pod, lambda t: None)
    return json.dumps(pod, sort_keys=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("step", ["make", "use"])
def test_the_same_workflow_recorded_twice_has_equal_keys(sample, version, step):
    first = sample(version, f"parameters.{step}.admission")["request"]["object"]
    again = sample(version, f"held.{step}.admission")["request"]["object"]
    assert first["metadata"]["name"] != again["metadata"]["name"]
    assert key_of(first) == key_of(again)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("step", ["parameters.make", "artifacts.use", "script.s", "containerset"])
def test_a_pod_has_the_same_key_before_and_after_it_ran(sample, version, step):
    admitted = sample(version, f"{step}.admission")["request"]["object"]
    assert key_of(admitted) == key_of(sample(version, f"{step}.pod"))


@pytest.mark.parametrize("version", VERSIONS)
def test_attempts_of_one_step_have_equal_keys(sample, version):
    assert key_of(sample(version, "retry.0.pod")) == key_of(sample(version, "retry.1.pod"))


@pytest.mark.parametrize("version", ["3.7.18", "4.1.2"])
def test_items_of_the_same_content_have_equal_keys(sample, version):
    assert len({key_of(sample(version, f"fanout.one-{item}.pod")) for item in range(3)}) == 1


def moved(first, second):
    """Names of the components that differ between the base keys of two Pods."""
    old, new = base_key(read_step(first)).components, base_key(read_step(second)).components
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


BETWEEN_VERSIONS = {
    # (older, newer) -> what Argo writes elsewhere from then on: in the template of a step with input
    # parameters, and of one that is offloaded.
    ("3.4.17", "3.5.15"): (set(), set()),
    ("3.5.15", "3.7.18"): (
        {"template.inputs", "template.inputs.parameters"},
        {
            *("run.0.main.args", "template.container", "template.inputs", "template.outputs"),
            "template.offloaded",
        },
    ),
    ("3.7.18", "4.0.10"): (set(), set()),
    ("4.0.10", "4.1.2"): (set(), set()),
}


@pytest.mark.parametrize("versions", BETWEEN_VERSIONS)
def test_between_versions_only_what_argo_writes_elsewhere_moves(sample, versions):
    with_inputs, offloaded = BETWEEN_VERSIONS[versions]

    def between(name):
        return moved(*(sample(version, f"{name}.pod") for version in versions))

    for name in ("parameters.make", "parameters.use", "script.use"):
        assert between(name) == with_inputs, name
    for name in ("script.s", "containerset", "artifacts.use", "fanout.one-0", "retry.1"):
        assert between(name) == set(), name
    assert between("offloaded") == offloaded


def test_without_an_init_container_a_step_is_another_one(sample):
    # Argo's programs come with an image that is mounted, and that counts as any other.
    with_init, without = sample("4.1.2", "parameters.use.pod"), sample("4.1.2", "initless.use.pod")
    assert moved(with_init, without) == {"run.0.main.volumeMounts", "volumes"}


def test_two_runs_of_a_kubeflow_v2_step_differ_where_its_run_is_named(sample):
    # Not held, whatever its labels: its command line has the ids of run and execution.
    first, again = sample("4.1.2", "kfp-v2.executor.pod"), sample("4.1.2", "kfp-v2-again.executor.pod")
    assert moved(first, again) == {"run.1.main.command"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resource", "template-resource"),
        ("memoize", "template-memoized"),
        ("rich", "volume"),
        ("artifacts.make", "output-key-names-run"),
    ],
)
def test_a_step_whose_result_no_key_can_hold_has_none(sample, name, reason):
    with pytest.raises(Unkeyable) as error:
        key_of(sample("4.1.2", f"{name}.pod"))
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "source",
    [
        {"persistentVolumeClaim": {"claimName": "c", "readOnly": True}},
        {"hostPath": {"path": "/data"}},
        {"nfs": {"server": "s", "path": "/"}},
        {"csi": {"driver": "d"}},
        {"ephemeral": {"volumeClaimTemplate": {"spec": {"storageClassName": "local"}}}},
        {"somethingNew": {}},
    ],
)
def test_a_mounted_volume_of_unknown_content_means_no_key_unless_allowed(make_pod, source):
    pod = make_pod()
    volume(pod, source)
    with pytest.raises(Unkeyable, match="volume"):
        key_of(pod)
    pod["metadata"]["annotations"][names.ALLOW_VOLUMES] = "true"
    assert key_of(pod) != key_of(make_pod())


def test_a_claim_named_as_one_of_argos_volumes_is_still_a_claim(make_pod):
    pod = make_pod()
    volume(pod, {"persistentVolumeClaim": {"claimName": "c"}}, name="input-artifacts")
    with pytest.raises(Unkeyable, match="volume"):
        key_of(pod)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"daemon": True}, "template-daemon"),
        ({"resource": {"action": "create"}}, "template-resource"),
        ({"memoize": {"key": "k"}}, "template-memoized"),
        ({"http": {"url": "u"}, "container": None}, "template-kind"),
        ({"plugin": {"p": {}}, "container": None}, "template-kind"),
        ({"data": {"source": {}}, "container": None}, "template-kind"),
    ],
)
def test_templates_that_do_not_end_or_do_not_run_here_have_no_key(make_pod, change, reason):
    pod = make_pod()
    template(pod, lambda t: t.update(change))
    with pytest.raises(Unkeyable) as error:
        key_of(pod)
    assert error.value.reason == reason


def test_sidecars_that_a_cluster_ignores_are_no_part_of_the_key(make_pod):
    pod = make_pod()
    pod["spec"]["containers"].append({"name": "istio-proxy", "image": "istio:1"})
    rules = KeyRules(ignored_containers=frozenset({"istio-proxy"}))
    assert base_key(read_step(pod), rules).digest == key_of(make_pod())


@pytest.mark.parametrize("name", ["supervisor", "init", "wait"])
def test_a_users_container_counts_whatever_its_name(make_pod, name):
    def with_sidecar(image):
        pod = make_pod()
        wrapped = ["/var/run/argo/argoexec", "emissary", "--", "serve"]
        pod["spec"]["containers"] = [c for c in pod["spec"]["containers"] if c["name"] != name]
        pod["spec"]["containers"].append({"name": name, "image": image, "command": wrapped})
        return key_of(pod)

    assert with_sidecar("mine:1") != with_sidecar("mine:2")


def test_a_users_variable_counts_whatever_its_name(make_pod):
    def with_variable(value):
        pod = make_pod()
        set_env(pod, "ARGO_MODE", {"value": value})
        return key_of(pod)

    assert with_variable("fast") != with_variable("slow")

    def with_label(value):
        pod = make_pod()
        pod["metadata"]["labels"]["tier"] = value
        set_env(pod, "ARGO_TIER", {"valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['tier']"}}})
        return key_of(pod)

    assert with_label("gold") != with_label("silver")


def test_who_reads_its_resources_gets_the_pods_where_its_own_say_nothing(make_pod):
    def with_limit(cpus):
        pod = make_pod()
        pod["spec"]["resources"] = {"limits": {"cpu": cpus}}
        set_env(pod, "CPUS", {"valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}})
        return key_of(pod)

    assert with_limit("1") != with_limit("2")


@pytest.mark.parametrize("field", ["labels", "annotations"])
def test_who_reads_all_labels_or_annotations_reads_all_but_its_runs(make_pod, field):
    def with_entry(name, value):
        pod = make_pod()
        pod["metadata"][field][name] = value
        set_env(pod, "ALL", {"valueFrom": {"fieldRef": {"fieldPath": f"metadata.{field}"}}})
        return key_of(pod)

    assert with_entry("team", "a") != with_entry("team", "b")
    assert with_entry(names.ARGO_WORKFLOW, "a") == with_entry(names.ARGO_WORKFLOW, "b")
    assert with_entry(names.HOLD_UNTIL, "a") == with_entry(names.HOLD_UNTIL, "b")


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("exec-sa-token", {"secret": {"secretName": "a"}}, {"secret": {"secretName": "b"}}),
        ("argo-env-config", {"configMap": {"name": "a"}}, {"configMap": {"name": "b"}}),
    ],
)
def test_a_users_volume_counts_whatever_its_name(make_pod, name, first, second):
    def with_volume(source):
        pod = make_pod()
        volume(pod, source, name=name)
        return key_of(pod)

    assert with_volume(first) != with_volume(second)


def test_the_emissary_is_taken_off_and_nothing_else():
    assert own_command(["/var/run/argo/argoexec", "emissary", "--", "a", "--", "b"]) == ["a", "--", "b"]
    assert own_command(["/argo-bin/bin/argoexec", "emissary", "--x", "--", "a"]) == ["a"]
    assert own_command(["a", "emissary", "--", "b"]) == ["a", "emissary", "--", "b"]
    assert own_command([]) == []


def test_an_entry_key_needs_the_offloaded_template(sample):
    step = read_step(sample("4.1.2", "offloaded.pod"))
    with pytest.raises(Unkeyable, match="template-unreadable"):
        entry_key(step, {})
    data = sample("4.1.2", "offloaded.configmap")["data"]
    whole = with_template(step, json.loads(data["ARGO_TEMPLATE"]))
    key = entry_key(whole, {"offloaded.args": data["ARGO_CONTAINER_ARGS_FILE"]})
    other = entry_key(whole, {"offloaded.args": "other"})
    assert key.digest != other.digest
    assert {n for n in key.components if key.components[n] != other.components[n]} == {"offloaded.args"}


def test_arguments_that_argo_offloads_count_whichever_container_they_are_of(make_pod):
    pod = make_pod()
    assert offload_name(read_step(pod)) is None
    pod["spec"]["containers"].append(
        {"name": "other", "env": [{"name": names.ENV_ARGS_FILE, "value": "/argo/config/x"}]}
    )
    assert offload_name(read_step(pod)) == pod["metadata"]["name"]
    one = {names.ENV_TEMPLATE: "{}", names.ENV_ARGS_FILE: "a"}
    assert offloaded_arguments(one) == "a"
    assert offloaded_arguments({names.ENV_TEMPLATE: "{}"}) is None
    assert offloaded_arguments({**one, "more": "b"}) == {names.ENV_ARGS_FILE: "a", "more": "b"}


def test_evidence_differs_when_a_version_does(sample):
    key = base_key(read_step(sample("4.1.2", "parameters.make.pod")))
    assert evidence(key, {"configmap.a": ["uid", "1"]}) != evidence(key, {"configmap.a": ["uid", "2"]})
    assert evidence(key, {}) == evidence(key, {})


def test_only_what_a_step_reads_of_a_config_map_enters_its_key(make_pod):
    pod = make_pod()
    set_env(pod, "C", {"valueFrom": {"configMapKeyRef": {"name": "c", "key": "a", "optional": True}}})
    volume(pod, {"configMap": {"name": "whole"}})
    uses = config_maps(read_step(pod), KeyRules())
    assert set(uses) == {"c", "whole"}
    assert uses["c"].optional
    assert not uses["whole"].optional
    content = {"data": {"a": "1", "b": "2"}, "binaryData": {"z": "eg=="}}
    assert config_map_content(uses["c"], content) == {"data": {"a": "1"}, "binaryData": {}}
    assert config_map_content(uses["whole"], content) == content


@pytest.mark.parametrize("version", VERSIONS)
def test_input_artifacts_are_resolved_and_raw_ones_are_in_the_template(sample, version):
    found = input_artifacts(read_step(sample(version, "artifacts.use.pod")))
    assert [a.name for a in found] == ["default", "keyed", "full", "outside"]
    assert {a.location.bucket for a in found} == {"mlpipeline", "other"}


def test_inputs_that_the_step_ignores_are_not_asked_for(sample):
    pod = sample("4.1.2", "artifacts.use.pod")
    pod["metadata"]["annotations"][names.IGNORE_INPUTS] = "default, outside"
    assert [a.name for a in input_artifacts(read_step(pod))] == ["keyed", "full"]


def test_an_input_of_a_kind_without_identity_means_no_key(make_pod):
    pod = make_pod()
    template(pod, lambda t: t["inputs"].update(artifacts=[{"name": "g", "git": {"repo": "r"}}]))
    with pytest.raises(Unkeyable, match="input-unknown"):
        input_artifacts(read_step(pod))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(first=json_values, second=json_values, name=st.text(min_size=1))
def test_two_values_of_a_field_have_one_key_only_if_they_are_equal(first, second, name):
    def key(value):
        pod = copy.deepcopy(BASE)
        pod["spec"][f"x-{name}"] = value
        return key_of(pod)

    assert (key(first) == key(second)) == (canonical(first) == canonical(second))


def test_components_cannot_be_shifted_into_each_other(make_pod):
    first, second = make_pod(), make_pod()
    main(first).update(command=["a"], args=["b"])
    main(second).update(command=["a", "b"], args=[])
    assert key_of(first) != key_of(second)


def test_the_name_of_a_field_cannot_be_taken_for_a_field_of_a_field(make_pod):
    first, second = make_pod(), make_pod()
    template(first, lambda t: t["inputs"].update(parameters=[{"name": "a"}]))
    template(second, lambda t: t.update({"inputs.parameters": [{"name": "a"}], "inputs": {}}))
    assert key_of(first) != key_of(second)
    third = make_pod()
    template(third, lambda t: t.update({"inputs\\.parameters": [{"name": "a"}], "inputs": {}}))
    assert len({key_of(first), key_of(second), key_of(third)}) == 3


def test_the_steps_own_container_cannot_be_ignored():
    with pytest.raises(ValueError, match="main"):
        KeyRules(ignored_containers=frozenset({"main"}))


@pytest.mark.parametrize(
    "artifact",
    [
        {"s3": {"key": "k", "bucket": "b"}, "raw": {"data": "x"}},
        {"s3": {"key": "k", "bucket": "b"}, "gcs": {"key": "k", "bucket": "b"}},
        {"novelty": {}},
        {},
    ],
)
def test_an_input_with_more_or_less_than_one_location_has_no_identity(make_pod, artifact):
    pod = make_pod()
    template(pod, lambda t: t["inputs"].update(artifacts=[{"name": "a", "path": "/a", **artifact}]))
    with pytest.raises(Unkeyable, match="input-unknown"):
        input_artifacts(read_step(pod))


def test_an_optional_input_that_is_not_given_needs_no_identity(make_pod):
    pod = make_pod()
    template(pod, lambda t: t["inputs"].update(artifacts=[{"name": "a", "path": "/a", "optional": True}]))
    assert input_artifacts(read_step(pod)) == []


def test_of_two_inputs_of_one_name_neither_has_an_identity(make_pod):
    pod = make_pod()
    twice = [{"name": "a", "path": p, "s3": {"key": p, "bucket": "b"}} for p in ("/a", "/b")]
    template(pod, lambda t: t["inputs"].update(artifacts=twice))
    with pytest.raises(Unkeyable, match="input-unknown"):
        input_artifacts(read_step(pod))


def test_lone_surrogates_do_not_crash(make_pod):
    pod = make_pod()
    main(pod)["args"] = [json.loads('"\\ud800"')]
    assert len(key_of(pod)) == 64


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("runs/wf-1/out", True),
        ("runs/wf-1.tgz", True),
        ("out-of-wf-1", True),
        ("metadata/x", False),
        ("data/x", True),
        ("wf-12/out", False),
        ("my-awf-1/out", False),
        ("pod-a/out", True),
        ("out", False),
    ],
)
def test_a_key_names_a_run_by_a_whole_word_only(key, named):
    run = SimpleNamespace(workflow="wf-1", workflow_uid="", pod_name="pod-a")
    other = SimpleNamespace(workflow="data", workflow_uid="", pod_name="pod-b")
    assert (names_run([key], run) or names_run([key], other)) == named
