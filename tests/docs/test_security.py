import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMED = {
    "cache-server": ("base/rbac.yaml", {"memopod-cache-server", "cache-server"}),
    "janitor": ("base/rbac.yaml", {"memopod-janitor"}),
    "metadata-writer": ("base/rbac.yaml", {"memopod-metadata-writer", "metadata-writer"}),
    "metadata-guard": ("metadata-guard/rbac.yaml", {"memopod-metadata-guard"}),
    "cache-server, `--certificates=own`": (
        "components/own-certificates/rbac.yaml",
        {"cache-server-certificates", "memopod-cache-server-certificates"},
    ),
}


@pytest.mark.parametrize("account", NAMED)
def test_the_permissions_of_an_account_are_told_with_every_verb(account, pages):
    path, roles = NAMED[account]
    given = defaultdict(set)
    for document in yaml.safe_load_all((DEPLOY / path).read_text()):
        if document["kind"] in ("Role", "ClusterRole") and document["metadata"]["name"] in roles:
            for rule in document["rules"]:
                for resource in rule["resources"]:
                    given[resource] |= set(rule["verbs"])
    told = defaultdict(set)
    for row in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| .+ \|$", pages["docs/security.md"], re.MULTILINE):
        if row[0] == account:
            for resource in row[1].split(", "):
                told[resource] |= set(row[2].split(", "))
    assert told == given


def test_who_has_no_account_has_no_token():
    for name in ("metadata-store", "metadata-envoy"):
        documents = list(yaml.safe_load_all((DEPLOY / "base" / f"{name}.yaml").read_text()))
        pods = [d["spec"]["template"]["spec"] for d in documents if d["kind"] == "Deployment"]
        assert pods
        assert all(pod["automountServiceAccountToken"] is False for pod in pods)
