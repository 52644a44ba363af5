import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

LIMIT = 60
"""Seconds for anything that a test waits for."""
MEMOPOD = (sys.executable, "-m", "memopod.cli")
EXAMPLES = Path(__file__).parents[2] / "memopod" / "sandbox" / "examples"


def until(condition, what):
    """The first true answer of `condition`."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {LIMIT} s, and still not: {what}")


def processes_of(folder):
    """Processes whose command line names a folder, but for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            pid = int(path.parent.name)
            if str(folder) in command and pid != os.getpid():
                found.append((pid, command))
    return found


@dataclass
class Sandbox:
    """A sandbox that was started from the command line."""

    state: Path
    process: subprocess.Popen
    log: Path

    @classmethod
    def start(cls, state):
        log = state.with_suffix(".log")
        with log.open("wb") as output:
            command = (*MEMOPOD, "sandbox", "up", "--state", str(state))
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        return cls(state, process, log)

    def wait_ready(self):
        def ready():
            assert self.process.poll() is None, self.log.read_text()
            return "ready" in self.log.read_text().splitlines()

        until(ready, "the sandbox is ready")
        return self

    @property
    def description(self):
        return json.loads((self.state / "sandbox.json").read_text())

    def end(self, number=signal.SIGTERM):
        """End the sandbox with a signal; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def command(self, *words):
        """Run a command of memopod against this sandbox; returns its exit status and output."""
        command = (*MEMOPOD, *words, "--state", str(self.state))
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT * 2)
        return done.returncode, done.stdout, done.stderr

    def run(self, pipeline, *words):
        """Run a pipeline; returns the printed JSON."""
        status, output, errors = self.command("run", str(pipeline), "--json", *words)
        result = json.loads(output.splitlines()[-1])
        assert status == (0 if result["state"] == "Succeeded" else 1), errors
        return result

    def begin(self, pipeline, *words):
        """Start a run, and return the process."""
        command = (*MEMOPOD, "run", str(pipeline), "--json", *words, "--state", str(self.state))
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def kill(self, service):
        """End a service's program with SIGKILL: the child of its guard."""
        guard = self.description["services"][service]["pid"]
        (program,) = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
        os.kill(int(program), signal.SIGKILL)
        until(lambda: self.description["services"][service]["pid"] != guard, f"{service} is started again")

    def lineage(self, *words):
        """The JSON of `memopod lineage`, or None when it says that something is not there (yet)."""
        status, output, _ = self.command("lineage", *words, "--json")
        return json.loads(output) if status == 0 else None

    def recorded(self, run, tasks):
        """The steps that are recorded of a run, once there are so many and all have ended."""

        def complete():
            report = self.lineage("show", run)
            states = [step["state"] for step in report["steps"]] if report else []
            ended = [state for state in states if state in {"COMPLETE", "CACHED"}]
            return report["steps"] if len(ended) >= tasks else None

        return until(complete, f"{tasks} steps of {run} are recorded")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A sandbox that the tests of a module share."""
    sandbox = Sandbox.start(tmp_path_factory.mktemp("sandbox") / "state")
    try:
        yield sandbox.wait_ready()
    finally:
        status = sandbox.end()
    assert status == 0, sandbox.log.read_text()
    assert processes_of(sandbox.state) == []


@pytest.fixture
def start_sandbox():
    """Starts further sandboxes, and ends them."""
    started = []

    def start(state):
        started.append(Sandbox.start(state))
        return started[-1]

    yield start
    for sandbox in started:
        sandbox.end()


@pytest.fixture(scope="session")
def eventually():
    return until


@pytest.fixture(scope="session")
def processes():
    return processes_of


@pytest.fixture(scope="session")
def memopod():
    """The command line."""
    return MEMOPOD


@pytest.fixture(scope="session")
def example():
    """The path of a pipeline that comes with memopod."""
    return lambda name: EXAMPLES / name


@pytest.fixture
def slow_pipeline(tmp_path):
    """A pipeline of three steps, one after the other, that take a second each and know their `text`."""

    def task(number):
        after = {"dependentTasks": [f"step-{number - 1}"]} if number else {}
        return {
            "componentRef": {"name": "comp-step"},
            "cachingOptions": {"enableCache": True},
            "inputs": {
                "parameters": {
                    "text": {"componentInputParameter": "text"},
                    "number": {"runtimeValue": {"constant": number}},
                }
            },
            **after,
        }

    inputs = {
        "parameters": {"text": {"parameterType": "STRING"}, "number": {"parameterType": "NUMBER_INTEGER"}}
    }
    container = {
        "image": "busybox:1",
        "command": ["sh", "-c", 'sleep 1; printf "%s" "$2-$3" > "$1"', "sh"],
        "args": [
            "{{$.outputs.parameters['out'].output_file}}",
            "{{$.inputs.parameters['text']}}",
            "{{$.inputs.parameters['number']}}",
        ],
    }
    document = {
        "pipelineInfo": {"name": "slow"},
        "schemaVersion": "2.1.0",
        "components": {
            "comp-step": {
                "executorLabel": "exec-step",
                "inputDefinitions": inputs,
                "outputDefinitions": {"parameters": {"out": {"parameterType": "STRING"}}},
            }
        },
        "deploymentSpec": {"executors": {"exec-step": {"container": container}}},
        "root": {
            "inputDefinitions": {"parameters": {"text": {"parameterType": "STRING"}}},
            "dag": {"tasks": {f"step-{number}": task(number) for number in range(3)}},
        },
    }
    path = tmp_path / "slow.yaml"
    path.write_text(yaml.safe_dump(document))
    return path
