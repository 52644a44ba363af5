def test_two_sandboxes_run_side_by_side(start_sandbox, tmp_path, example):
    both = [start_sandbox(tmp_path / name) for name in ("one", "two")]
    for sandbox in both:
        sandbox.wait_ready()
    for sandbox in both:
        result = sandbox.run(example("pipeline.yaml"), "-p", "message=same")
        assert result["tasks"][0]["decision"] == "executed"
        sandbox.recorded(result["run"], 1)
        assert [run["run"] for run in sandbox.lineage("runs")["runs"]] == [result["run"]]
    assert [sandbox.end() for sandbox in both] == [0, 0]


def test_what_a_sandbox_knew_is_known_again_after_a_restart(start_sandbox, tmp_path, example):
    sandbox = start_sandbox(tmp_path / "state").wait_ready()
    first = sandbox.run(example("pipeline.yaml"), "-p", "message=kept")
    sandbox.recorded(first["run"], 1)
    assert sandbox.end() == 0
    assert not (sandbox.state / "sandbox.json").exists()
    sandbox = start_sandbox(tmp_path / "state").wait_ready()
    second = sandbox.run(example("pipeline.yaml"), "-p", "message=kept")
    assert second["tasks"][0]["decision"] == "reused"
    sandbox.recorded(second["run"], 1)
    assert len(sandbox.lineage("runs")["runs"]) == 2


def test_a_folder_in_use_is_refused(start_sandbox, tmp_path, eventually):
    first = start_sandbox(tmp_path / "state").wait_ready()
    second = start_sandbox(tmp_path / "state")
    second.log = tmp_path / "second.log"
    assert second.process.wait(30) == 1
    assert first.process.poll() is None


def test_a_run_without_a_sandbox_says_how_to_start_one(start_sandbox, tmp_path, example, memopod):
    import subprocess

    command = (*memopod, "run", str(example("pipeline.yaml")), "-p", "message=x", "--state", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "memopod sandbox up" in done.stderr
