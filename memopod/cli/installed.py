"""What of memopod is in a cluster, as `memopod install check` and `memopod uninstall` look at it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memopod.kube import CONFIG_MAPS, MUTATING_WEBHOOKS, PODS, SERVICE_ACCOUNTS, Client
from memopod.kube.resources import Resource

PART_OF = "app.kubernetes.io/part-of=memopod"
"""The label of everything in deploy/."""
NAME = "app.kubernetes.io/name"
SERVERS = ("cache-server", "janitor", "metadata-writer", "metadata-store", "metadata-envoy")
"""The components, by the label NAME of their Deployments, whatever those are called."""

_RBAC = ("rbac.authorization.k8s.io", "v1")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
STATEFUL_SETS = Resource("apps", "v1", "statefulsets", "StatefulSet")
SERVICES = Resource("", "v1", "services", "Service")
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
ROLES = Resource(*_RBAC, "roles", "Role")
ROLE_BINDINGS = Resource(*_RBAC, "rolebindings", "RoleBinding")
CLUSTER_ROLES = Resource(*_RBAC, "clusterroles", "ClusterRole", namespaced=False)
CLUSTER_ROLE_BINDINGS = Resource(*_RBAC, "clusterrolebindings", "ClusterRoleBinding", namespaced=False)

MONITORING = (
    Resource("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor"),
    Resource("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule"),
)
CERT_MANAGER = (
    Resource("cert-manager.io", "v1", "certificates", "Certificate"),
    Resource("cert-manager.io", "v1", "issuers", "Issuer"),
)
OTHERS = (*MONITORING, *CERT_MANAGER)
"""Kinds in deploy/ that not every cluster knows."""

IN_ORDER = (
    DEPLOYMENTS, STATEFUL_SETS, SERVICES, BUDGETS, POLICIES, CONFIG_MAPS, ROLE_BINDINGS, ROLES,
    SERVICE_ACCOUNTS, CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES,
)  # fmt: skip
"""The others, but for the webhook, which goes first, claims, which hold data, and the namespace."""

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Installation:
    """Deployments by component, their ConfigMaps by name, Pods, and the webhook configurations."""

    namespace: str
    deployments: Mapping[str, Object]
    settings: Mapping[str, Mapping[str, str]]
    pods: tuple[Object, ...]
    webhooks: tuple[Object, ...]

    @classmethod
    async def read(cls, client: Client, namespace: str) -> "Installation":
        """Look at the cluster. Raises ApiError."""
        deployments = await client.list(DEPLOYMENTS, namespace=namespace, label_selector=PART_OF)
        maps = await client.list(CONFIG_MAPS, namespace=namespace, label_selector=PART_OF)
        pods = await client.list(PODS, namespace=namespace, label_selector=PART_OF)
        return cls(
            namespace,
            {d["metadata"]["labels"].get(NAME, ""): d for d in deployments["items"]},
            {m["metadata"]["name"]: m.get("data") or {} for m in maps["items"]},
            tuple(pods["items"]),
            await webhooks_of(client, namespace),
        )

    def container(self, component: str) -> Object:
        """The first container of a component: memopod's own."""
        first: Object = self.deployments[component]["spec"]["template"]["spec"]["containers"][0]
        return first

    def setting(self, component: str, variable: str, default: str = "") -> str:
        """A setting as the Deployment's environment has it; a Secret's is not looked up."""
        for entry in self.container(component).get("env") or ():
            if entry["name"] == variable:
                return str(entry.get("value", self.namespace if _is_own_namespace(entry) else default))
        for source in reversed(self.container(component).get("envFrom") or ()):
            data = self.settings.get((source.get("configMapRef") or {}).get("name", ""), {})
            if variable in data:
                return data[variable]
        return default

    def account(self, component: str) -> str:
        """The service account of a component."""
        return str(self.deployments[component]["spec"]["template"]["spec"].get("serviceAccountName"))

    def pods_of(self, component: str) -> list[Object]:
        """The Pods of a component that are not about to go."""
        return [
            pod
            for pod in self.pods
            if pod["metadata"]["labels"].get(NAME) == component
            and not pod["metadata"].get("deletionTimestamp")
        ]


async def webhooks_of(client: Client, namespace: str) -> tuple[Object, ...]:
    """The webhook configurations that have the API server call memopod's Service in this namespace."""
    listed = await client.list(MUTATING_WEBHOOKS)
    return tuple(found for found in listed["items"] if calls(found, namespace))


def calls(configuration: Object, namespace: str) -> bool:
    """Whether a configuration has a webhook at Service `cache-server` of the namespace."""
    services = [w["clientConfig"].get("service") or {} for w in configuration.get("webhooks") or ()]
    return any(s.get("name") == "cache-server" and s.get("namespace") == namespace for s in services)


def _is_own_namespace(entry: Object) -> bool:
    reference = (entry.get("valueFrom") or {}).get("fieldRef") or {}
    return reference.get("fieldPath") == "metadata.namespace"
