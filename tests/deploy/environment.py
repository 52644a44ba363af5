"""What a container of a manifest is started with: its arguments and environment, as a kubelet makes them."""

import re

from tests.deploy.kubeflow import POSTGRESQL, SINGLE, install_config, metadata_parameters

SECRETS = {
    ("memopod-databases", "cache"): "mysql://memopod:s3cret@db:3306/memopod_cache",
    ("memopod-databases", "metadata"): "mysql://memopod:s3cret@db:3306/memopod_metadata",
    ("memopod-mysql", "password"): "c0ffee",
    ("memopod-postgres", "password"): "c0ffee",
    ("mysql-secret", "username"): "root",
    ("mysql-secret", "password"): "hunter2",
    ("postgres-secret-extended", "username"): "user",
    ("postgres-secret-extended", "password"): "hunter3",
    ("metadata-postgres-db-secrets", "POSTGRES_USER"): "root",
    ("metadata-postgres-db-secrets", "POSTGRES_PASSWORD"): "hunter4",
}
"""What the guides tell to create, or Kubeflow Pipelines has."""
KUBEFLOW = {
    "pipeline-install-config": install_config(POSTGRESQL, (2, 16)) | install_config(SINGLE, (2, 17)),
    "metadata-postgres-db-parameters": metadata_parameters(POSTGRESQL),
}
"""ConfigMaps of Kubeflow Pipelines, those of its two environments in one."""
_REFERENCE = re.compile(r"\$\(([A-Za-z0-9_]+)\)")


def started_with(container, namespace, documents, kubeflow=KUBEFLOW):
    """Arguments and environment; KeyError for a ConfigMap, Secret or variable that is not there."""
    maps = dict(kubeflow)
    maps |= {d["metadata"]["name"]: d.get("data", {}) for d in documents if d["kind"] == "ConfigMap"}
    environment = {}
    for source in container.get("envFrom", ()):
        environment |= maps[source["configMapRef"]["name"]]
    for entry in container.get("env", ()):
        value = _value(entry, namespace, maps)
        if value is not None:
            environment[entry["name"]] = expanded(value, environment)
    return [expanded(argument, environment) for argument in container.get("args", ())], environment


def expanded(text, environment):
    return _REFERENCE.sub(lambda match: environment[match[1]], text)


def _value(entry, namespace, maps):
    if "valueFrom" not in entry:
        return entry["value"]
    source = entry["valueFrom"]
    if "fieldRef" in source:
        assert source["fieldRef"]["fieldPath"] == "metadata.namespace"
        return namespace
    if "secretKeyRef" in source:
        return SECRETS[source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]]
    reference = source["configMapKeyRef"]
    place = reference["name"], reference["key"]
    known = maps.get(place[0], {}).get(place[1])
    if known is None and not reference.get("optional"):
        raise KeyError(place)
    return known
