"""What the overlays of deploy/ say, each alone and combined with components."""

import copy
import dataclasses
import re

import pytest
import yaml

import cache_server.configuration
import cache_server.settings
import memopod
import memopod.proxy
import metadata_guard.settings
import metadata_store.connection
import metadata_store.settings
import metadata_writer.settings
from memopod.sandbox.control_plane import permissions
from memopod.service import parse
from memopod.steps import names
from tests.deploy import kubeflow
from tests.deploy.environment import KUBEFLOW, started_with
from tests.deploy.kubeflow import POSTGRESQL, SINGLE, install_config, metadata_parameters
from tests.deploy.reach import MONITORING, matches, may
from tests.deploy.render import COMBINATIONS, DEPLOY, named, of, render, render_file, workloads

ENTRY_POINTS = {
    ("cache-server",): ("MEMOPOD_CACHE", cache_server.settings.Settings),
    ("cache-janitor",): ("MEMOPOD_JANITOR", cache_server.settings.JanitorSettings),
    ("metadata-writer",): ("MEMOPOD_WRITER", metadata_writer.settings.Settings),
    ("metadata-store",): ("MEMOPOD_METADATA_STORE", metadata_store.settings.Settings),
    ("metadata-guard",): ("MEMOPOD_METADATA_GUARD", metadata_guard.settings.Settings),
    ("envoy", "run"): ("MEMOPOD_ENVOY", memopod.proxy.Settings),
}
NOT_SETTINGS = {"POD_NAMESPACE", "DATABASE_PASSWORD", "DEFAULT_CACHE_STALENESS", "MAXIMUM_CACHE_STALENESS"}
PARTS = {"cache-server", "janitor", "metadata-writer", "metadata-store", "metadata-envoy"}
every = pytest.mark.parametrize("parts", COMBINATIONS, ids="+".join)


def containers(documents):
    """(workload, container) of memopod's own image."""
    for workload in workloads(documents):
        for container in workload["spec"]["template"]["spec"]["containers"]:
            if container["image"].startswith("memopod:"):
                yield workload, container


def settings_of(workload, container, documents, maps=KUBEFLOW):
    """Settings of a container, as its own program reads them."""
    namespace = workload["metadata"]["namespace"]
    arguments, environment = started_with(container, namespace, documents, maps)
    (command,) = [known for known in ENTRY_POINTS if tuple(arguments[: len(known)]) == known]
    prefix, cls = ENTRY_POINTS[command]
    known = {f"{prefix}_{field.name.upper()}" for field in dataclasses.fields(cls)}
    assert environment.keys() - NOT_SETTINGS <= known
    return parse(
        cls, arguments[len(command):], prog="", prefix=prefix, description="", environ=environment
    )  # fmt: skip


def labels_of(documents):
    return {w["metadata"]["name"]: w["spec"]["template"]["metadata"]["labels"] for w in workloads(documents)}


@every
def test_each_program_accepts_its_arguments_and_its_environment(parts):
    documents = render(*parts)
    seen = set()
    for workload, container in containers(documents):
        settings = settings_of(workload, container, documents)
        seen.add(workload["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"])
        if isinstance(settings, cache_server.settings.Settings):
            resolved = cache_server.configuration.resolve(settings)
            assert (resolved.strategy, resolved.leader_election) == ("gate", True)
            assert resolved.lease_namespace == workload["metadata"]["namespace"]
            narrow = "overlays/kubeflow" in parts or "components/one-namespace" in parts
            assert resolved.watch_namespace == (workload["metadata"]["namespace"] if narrow else "")
        if isinstance(settings, metadata_store.settings.Settings):
            metadata_store.connection.server_config(settings)
    assert seen == PARTS


