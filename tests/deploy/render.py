"""The manifests of deploy/, made by the real kustomize (`kubectl kustomize`)."""

import functools
import os
import subprocess
import tempfile
from pathlib import Path

import yaml

from tests.conftest import CONTROL_PLANE_HINT, unavailable

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMBINATIONS = (
    ("overlays/argo",),
    ("overlays/single-node",),
    ("overlays/kubeflow",),
    ("overlays/kubeflow-multi-user",),
    ("overlays/argo", "components/mysql"),
    ("overlays/argo", "components/postgres"),
    ("overlays/argo", "components/mysql", "components/redis", "components/cert-manager"),
    ("overlays/argo", "components/postgres", "components/redis", "metadata-guard"),
    ("overlays/argo", "components/one-namespace", "components/sqlite"),
    ("overlays/single-node", "components/cert-manager"),
    ("overlays/kubeflow", "components/cert-manager", "components/redis"),
    ("overlays/kubeflow-multi-user", "components/redis", "metadata-guard"),
    ("overlays/kubeflow", "components/kubeflow-postgres"),
    ("overlays/kubeflow-multi-user", "components/kubeflow-db-host"),
)
"""An overlay, and components on top of it."""


@functools.cache
def kubectl():
    """The path of kubectl as the control plane's module builds it."""
    given = os.environ.get("MEMOPOD_CONTROL_PLANE")
    tool = ROOT / "tools" / "control-plane" / "build"
    folder = given or subprocess.run([tool, "--folder"], text=True, stdout=subprocess.PIPE).stdout.strip()
    program = Path(folder) / "kubectl"
    if not os.access(program, os.X_OK):
        unavailable(f"no kubectl here ({program} is no program); {CONTROL_PLANE_HINT}")
    return str(program)


@functools.cache
def text(overlay, *components, extra=""):
    """The rendered YAML; `extra` are further lines of the kustomization on top."""
    with tempfile.TemporaryDirectory(prefix="memopod-render-") as folder:
        lines = ["resources:", f"  - {relative(overlay, folder)}"]
        lines += ["components:", *(f"  - {relative(c, folder)}" for c in components)] if components else []
        (Path(folder) / "kustomization.yaml").write_text("\n".join([*lines, extra]))
        done = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def render_file(folder, component):
    """The objects of `kubeflow.yaml` in a folder, with a component on top."""
    lines = ["resources: [kubeflow.yaml]", f"components: [{relative(component, folder)}]"]
    (folder / "kustomization.yaml").write_text("\n".join(lines))
    done = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def relative(part, folder):
    return os.path.relpath(DEPLOY / part, Path(folder).resolve())


def render(*parts, extra=""):
    """The objects, in kustomize's order."""
    return list(yaml.safe_load_all(text(*parts, extra=extra)))


def of(documents, *kinds):
    return [document for document in documents if document["kind"] in kinds]


def workloads(documents):
    """Deployments and StatefulSets."""
    return of(documents, "Deployment", "StatefulSet")


def named(documents, kind, name):
    (found,) = [d for d in of(documents, kind) if d["metadata"]["name"] == name]
    return found
