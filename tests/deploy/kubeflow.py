"""What memopod meets in Kubeflow Pipelines: names, labels, ports and settings, by environment and version.

Written from what the manifests of 2.5.0, 2.14.0 - 2.14.4, 2.15.0, 2.16.0, 2.16.1 and 2.17.0 have in common,
and in what they differ, as far as it concerns the services that memopod stands in for.
"""

SINGLE, MULTI_USER, POSTGRESQL = (
    "platform-agnostic",
    "platform-agnostic-multi-user",
    "platform-agnostic-postgresql",
)
CERT_MANAGER = "cert-manager/platform-agnostic-multi-user"
ENVIRONMENTS = (SINGLE, MULTI_USER, POSTGRESQL, CERT_MANAGER)
OVERLAYS = {
    SINGLE: ("overlays/kubeflow",),
    MULTI_USER: ("overlays/kubeflow-multi-user",),
    POSTGRESQL: ("overlays/kubeflow", "components/kubeflow-postgres"),
    CERT_MANAGER: ("overlays/kubeflow-multi-user",),
}
SERVICES = ("cache-server", "metadata-grpc-service", "metadata-envoy-service")
REPLACED = (
    "cache-server", "cache-deployer-deployment", "metadata-writer", "metadata-grpc-deployment",
    "metadata-envoy-deployment",
)  # fmt: skip
WEBHOOK = "cache-webhook-kubeflow"
_CRD = {"application-crd-id": "kubeflow-pipelines"}
_MULTI_USER = {
    "app.kubernetes.io/name": "kubeflow-pipelines",
    "app.kubernetes.io/component": "ml-pipeline",
}


def install_config(environment, version):
    """The ConfigMap pipeline-install-config, as far as it names databases: `dbHost` went with 2.17."""
    host, port = ("postgres", "5432") if environment == POSTGRESQL else ("mysql", "3306")
    prefix = "postgres" if environment == POSTGRESQL else "mysql"
    data = {"cacheDb": "cachedb", "mlmdDb": "metadb", "DEFAULT_CACHE_STALENESS": ""}
    data |= {"MAXIMUM_CACHE_STALENESS": "", f"{prefix}Host": host, f"{prefix}Port": port}
    return data if version >= (2, 17) else data | {"dbHost": host, "dbPort": port}


def metadata_parameters(environment):
    """The ConfigMap metadata-postgres-db-parameters."""
    return {"POSTGRES_DBNAME": "mlmdpostgres", "POSTGRES_PORT": "5432"} if environment == POSTGRESQL else {}


def upstream(environment, version=(2, 17)):
    """The objects, as `kubectl apply` takes them; the webhook is the deployer's, but for cert-manager."""
    more = _MULTI_USER if "multi-user" in environment else {}
    cache = {"app": "cache-server", **more, **_CRD}
    store = {"component": "metadata-grpc-server", **_CRD}
    envoy = {"component": "metadata-envoy", **_CRD}
    accounts = ("kubeflow-pipelines-cache", "kubeflow-pipelines-metadata-writer", "metadata-grpc-server")
    documents = [
        *(_object("v1", "ServiceAccount", name, _CRD) for name in accounts),
        *_config_maps(environment, version),
        *_may(accounts[0], f"{accounts[0]}-role", f"{accounts[0]}-binding"),
        # Its port has no name.
        _service("cache-server", cache, {"port": 443, "targetPort": "webhook-api"}),
        _service(
            "metadata-grpc-service", store, {"name": "grpc-api", "port": 8080, "protocol": "TCP"}
        ),
        _service(
            "metadata-envoy-service", envoy, {"name": "md-envoy", "port": 9090, "protocol": "TCP"}
        ),
        _deployment("cache-server", cache, accounts[0]),
        _deployment("metadata-writer", {"app": "metadata-writer", **more, **_CRD}, accounts[1]),
        _deployment("metadata-grpc-deployment", store, accounts[2]),
        _deployment("metadata-envoy-deployment", envoy, "default"),
        _deployment("ml-pipeline-ui", {"app": "ml-pipeline-ui", **_CRD}, "default"),
    ]  # fmt: skip
    if environment != CERT_MANAGER:
        deployer = {"app": "cache-deployer", **more, **_CRD}
        name = "kubeflow-pipelines-cache-deployer"
        documents += [
            _object("v1", "ServiceAccount", f"{name}-sa", _CRD),
            *_may(f"{name}-sa", f"{name}-role", f"{name}-rolebinding"),
            _deployment("cache-deployer-deployment", deployer, f"{name}-sa"),
        ]
    return documents


def webhook(environment):
    """As the deployer makes it by kubectl, and Kubeflow's manifests for cert-manager have it."""
    found = _object("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", WEBHOOK, {})
    del found["metadata"]["namespace"]
    if environment == CERT_MANAGER:
        found["metadata"]["annotations"] = {"cert-manager.io/inject-ca-from": "kubeflow/kfp-cache-cert"}
    hook = {
        "name": "cache-server.kubeflow.svc",
        "clientConfig": {"service": {"name": "cache-server", "namespace": "kubeflow", "path": "/mutate"}},
        "failurePolicy": "Ignore",
        "rules": [
            {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
        ],
        "sideEffects": "None",
        "timeoutSeconds": 5,
        "objectSelector": {"matchLabels": {"pipelines.kubeflow.org/cache_enabled": "true"}},
        "admissionReviewVersions": ["v1beta1"],
    }
    return found | {"webhooks": [hook]}


def _object(api_version, kind, name, labels, **rest):
    metadata = {"name": name, "namespace": "kubeflow", "labels": dict(labels)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def _config_maps(environment, version):
    yield _object(
        "v1", "ConfigMap", "pipeline-install-config", _CRD, data=install_config(environment, version)
    )
    if parameters := metadata_parameters(environment):
        yield _object("v1", "ConfigMap", "metadata-postgres-db-parameters", _CRD, data=parameters)


def _may(account, role, binding):
    rbac = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "update", "patch"]}]
    yield _object(f"{rbac}/v1", "Role", role, _CRD, rules=rules)
    yield _object(
        f"{rbac}/v1", "RoleBinding", binding, _CRD,
        roleRef={"apiGroup": rbac, "kind": "Role", "name": role},
        subjects=[{"kind": "ServiceAccount", "name": account, "namespace": "kubeflow"}],
    )  # fmt: skip


def _service(name, selector, port):
    return _object("v1", "Service", name, _CRD, spec={"selector": dict(selector), "ports": [port]})


def _deployment(name, labels, account):
    container = {"name": "main", "image": "upstream"}
    probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 5}
    pod = {"containers": [container | {"livenessProbe": probe}], "serviceAccountName": account}
    spec = {
        "selector": {"matchLabels": dict(labels)},
        "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
    }
    return _object("apps/v1", "Deployment", name, labels, spec=spec)