@every
def test_ports_are_those_that_the_programs_listen_on(parts):
    documents = render(*parts)
    for workload, container in containers(documents):
        settings = settings_of(workload, container, documents)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        fields = {
            "webhook-api": "listen_port", "entries-api": "api_port", "health": "health_port",
            "grpc-api": "grpc_port", "md-envoy": "listen_port", "status": "status_port",
            "guard-health": "health_port",
        }  # fmt: skip
        assert ports == {name: getattr(settings, fields[name]) for name in ports}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
        if hasattr(settings, "full_port"):
            assert settings.full_port == 0


@every
def test_services_find_pods_and_their_ports(parts):
    documents = render(*parts)
    for service in of(documents, "Service"):
        found = [
            w for w in workloads(documents)
            if service["spec"]["selector"].items() <= w["spec"]["template"]["metadata"]["labels"].items()
        ]  # fmt: skip
        assert len(found) == 1, service["metadata"]["name"]
        names_of_ports = {
            port["name"] for c in found[0]["spec"]["template"]["spec"]["containers"] for port in c["ports"]
        }
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names_of_ports
    headless = named(documents, "Service", "metadata-grpc-replicas")
    assert headless["spec"]["clusterIP"] == "None"
    (envoy_port,) = named(documents, "Service", "metadata-envoy-service")["spec"]["ports"]
    assert envoy_port["port"] == 9090
    assert {p["port"]: p["name"] for p in named(documents, "Service", "cache-server")["spec"]["ports"]}[
        443
    ] == ("webhook-api")


@every
def test_selectors_of_workloads_budgets_and_policies_match_one_workload_each(parts):
    documents = render(*parts)
    pods = labels_of(documents)
    for document in [*workloads(documents), *of(documents, "PodDisruptionBudget", "NetworkPolicy")]:
        selector = document["spec"].get("selector") or document["spec"]["podSelector"]
        assert len([name for name, labels in pods.items() if matches(selector, labels)]) == 1, document
    policies = of(documents, "NetworkPolicy")
    for labels in pods.values():
        assert [p for p in policies if matches(p["spec"]["podSelector"], labels)], labels


@every
def test_everything_is_labelled_and_refers_to_what_is_there(parts):
    documents = render(*parts)
    names_by_kind = {}
    for document in documents:
        assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "memopod", document
        names_by_kind.setdefault(document["kind"], set()).add(document["metadata"]["name"])
    namespaces = {d["metadata"].get("namespace") for d in documents} - {None}
    assert len(namespaces) == 1
    for workload in workloads(documents):
        pod = workload["spec"]["template"]["spec"]
        if "serviceAccountName" in pod:
            assert pod["serviceAccountName"] in names_by_kind["ServiceAccount"]
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in names_by_kind["PersistentVolumeClaim"]
    for binding in of(documents, "RoleBinding", "ClusterRoleBinding"):
        (subject,) = binding["subjects"]
        assert subject["name"] in names_by_kind["ServiceAccount"]
        assert {subject["namespace"]} == namespaces
        if binding["roleRef"]["name"] != "system:auth-delegator":
            assert binding["roleRef"]["name"] in names_by_kind[binding["roleRef"]["kind"]]


@every
def test_the_webhook_never_refuses_and_asks_only_about_those_who_opted_in(parts):
    documents = render(*parts)
    (configuration,) = of(documents, "MutatingWebhookConfiguration")
    labels = [webhook["objectSelector"]["matchLabels"] for webhook in configuration["webhooks"]]
    assert labels == [{names.OPT_IN_LABEL: "true"}, {names.KFP_OPT_IN_LABEL: "true"}]
    server = named(documents, "Service", "cache-server")
    for webhook in configuration["webhooks"]:
        assert webhook["failurePolicy"] == "Ignore"
        assert webhook["sideEffects"] == "None"
        assert webhook["reinvocationPolicy"] == "IfNeeded"
        assert webhook["timeoutSeconds"] <= 5
        assert webhook["clientConfig"] == {
            "service": {
                "name": "cache-server", "namespace": server["metadata"]["namespace"], "path": "/mutate",
                "port": 443,
            }
        }  # fmt: skip
        (rule,) = webhook["namespaceSelector"]["matchExpressions"]
        assert rule["operator"] == "NotIn"
        assert "kube-system" in rule["values"]
    (found,) = [
        settings_of(w, c, documents)
        for w, c in containers(documents)
        if w["metadata"]["name"] == "cache-server"
    ]
    if found.certificates == "own":
        assert found.webhook_configuration == configuration["metadata"]["name"]
        role = named(documents, "ClusterRole", "memopod-cache-server-certificates")
        assert role["rules"][0]["resourceNames"] == [found.webhook_configuration]
    else:
        assert "cert-manager.io/inject-ca-from" in configuration["metadata"]["annotations"]
        assert not [d for d in documents if "certificates" in d["metadata"]["name"]]


