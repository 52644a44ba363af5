"""What a container of a manifest is started with: its arguments and environment, as a kubelet makes them."""

import re

SECRETS = {
    ("memopod-databases", "cache"): "mysql://memopod:s3cret@db:3306/memopod_cache",
    ("memopod-databases", "metadata"): "mysql://memopod:s3cret@db:3306/memopod_metadata",
    ("memopod-mysql", "password"): "c0ffee",
    ("memopod-postgres", "password"): "c0ffee",
    ("mysql-secret", "username"): "root",
    ("mysql-secret", "password"): "hunter2",
}
"""What the guides tell to create, or Kubeflow Pipelines has."""
KUBEFLOW = {
    ("pipeline-install-config", "mysqlHost"): "mysql",
    ("pipeline-install-config", "mysqlPort"): "3306",
    ("pipeline-install-config", "cacheDb"): "cachedb",
    ("pipeline-install-config", "mlmdDb"): "metadb",
}
_REFERENCE = re.compile(r"\$\(([A-Za-z0-9_]+)\)")


def started_with(container, namespace, documents):
    """Arguments and environment; KeyError for a ConfigMap, Secret or variable that is not there."""
    maps = {d["metadata"]["name"]: d.get("data", {}) for d in documents if d["kind"] == "ConfigMap"}
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
    known = maps.get(place[0], {}).get(place[1], KUBEFLOW.get(place))
    if known is None and not reference.get("optional"):
        raise KeyError(place)
    return known
