def test_two_sandboxes_know_nothing_of_each_other_and_all_of_their_own_after_a_restart(
    start_sandbox, tmp_path, example
):
    both = [start_sandbox(tmp_path / name) for name in ("one", "two")]
    for sandbox in both:
        sandbox.wait_ready()
    for sandbox in both:
        result = sandbox.run(example("pipeline.yaml"), "-p", "message=same")
        assert result["tasks"][0]["decision"] == "executed"
        sandbox.recorded(result["run"], 1)
        assert [run["run"] for run in sandbox.lineage("runs")["runs"]] == [result["run"]]
    assert [sandbox.end() for sandbox in both] == [0, 0]
    assert not (both[0].state / "sandbox.json").exists()
    again = start_sandbox(both[0].state).wait_ready()
    second = again.run(example("pipeline.yaml"), "-p", "message=same")
    assert second["tasks"][0]["decision"] == "reused"
    again.recorded(second["run"], 1)
    assert len(again.lineage("runs")["runs"]) == 2


def test_a_run_without_a_sandbox_says_how_to_start_one(start_sandbox, tmp_path, example, memopod):
    import subprocess

    command = (*memopod, "run", str(example("pipeline.yaml")), "-p", "message=x", "--state", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "memopod sandbox up" in done.stderr