@every
def test_accounts_may_do_what_the_tests_on_a_real_api_server_need_and_nothing_else(parts):
    """tests/real runs each service under the rules of deploy/base/rbac.yaml, and of two more files."""
    expected = {}
    files = [DEPLOY / "base" / "entries-api.yaml", DEPLOY / "components" / "own-certificates" / "rbac.yaml"]
    files += [DEPLOY / "metadata-guard" / "rbac.yaml"]
    sources = [*permissions(), *(d for f in files for d in yaml.safe_load_all(f.read_text()))]
    for document in of(sources, "Role", "ClusterRole"):
        expected[document["kind"], document["metadata"]["name"]] = document["rules"]
    documents = render(*parts)
    for document in of(documents, "Role", "ClusterRole"):
        rules = copy.deepcopy(document["rules"])
        for rule in rules:
            if rule.get("resourceNames") == ["cache-webhook-kubeflow"]:
                rule["resourceNames"] = ["memopod-cache"]
        assert rules == expected[document["kind"], document["metadata"]["name"]]
    wide = {d["metadata"]["name"] for d in of(documents, "ClusterRoleBinding")}
    narrow = "overlays/kubeflow" in parts or "components/one-namespace" in parts
    assert ("memopod-cache-server" in wide) != narrow
    assert ("memopod-janitor" in wide) != narrow
    assert ("memopod-metadata-writer" in wide) != narrow


@every
def test_network_policies_allow_the_edges_of_the_architecture_and_no_others(parts):
    documents = render(*parts)
    policies = of(documents, "NetworkPolicy")
    home = {}
    pods = {}
    for workload in workloads(documents):
        template = workload["spec"]["template"]
        name = workload["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]
        ports = {p["name"]: p["containerPort"] for c in template["spec"]["containers"] for p in c["ports"]}
        pods[name] = template["metadata"]["labels"], ports

    def reaches(source, target):
        """Ports at which one of ours, a Pod of another namespace, or Prometheus may reach a target."""
        labels, ports = pods[target]
        others = {"elsewhere": ({}, {}, False), "monitoring": ({}, MONITORING, False)}
        peer = others.get(source) or (pods[source][0], home, True)
        found = {p for p in ports.values() if may(policies, "ingress", labels, peer, p, ports)}
        if source in pods:
            to = labels, home, True
            found = {p for p in found if may(policies, "egress", pods[source][0], to, p, ports)}
        return found

    expected = {
        ("metadata-writer", "metadata-store"): {8080},
        ("metadata-envoy", "metadata-store"): {8080},
        ("elsewhere", "cache-server"): {8443, 8444},
        ("elsewhere", "metadata-envoy"): {9090},
        ("monitoring", "cache-server"): {8443, 8444, 9094},
        ("monitoring", "janitor"): {9094},
        ("monitoring", "metadata-writer"): {9095},
        ("monitoring", "metadata-store"): {9097},
        ("monitoring", "metadata-envoy"): {9090, 9901},
    }
    if any("kubeflow" in part for part in parts):  # drivers and launchers of every namespace
        expected["elsewhere", "metadata-store"] = {8080}
        expected["monitoring", "metadata-store"] = {8080, 9097}
    for database, port in (("memopod-mysql", 3306), ("memopod-postgres", 5432)):
        if database in pods:
            expected["cache-server", database] = expected["metadata-store", database] = {port}
    if "memopod-redis" in pods:
        expected["cache-server", "memopod-redis"] = {6379}
    found = {
        (source, target): ports
        for source in [*pods, "elsewhere", "monitoring"]
        for target in pods
        if source != target and (ports := reaches(source, target))
    }
    assert found == expected

    outside = {
        name: {p for p in (53, 443, 6443, 80, 22) if may(policies, "egress", labels, None, p, {})}
        for name, (labels, _) in pods.items()
    }
    servers = {name: {53, 443, 6443} for name in ("cache-server", "janitor", "metadata-writer")}
    guarded = {53, 443, 6443} if "metadata-guard" in parts else {53}
    fixed = servers | {"metadata-store": {53}, "metadata-envoy": guarded}
    assert outside == fixed | {name: set() for name in pods if name.startswith("memopod-")}


@every
def test_pods_get_time_to_end_and_room_to_work(parts):
    documents = render(*parts)
    for workload, container in containers(documents):
        pod = workload["spec"]["template"]["spec"]
        settings = settings_of(workload, container, documents)
        pause = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [0, "0"])[1]
        longest = max(getattr(settings, "drain_seconds", 0), getattr(settings, "drain_timeout", 0), 15)
        assert pod["terminationGracePeriodSeconds"] >= int(pause) + longest
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert container["image"] == f"memopod:{memopod.__version__}"


