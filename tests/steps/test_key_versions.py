"""The keys of the recordings: a change of rules must show as a new KEY_VERSION.

.venv/bin/python tests/steps/test_key_versions.py     writes the keys of this KEY_VERSION anew
"""

import contextlib
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
from step_changes import MISFITS, NOT_SEMANTIC, SEMANTIC

from memopod.steps import NotAStep, read_step
from memopod.steps.key import KEY_VERSION, Unkeyable, base_key, entry_key, with_template

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "steps" / "golden_keys.json"
KNOWN = {"configmap.c": {"data": {"a": "1"}, "binaryData": {}}, "input.x": ["content", "md5:0", 1]}


def keys_of_recordings():
    """Recording, or change of one -> digest of its base key and of an entry key, or why it has none."""
    found = {
        str(path.relative_to(TESTS / "samples")): _keys(path)
        for path in sorted((TESTS / "samples").glob("argo-*/*.pod.json"))
    }
    changed = TESTS / "samples" / "argo-4.1.2" / "parameters.make.pod.json"
    for kind, change in {**SEMANTIC, **NOT_SEMANTIC}.items():
        with contextlib.suppress(MISFITS):
            found[f"{changed.name}: {kind}"] = _keys(changed, change)
    return found


def _keys(path, change=None):
    pod = json.loads(path.read_text())
    if change:
        change(pod, 1)
    try:
        step = read_step(pod)
        base = base_key(step)
        if step.template is None:
            config_map = json.loads(path.with_name(f"{path.name.split('.')[0]}.configmap.json").read_text())
            step = with_template(step, json.loads(config_map["data"]["ARGO_TEMPLATE"]))
        return [base.digest[:16], entry_key(step, KNOWN).digest[:16]]
    except (NotAStep, Unkeyable) as error:
        return error.reason


def test_keys_change_only_with_a_new_version_of_the_rules():
    golden = json.loads(GOLDEN.read_text())
    assert golden["key_version"] == KEY_VERSION, f"write {GOLDEN.name} anew: see this file's docstring"
    now = keys_of_recordings()
    moved = {name for name in golden["keys"] if now[name] != golden["keys"][name]}
    assert moved == set(), "the rules of keys have changed: that is a new KEY_VERSION"
    assert now.keys() == golden["keys"].keys(), f"write {GOLDEN.name} anew: there are other recordings"


def test_the_keys_of_another_version_are_not_written_over(tmp_path):
    golden = tmp_path / "golden.json"
    golden.write_text(json.dumps({"key_version": KEY_VERSION, "keys": {"a": ["1", "2"]}}))
    with pytest.raises(SystemExit, match="KEY_VERSION"):
        write(golden, {"a": ["other", "2"]})
    write(golden, {"a": ["1", "2"], "new": ["3", "4"]})
    assert json.loads(golden.read_text())["keys"].keys() == {"a", "new"}


def write(path, keys):
    """Raises SystemExit when the keys of a recording would change under an unchanged version."""
    if path.exists():
        before = json.loads(path.read_text())
        moved = [name for name in before["keys"] if name in keys and keys[name] != before["keys"][name]]
        if before["key_version"] == KEY_VERSION and moved:
            raise SystemExit(f"{len(moved)} keys have changed: raise KEY_VERSION in memopod/steps/key.py")
    path.write_text(json.dumps({"key_version": KEY_VERSION, "keys": keys}, indent=1) + "\n")


if __name__ == "__main__":
    write(GOLDEN, keys_of_recordings())
    sys.exit(0)
