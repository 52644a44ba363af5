import json
import os
import signal

import pytest


def finished(process, limit=100):
    output, _ = process.communicate(timeout=limit)
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("service", ["metadata-store", "cache-server", "metadata-writer", "envoy", "janitor"])
def test_a_run_finishes_and_its_lineage_is_whole_when_a_service_is_killed(
    sandbox, slow_pipeline, eventually, service
):
    logs = sandbox.state / "pods"
    known = set(logs.iterdir()) if logs.exists() else set()
    running = sandbox.begin(slow_pipeline, "-p", f"text={service}")
    eventually(lambda: logs.exists() and set(logs.iterdir()) - known, "the first step runs")
    sandbox.kill(service)
    result = finished(running)
    assert result["state"] == "Succeeded"
    assert [task["outputs"]["out"] for task in result["tasks"]] == [f"{service}-{n}" for n in range(3)]
    steps = sandbox.recorded(result["run"], 3)
    assert sorted(step["step"] for step in steps) == ["step-0", "step-1", "step-2"]


def test_a_run_that_begins_while_the_cache_server_is_dead_finishes(sandbox, example):
    sandbox.kill("cache-server")
    result = sandbox.run(example("pipeline.yaml"), "-p", "message=nobody decides")
    assert (result["state"], result["outputs"]) == ("Succeeded", {"Output": "nobody decides"})
    assert len(sandbox.recorded(result["run"], 1)) == 1


def test_a_run_survives_the_death_of_the_api_server(sandbox, slow_pipeline, eventually):
    logs = sandbox.state / "pods"
    known = set(logs.iterdir()) if logs.exists() else set()
    running = sandbox.begin(slow_pipeline, "-p", "text=api")
    eventually(lambda: logs.exists() and set(logs.iterdir()) - known, "the first step runs")
    sandbox.kill("api-server")
    result = finished(running)
    assert result["state"] == "Succeeded"
    assert len(sandbox.recorded(result["run"], 3)) == 3


def test_a_step_whose_kubelet_dies_fails_and_leaves_no_process(sandbox, slow_pipeline, eventually, processes):
    logs = sandbox.state / "pods"
    known = set(logs.iterdir()) if logs.exists() else set()
    running = sandbox.begin(slow_pipeline, "-p", "text=kubelet", "--no-cache")
    (folder,) = eventually(lambda: logs.exists() and set(logs.iterdir()) - known, "the first step runs")
    eventually(lambda: processes(folder), "its process is there")
    sandbox.kill("kubelet")
    eventually(lambda: not processes(folder), "its process is gone")
    result = finished(running)
    assert result["state"] == "Failed"
    assert "kubelet was started anew" in result["message"]


def test_a_stopped_run_leaves_no_pod_running(sandbox, slow_pipeline, eventually, processes):
    logs = sandbox.state / "pods"
    known = set(logs.iterdir()) if logs.exists() else set()
    running = sandbox.begin(slow_pipeline, "-p", "text=stopped", "--no-cache")
    (folder,) = eventually(lambda: logs.exists() and set(logs.iterdir()) - known, "the first step runs")
    running.send_signal(signal.SIGINT)
    result = finished(running)
    assert (running.returncode, result["state"], result["message"]) == (130, "Failed", "stopped")
    eventually(lambda: not processes(folder), "its process is gone")


def test_nothing_is_left_when_the_supervisor_itself_is_killed(start_sandbox, tmp_path, eventually, processes):
    sandbox = start_sandbox(tmp_path / "state").wait_ready()
    assert len(processes(sandbox.state)) > 7
    os.kill(sandbox.process.pid, signal.SIGKILL)
    sandbox.process.wait(10)
    eventually(lambda: not processes(sandbox.state), "all processes are gone")
    again = start_sandbox(tmp_path / "state").wait_ready()
    assert again.end() == 0
