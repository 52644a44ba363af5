"""A check that Kubeflow Pipelines alone needs: whether its database is looked for where it is."""

from memopod.cli.install_found import FAILED, OK, Check
from memopod.cli.installed import Installation
from memopod.kube import CONFIG_MAPS, Client, NotFound

DATABASE_ADDRESS = "database address"
_CONFIG = "pipeline-install-config"
_PAIRS = {"mysqlHost": "dbHost", "mysqlPort": "dbPort"}
"""Kubeflow's services before 2.17 looked at the second of each pair, where it is set."""


async def database_address(client: Client, found: Installation) -> list[Check]:
    """Whether `mysqlHost` is what Kubeflow's own services went by; nothing where they are not asked."""
    if not _reads_mysql_host(found):
        return []
    try:
        data = (await client.get(CONFIG_MAPS, _CONFIG, namespace=found.namespace)).get("data") or {}
    except NotFound:
        advice = "is Kubeflow Pipelines there? Else set the databases' URLs (docs/databases.md)"
        return [Check(DATABASE_ADDRESS, FAILED, f"there is no ConfigMap {found.namespace}/{_CONFIG}", advice)]
    for ours, theirs in _PAIRS.items():
        if data.get(theirs, data.get(ours)) != data.get(ours):
            return [
                Check(
                    DATABASE_ADDRESS, FAILED,
                    f"{_CONFIG}: Kubeflow before 2.17 goes by {theirs}, {data[theirs]}, not by "
                    f"{ours}, {data.get(ours, 'which is not set')}",
                    "add components/kubeflow-db-host to your kustomization and apply it again, or make "
                    f"{ours} the same",
                )
            ]  # fmt: skip
    return [Check(DATABASE_ADDRESS, OK, f"{data.get('mysqlHost')}:{data.get('mysqlPort')}")]


def _reads_mysql_host(found: Installation) -> bool:
    """Whether the store, or the cache server, takes its database's host from there."""
    for component in ("metadata-store", "cache-server"):
        for entry in found.container(component).get("env") or () if component in found.deployments else ():
            reference = (entry.get("valueFrom") or {}).get("configMapKeyRef") or {}
            if (reference.get("name"), reference.get("key")) == (_CONFIG, "mysqlHost"):
                return True
    return False
