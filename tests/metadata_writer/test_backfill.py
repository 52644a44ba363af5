import json
import subprocess
import sys
from pathlib import Path

import pytest

from metadata_writer.backfill import Unreadable, from_file, steps_of
from metadata_writer.records import State

SAMPLES = Path(__file__).parent.parent / "samples"
FINAL = sorted(p for p in SAMPLES.glob("argo-*/*.workflow-final.json") if "kfp-v2" not in p.name)


def load(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", FINAL, ids=lambda p: f"{p.parent.name}-{p.name.partition('.')[0]}")
def test_all_steps_of_a_recorded_workflow_are_read(path):
    workflow = load(path)
    records = steps_of(workflow)
    pods = [n for n in workflow["status"]["nodes"].values() if n["type"] == "Pod" and n["phase"] != "Pending"]
    assert {r.external_id for r in records} == {f"{workflow['metadata']['uid']}/{n['id']}" for n in pods}
    assert all(r.state.finished for r in records)


def test_a_workflow_that_runs_is_left_to_the_writer():
    workflow = load(SAMPLES / "argo-4.1.2" / "parameters.workflow-final.json")
    workflow["status"]["phase"] = "Running"
    assert steps_of(workflow) == []


@pytest.mark.parametrize("kind", ["one", "list", "array", "lines", "yaml"])
def test_files_are_read_as_kubectl_and_argo_write_them(tmp_path, kind):
    workflows = [load(p) for p in FINAL[:2]]
    text = {
        "one": json.dumps(workflows[0]),
        "list": json.dumps({"kind": "List", "items": workflows}),
        "array": json.dumps([{k: w[k] for k in ("metadata", "spec", "status")} for w in workflows]),
        "lines": "\n".join(json.dumps(w) for w in workflows),
        "yaml": "---\n".join(json.dumps(w, indent=1) + "\n" for w in workflows),
    }[kind]
    path = tmp_path / "runs"
    path.write_text(text)
    found = list(from_file(path))
    assert [w["metadata"] for w in found] == [w["metadata"] for w in workflows][: 1 if kind == "one" else 2]


@pytest.mark.parametrize(
    "text", ["[1]", '{"kind": "Pod"}', '{"kind": "Pod", "metadata": {"uid": "1"}}', "a: [", '"x"']
)
def test_a_file_without_workflows_is_said_so(tmp_path, text):
    path = tmp_path / "runs"
    path.write_text(text)
    with pytest.raises(Unreadable, match="expected"):
        list(from_file(path))


def run(*arguments):
    command = [sys.executable, "-m", "memopod.cli", "writer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)


def test_the_command_records_a_file_and_can_be_run_again(tmp_path, store):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({"kind": "List", "items": [load(p) for p in FINAL]}))
    first = run("backfill", "--file", path, "--store", store.address, "--json")
    assert first.returncode == 0, first.stderr
    counts = json.loads(first.stdout)
    assert counts["workflows"] == len(FINAL)
    assert counts["written"] == counts["steps"] == len(store.client.get_executions())
    before = store.graph()
    again = run("backfill", "--file", path, "--store", store.address)
    assert "0 recorded" in again.stdout
    assert store.graph() == before
    assert set(before["nodes"].values()) == {1}


def test_what_cannot_be_recorded_is_named_and_stops_no_other(tmp_path, store):
    good, broken, refused = (load(p) for p in FINAL[:3])
    broken["status"]["nodes"] = {"n": 1}
    pod = next(n for n in refused["status"]["nodes"].values() if n["type"] == "Pod")
    pod["hostNodeName"] = ["no", "text"]
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([broken, refused, good]))
    done = run("backfill", "--file", path, "--store", store.address)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"/{broken['metadata']['name']}: its status cannot be read" in done.stderr
    assert f"{refused['metadata']['uid']}/{pod['id']}: TypeError" in done.stderr
    recorded = {e.external_id for e in store.client.get_executions()}
    wanted = {r.external_id for workflow in (good, refused) for r in steps_of(workflow)}
    assert recorded == wanted - {f"{refused['metadata']['uid']}/{pod['id']}"}


def test_a_store_that_is_not_there_is_one_line(tmp_path):
    path = tmp_path / "nothing.json"
    failed = run("backfill", "--file", path)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "nothing.json" in failed.stderr


def test_a_writer_that_does_not_answer_is_one_line():
    failed = run("status", "--url", "http://127.0.0.1:9")
    assert failed.returncode == 2
    assert "no writer answers" in failed.stderr


def test_cached_steps_without_a_machine_stay_cached():
    records = steps_of(load(SAMPLES / "argo-4.1.2" / "memoize-hit.workflow-final.json"))
    assert State.CACHED in {record.state for record in records}