def test_one_replica_writes_a_file_and_several_serve_a_database():
    replicas = {w["metadata"]["name"]: w["spec"]["replicas"] for w in workloads(render("overlays/argo"))}
    assert replicas["cache-server"] == replicas["metadata-store"] == 2
    for workload in workloads(render("overlays/single-node")):
        volumes = workload["spec"]["template"]["spec"]["volumes"]
        if any("persistentVolumeClaim" in volume for volume in volumes):
            assert workload["spec"]["replicas"] == 1
            assert workload["spec"]["strategy"] == {"type": "Recreate"}


def test_kubeflow_finds_its_services_under_their_names():
    documents = render("overlays/kubeflow")
    assert not of(documents, "Namespace")
    services = {d["metadata"]["name"]: d["spec"]["ports"] for d in of(documents, "Service")}
    assert {p["port"]: p["name"] for p in services["metadata-grpc-service"]} == {8080: "grpc-api"}
    assert {p["port"]: p["name"] for p in services["metadata-envoy-service"]} == {9090: "md-envoy"}
    assert (443, "webhook-api") in [(p["port"], p["name"]) for p in services["cache-server"]]
    deployments = {
        "cache-server": ("app", "cache-server", "kubeflow-pipelines-cache"),
        "metadata-writer": ("app", "metadata-writer", "kubeflow-pipelines-metadata-writer"),
        "metadata-grpc-deployment": ("component", "metadata-grpc-server", "metadata-grpc-server"),
        "metadata-envoy-deployment": ("component", "metadata-envoy", "metadata-envoy"),
    }
    for name, (key, value, account) in deployments.items():
        deployment = named(documents, "Deployment", name)
        assert deployment["spec"]["template"]["metadata"]["labels"][key] == value
        # Istio's policies of Kubeflow allow nobody to reach a sidecar of Envoy's.
        inject = deployment["spec"]["template"]["metadata"]["labels"].get("sidecar.istio.io/inject")
        assert inject == ("false" if name == "metadata-envoy-deployment" else None)
        assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == account
    assert of(documents, "MutatingWebhookConfiguration")[0]["metadata"]["name"] == "cache-webhook-kubeflow"


