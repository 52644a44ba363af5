import json
import os
import sys
from pathlib import Path

import pytest

from memopod.sandbox.kubelet.container import (
    ContainerError,
    Folder,
    declared_paths,
    environment,
    expand,
    mapping,
    own_command,
    program,
)

POD = {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {}}
DECLARED = ["/memopod/inputs/artifacts/data", "/memopod/outputs/parameters/out"]


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path / "u")
    folder.create(DECLARED)
    return folder


def test_the_emissary_is_taken_off_up_to_its_own_dashes_only():
    command = ["/var/run/argo/argoexec", "emissary", "--loglevel", "info", "--", "run", "--", "x"]
    assert own_command({"command": command, "args": ["y"]}) == ["run", "--", "x", "y"]
    assert own_command({"command": ["echo"]}) == ["echo"]
    with pytest.raises(ContainerError, match="no command"):
        own_command({"args": ["y"]})


@pytest.mark.parametrize(
    ("text", "mapped"),
    [
        ("/memopod/outputs/parameters/out", "{}/outputs/parameters/out"),
        ("--data=/memopod/inputs/artifacts/data", "--data={}/inputs/artifacts/data"),
        ("/memopod/inputs/artifacts/data/part-1.csv", "{}/inputs/artifacts/data/part-1.csv"),
        (
            '{"outputFile":"/memopod/outputs/executor_output.json"}',
            '{{"outputFile":"{}/outputs/executor_output.json"}}',
        ),
        ("cat '/memopod/inputs/artifacts/data'", "cat '{}/inputs/artifacts/data'"),
        ("/opt/memopod/inputs/artifacts/data", "/opt/memopod/inputs/artifacts/data"),
        ("/memopod/inputs/artifacts/data2", "/memopod/inputs/artifacts/data2"),
        ("/memopod/elsewhere", "/memopod/elsewhere"),
        ("s3://bucket/memopod/outputs/parameters/out", "s3://bucket/memopod/outputs/parameters/out"),
    ],
)
def test_declared_paths_are_mapped_and_other_text_is_not(folder, text, mapped):
    assert mapping(folder, DECLARED)(text) == mapped.format(folder.files)


def test_a_path_outside_is_refused(folder):
    for path in ("/tmp/out", "/memopod/../etc/passwd", "relative"):
        with pytest.raises(ContainerError, match="is not below /memopod/"):
            folder.local(path)


def test_the_declared_paths_of_a_template_are_found():
    template = {
        "inputs": {"artifacts": [{"name": "data", "path": "/memopod/inputs/artifacts/data"}]},
        "outputs": {
            "parameters": [{"name": "out", "valueFrom": {"path": "/memopod/outputs/parameters/out"}}],
            "artifacts": [{"name": "model", "path": "/memopod/outputs/artifacts/model"}],
        },
    }
    assert declared_paths(template) == [*DECLARED, "/memopod/outputs/artifacts/model"]
    assert declared_paths({}) == []


def test_the_environment_is_read_from_its_sources():
    values = {("ConfigMap", "settings", "colour"): "blue", ("Secret", "keys", "token"): "s3cret"}
    container = {
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)2"},
            {"name": "EMPTY"},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
            {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "no", "key": "x", "optional": True}}},
        ]
    }
    assert environment(POD, container, lambda *key: values.get(key)) == {
        "A": "1",
        "B": "12",
        "EMPTY": "",
        "POD": "p",
        "COLOUR": "blue",
        "TOKEN": "s3cret",
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"configMapKeyRef": {"name": "m", "key": "k"}}, "X: there is no key 'k' in ConfigMap 'm'"),
        ({"fieldRef": {"fieldPath": "status.podIP"}}, "X: the sandbox does not know the field status.podIP"),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, "X: the sandbox does not know its source"),
    ],
)
def test_a_source_that_cannot_be_resolved_is_named(source, message):
    with pytest.raises(ContainerError, match=message):
        environment(POD, {"env": [{"name": "X", "valueFrom": source}]}, lambda *_: None)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [("$(A)", "1"), ("x$(A)y$(A)", "x1y1"), ("$(B)", "$(B)"), ("$$(A)", "$(A)"), ("$A ${A}", "$A ${A}")],
)
def test_variables_are_expanded_as_kubernetes_does(text, expanded):
    assert expand(text, {"A": "1"}) == expanded


def test_a_program_does_not_inherit_the_kubelets_environment(folder, monkeypatch):
    monkeypatch.setenv("A_SECRET", "x")
    container = {"command": ["echo", "$(WHERE)"], "env": []}
    found = program(container, {"WHERE": "/memopod/outputs/parameters/out"}, folder, DECLARED)
    assert found.command == ("echo", f"{folder.files}/outputs/parameters/out")
    assert found.env["WHERE"] == f"{folder.files}/outputs/parameters/out"
    assert "A_SECRET" not in found.env
    assert found.env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_a_working_directory_that_is_not_here_is_named(folder):
    with pytest.raises(ContainerError, match="the working directory '/no/such'"):
        program({"command": ["x"], "workingDir": "/no/such"}, {}, folder, DECLARED)


def test_json_stays_json_when_paths_are_mapped(folder):
    text = json.dumps({"outputFile": "/memopod/outputs/parameters/out"})
    assert json.loads(mapping(folder, DECLARED)(text)) == {
        "outputFile": str(folder.local("/memopod/outputs/parameters/out"))
    }
