"""What the guide says of tenants, held against the manifests."""

import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.reach import may
from tests.deploy.render import of, render, workloads

GUIDE = Path(__file__).parents[2] / "docs" / "metadata-store.md"


def guides_policy():
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return yaml.safe_load(block)


@pytest.mark.parametrize("overlay", ["overlays/argo", "overlays/kubeflow", "overlays/kubeflow-multi-user"])
def test_the_guides_policy_leaves_the_store_to_envoy_and_the_writer(overlay):
    documents = render(overlay)
    pods = {}
    for workload in workloads(documents):
        template = workload["spec"]["template"]
        name = template["metadata"]["labels"]["app.kubernetes.io/name"]
        pods[name] = template["metadata"]["labels"]
    policy = guides_policy()
    if "kubeflow" in overlay:  # it replaces theirs
        names = {document["metadata"]["name"] for document in of(documents, "NetworkPolicy")}
        assert policy["metadata"]["name"] in names

    def reach(labels, home):
        return may([policy], "ingress", pods["metadata-store"], (labels, {}, home), 8080, {})

    assert {name for name, labels in pods.items() if reach(labels, True)} == {
        "metadata-envoy", "metadata-writer",
    }  # fmt: skip
    assert not reach({"app.kubernetes.io/name": "metadata-writer"}, False)  # a tenant's Pod with its label