def databases(documents, maps):
    """Where entries and metadata are, by the ConfigMaps of a Kubeflow Pipelines."""
    found = {}
    for workload, container in containers(documents):
        settings = settings_of(workload, container, documents, maps)
        if isinstance(settings, cache_server.settings.Settings):
            found["entries"] = cache_server.configuration.resolve(settings).database
        if isinstance(settings, metadata_store.settings.Settings):
            config = metadata_store.connection.server_config(settings)
            found["metadata"] = metadata_store.connection.describe(config.connection_config)
    return found


@pytest.mark.parametrize("version", [(2, 5), (2, 16), (2, 17)])
def test_kubeflows_databases_are_found_by_the_settings_of_each_version(version):
    config = {"pipeline-install-config": install_config(SINGLE, version)}
    assert databases(render("overlays/kubeflow"), config) == {
        "entries": "mysql://root:hunter2@mysql:3306/cachedb", "metadata": "mysql://root@mysql:3306/metadb",
    }  # fmt: skip
    config = {
        "pipeline-install-config": install_config(POSTGRESQL, version),
        "metadata-postgres-db-parameters": metadata_parameters(POSTGRESQL),
    }
    assert databases(render("overlays/kubeflow", "components/kubeflow-postgres"), config) == {
        "entries": "postgresql://user:hunter3@postgres:5432/cachedb",
        "metadata": "postgresql://root@metadata-postgres-db:5432/mlmdpostgres",
    }


def test_a_database_elsewhere_is_where_kubeflow_before_2_17_looked_for_it():
    elsewhere = {"dbHost": "rds.example.org", "dbPort": "3307"}
    config = {"pipeline-install-config": install_config(SINGLE, (2, 16)) | elsewhere}
    assert databases(render("overlays/kubeflow", "components/kubeflow-db-host"), config) == {
        "entries": "mysql://root:hunter2@rds.example.org:3307/cachedb",
        "metadata": "mysql://root@rds.example.org:3307/metadb",
    }


@pytest.mark.parametrize("environment", kubeflow.ENVIRONMENTS)
def test_kubeflows_manifests_without_what_is_replaced_share_no_object_with_memopods(environment, tmp_path):
    upstreams = [*kubeflow.upstream(environment), kubeflow.webhook(environment)]
    (tmp_path / "kubeflow.yaml").write_text(yaml.safe_dump_all(upstreams))
    left = {identity(d) for d in render_file(tmp_path, "kubeflow-manifests")}
    ours = {identity(d) for d in render(*kubeflow.OVERLAYS[environment])}
    assert left & ours == set()
    taken = {identity(d) for d in upstreams} - left
    assert {name for kind, _, name in taken if kind == "Deployment"} <= set(kubeflow.REPLACED)
    assert {
        ("Deployment", "kubeflow", "ml-pipeline-ui"),
        ("ConfigMap", "kubeflow", "pipeline-install-config"),
    } <= left
    # Of what is left, nothing belongs to an account of the five.
    assert not [name for kind, _, name in left if "cache" in name or "metadata-writer" in name]


def identity(document):
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def test_a_setting_that_changes_makes_new_pods():
    extra = (
        "configMapGenerator:\n- name: memopod-cache-server\n  behavior: merge\n  namespace: memopod\n"
        "  literals: [MEMOPOD_CACHE_COALESCE=across-workflows]\n"
    )
    before, after = render("overlays/argo"), render("overlays/argo", extra=extra)
    changed = [(a["kind"], a["metadata"]["name"]) for a in after if a not in before]
    assert ("Deployment", "cache-server") in changed
    assert ("Deployment", "metadata-store") not in changed
    deployment = named(after, "Deployment", "cache-server")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert settings_of(deployment, container, after).coalesce == "across-workflows"


def test_no_file_of_deploy_holds_a_secret():
    for path in DEPLOY.rglob("*.yaml"):
        text = path.read_text()
        assert "kind: Secret\n" not in text, path
        assert not re.search(r"password: *[\"']?\w", text.replace("key: password", "")), path
