"""The Pod of a step, as Argo's controller (4.1) builds it for a container template.

The template travels in the environment of the `init` container alone, without its input parameters;
`main` runs below Argo's emissary; `wait` collects the outputs. Taken from recordings of the real
controller; what the API server adds (defaults, the service account's token volume) is not here.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from memopod.sandbox.argo.names import node_id, pod_name
from memopod.steps import names

EXECUTOR_IMAGE = "quay.io/argoproj/argoexec:v4.1.2"
EMISSARY = ("/var/run/argo/argoexec", "emissary")
_LOG_FLAGS = ("--loglevel", "info", "--log-format", "text", "--gloglevel", "0")
_GO_ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}
"""What Go's encoding/json escapes beyond what JSON asks for."""
_NO_DEADLINE = "0001-01-01T00:00:00Z"


def build_pod(
    workflow: Mapping[str, Any], node_name: str, template: Mapping[str, Any], *, trace_id: str, span_id: str
) -> dict[str, Any]:
    """The Pod that runs `template` as the node `node_name` of `workflow`, ready to be created."""
    name, namespace = workflow["metadata"]["name"], workflow["metadata"]["namespace"]
    own_labels = (template.get("metadata") or {}).get("labels") or {}
    own_annotations = (template.get("metadata") or {}).get("annotations") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(name, node_name, template["name"]),
            "namespace": namespace,
            "labels": {**own_labels, names.ARGO_COMPLETED: "false", names.ARGO_WORKFLOW: name},
            "annotations": {
                **own_annotations,
                "kubectl.kubernetes.io/default-container": "main",
                names.ARGO_NODE_ID: node_id(name, node_name),
                names.ARGO_NODE_NAME: node_name,
                "workflows.argoproj.io/span-id": span_id,
                "workflows.argoproj.io/trace-id": trace_id,
            },
            "ownerReferences": [
                {
                    "apiVersion": "argoproj.io/v1alpha1",
                    "kind": "Workflow",
                    "name": name,
                    "uid": workflow["metadata"]["uid"],
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": _spec(workflow, node_id(name, node_name), template, trace_id, span_id),
    }


def _spec(
    workflow: Mapping[str, Any], node: str, template: Mapping[str, Any], trace_id: str, span_id: str
) -> dict[str, Any]:
    metadata = workflow["metadata"]
    inputs = list((template.get("inputs") or {}).get("artifacts") or ())
    secret_names = list(_secrets(template))
    common = _common_env(metadata, node, trace_id, span_id)
    identity = _identity_env(metadata)
    executor = {"image": EXECUTOR_IMAGE, "resources": {}}
    secret_mounts = [
        {"name": name, "readOnly": True, "mountPath": f"/argo/secret/{name}"} for name in secret_names
    ]
    run = {"name": "var-run-argo", "mountPath": "/var/run/argo"}
    staging = [{"name": "input-artifacts", "mountPath": "/argo/inputs/artifacts"}] if inputs else []
    seen_by_wait = [_input_mount(a, "/mainctrfs") for a in inputs]
    init = {
        "name": "init",
        **executor,
        "command": ["argoexec", "init", *_LOG_FLAGS],
        "env": [
            *identity,
            {"name": "ARGO_CONTAINER_NAME", "value": "init"},
            {"name": names.ENV_TEMPLATE, "value": _carried(template)},
            *common,
        ],
        "volumeMounts": [*secret_mounts, *staging, run],
    }
    wait = {
        "name": "wait",
        **executor,
        "command": ["argoexec", "wait", *_LOG_FLAGS],
        "env": [
            *identity,
            {"name": "ARGO_ARTIFACT_PLUGIN_NAMES"},
            {"name": "ARGO_CONTAINER_NAME", "value": "wait"},
            *common,
        ],
        "volumeMounts": [
            *secret_mounts,
            *seen_by_wait,
            {"name": "tmp-dir-argo", "mountPath": "/tmp", "subPath": "0"},  # noqa: S108
            run,
        ],
    }
    volumes: list[dict[str, Any]] = [
        {"name": "var-run-argo", "emptyDir": {}},
        {"name": "tmp-dir-argo", "emptyDir": {}},
        *(_secret_volume(name) for name in secret_names),
    ]
    if inputs:
        volumes.append({"name": "input-artifacts", "emptyDir": {}})
    return {
        "volumes": volumes,
        "initContainers": [init],
        "containers": [
            wait,
            _main(template["container"], common, [*(_input_mount(a, "") for a in inputs), run]),
        ],
        "restartPolicy": "Never",
    }


def _main(
    container: Mapping[str, Any], common: Iterable[Mapping[str, Any]], mounts: list[dict[str, Any]]
) -> dict[str, Any]:
    main = {
        "name": "main",
        "image": container["image"],
        "command": [*EMISSARY, *_LOG_FLAGS, "--", *container["command"]],
        "env": [
            *(container.get("env") or ()),
            {"name": "ARGO_CONTAINER_NAME", "value": "main"},
            *common,
        ],
        "resources": container.get("resources") or {},
        "volumeMounts": mounts,
    }
    if container.get("args"):
        main["args"] = list(container["args"])
    return main


def _carried(template: Mapping[str, Any]) -> str:
    """The template as it travels: JSON, without the input parameters (Argo 3.6 and later)."""
    inputs = {k: v for k, v in (template.get("inputs") or {}).items() if k != "parameters"}
    text = json.dumps({**template, "inputs": inputs}, separators=(",", ":"), ensure_ascii=False)
    return text.translate(_GO_ESCAPES)


def _identity_env(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": "ARGO_POD_NAME",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
        },
        {
            "name": "ARGO_POD_UID",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}},
        },
        {"name": "ARGO_WORKFLOW_NAME", "value": metadata["name"]},
        {"name": "ARGO_WORKFLOW_UID", "value": metadata["uid"]},
    ]


def _common_env(metadata: Mapping[str, Any], node: str, trace_id: str, span_id: str) -> list[dict[str, Any]]:
    values = {
        "ARGO_NODE_ID": node,
        names.ENV_INCLUDE_RESULT: "false",
        names.ENV_DEADLINE: _NO_DEADLINE,
        "ARGO_WORKFLOW_NAME": metadata["name"],
        "TRACESTATE": f"workflow={metadata['namespace']}/{metadata['name']}",
        "TRACEPARENT": f"00-{trace_id}-{span_id}-01",
        "ARGO_PROGRESS_FILE": "/var/run/argo/progress",
        "ARGO_PROGRESS_PATCH_TICK_DURATION": "1m0s",
        "ARGO_PROGRESS_FILE_TICK_DURATION": "3s",
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _input_mount(artifact: Mapping[str, Any], root: str) -> dict[str, Any]:
    return {"name": "input-artifacts", "mountPath": root + artifact["path"], "subPath": artifact["name"]}


def _secrets(template: Mapping[str, Any]) -> Iterable[str]:
    """Secrets with the keys of object stores: the repository's first, then those of single artifacts."""
    artifacts = [
        *((template.get("inputs") or {}).get("artifacts") or ()),
        *((template.get("outputs") or {}).get("artifacts") or ()),
    ]
    found = [
        (source.get("s3") or {}).get("accessKeySecret")
        for source in (template.get("archiveLocation") or {}, *artifacts)
    ]
    return dict.fromkeys(str(secret["name"]) for secret in found if secret)


def _secret_volume(name: str) -> dict[str, Any]:
    items = [{"key": key, "path": key} for key in ("accesskey", "secretkey")]
    return {"name": name, "secret": {"secretName": name, "items": items}}
