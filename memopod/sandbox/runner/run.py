"""One run: a loop that compares what is with what should be, and does what is missing.

Nothing depends on having seen an event: each turn reads the informers' copies, so a restart of the
API server, a lost answer or a late event only costs time.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from memopod.kube import (
    PODS,
    TASK_RESULTS,
    WORKFLOWS,
    ApiError,
    Client,
    Conflict,
    Informer,
    NotFound,
    Unavailable,
)
from memopod.kube.backoff import Backoff
from memopod.sandbox.argo import (
    archive_location,
    build_pod,
    build_workflow,
    container_template,
    node_id,
    workflow_status,
)
from memopod.sandbox.argo.workflows import ERROR, FAILED, OMITTED, RUNNING, SUCCEEDED
from memopod.sandbox.pipelines import PipelineError, Plan, as_text, render
from memopod.sandbox.runner.results import RunResult
from memopod.sandbox.runner.step import BadValue, Given, StepState
from memopod.steps import names

_IDLE = 15.0
"""Seconds after which a quiet run looks again by itself."""
_RETRY = 0.5
"""Seconds before what the API server did not answer is tried again."""
_BEGIN_TIMEOUT = 30.0
"""Seconds for creating the Workflow."""
_END_TIMEOUT = 60.0
"""Seconds for writing the end of a run: more than a restart of the API server takes."""


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task for people who watch: `state` is waiting, held, pending, running, executed, reused, failed
    or skipped.
    """

    name: str
    state: str
    seconds: float | None


class Run:
    """One run of a pipeline. `execute` is called once."""

    def __init__(
        self,
        client: Client,
        plan: Plan,
        parameters: Mapping[str, Any],
        *,
        namespace: str = "pipelines",
        cached: bool = True,
        timeout: float = 3600.0,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.name = ""
        self._client = client
        self._plan = plan
        self._parameters = parameters
        self._namespace = namespace
        self._cached = cached
        self._timeout = timeout
        self._on_change = on_change or (lambda: None)
        self._trace = secrets.token_hex(16)
        self._workflow: dict[str, Any] = {}
        self._steps: dict[str, StepState] = {}
        self._given = Given(parameters, self._steps)
        self._changed = asyncio.Event()
        self._unanswered = False
        self._started = datetime.now(UTC)
        self._written: dict[str, Any] = {}
        self._log = structlog.get_logger()

    async def execute(self, stop: asyncio.Event) -> RunResult:
        """Run the pipeline to its end, or until `stop` is set or the run's time is over.

        Raises ApiError if the Workflow cannot be created or its end cannot be written.
        """
        await self._begin()
        selector = f"{names.ARGO_WORKFLOW}={self.name}"
        scope: dict[str, Any] = {"namespace": self._namespace, "label_selector": selector}
        pods = Informer(self._client, PODS, on_event=self._on_pod, **scope)
        reported = Informer(self._client, TASK_RESULTS, on_event=self._on_result, **scope)
        following = [
            asyncio.create_task(pods.run(), name="pods of the run"),
            asyncio.create_task(reported.run(), name="results of the run"),
        ]
        try:
            message = await self._drive(reported, stop, following)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        return await self._end(message)

    def views(self) -> list[TaskView]:
        """The tasks as they are now."""
        return [self._view(step) for step in self._steps.values()]

    async def _begin(self) -> None:
        parameters = {name: as_text(value) for name, value in self._parameters.items()}
        body = build_workflow(
            self._plan, parameters, namespace=self._namespace, trace_id=self._trace, cached=self._cached
        )

        async def create() -> None:
            self._workflow = await self._client.create(WORKFLOWS, body, namespace=self._namespace)

        await _insist(create, within=_BEGIN_TIMEOUT)
        self.name = self._workflow["metadata"]["name"]
        for task in self._plan.tasks:
            children = [other.name for other in self._plan.tasks if task.name in other.after]
            ids = tuple(node_id(self.name, f"{self.name}.{child}") for child in children)
            self._steps[task.name] = StepState.begin(self.name, task, ids)
        self._on_change()

    def _on_pod(self, kind: str, pod: dict[str, Any]) -> None:
        for step in self._steps.values():
            if step.pod_name != pod["metadata"]["name"]:
                continue
            known = step.pod["metadata"]["uid"] if step.pod is not None else None
            if kind != "DELETED":
                step.pod, step.gone = pod, False
            elif known == pod["metadata"]["uid"]:
                step.pod, step.gone = pod, True
        self._changed.set()

    def _on_result(self, _kind: str, _result: dict[str, Any]) -> None:
        self._changed.set()

    async def _drive(
        self, reported: Informer, stop: asyncio.Event, following: Iterable[asyncio.Task[None]]
    ) -> str:
        """Turn after turn until every task is done. Returns why it was stopped, if it was."""
        stopping = asyncio.create_task(stop.wait(), name="stop")
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            while not all(step.fulfilled for step in self._steps.values()):
                self._changed.clear()
                await self._turn(reported)
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    return f"the run took longer than {self._timeout:g} s"
                changing = asyncio.create_task(self._changed.wait(), name="change")
                pause = min(left, _RETRY if self._unanswered else _IDLE)
                try:
                    if not all(step.fulfilled for step in self._steps.values()):
                        await asyncio.wait(
                            {changing, stopping, *following},
                            timeout=pause,
                            return_when=asyncio.FIRST_COMPLETED,
                        )
                finally:
                    changing.cancel()
                for task in following:
                    if task.done():
                        task.result()
                if stopping.done():
                    return "stopped"
        finally:
            stopping.cancel()
        return ""

    async def _turn(self, reported: Informer) -> None:
        self._unanswered = False
        for step in self._steps.values():
            step.observe(reported.objects.get((self._namespace, node_id(self.name, step.node.name))))
        failed = any(step.fulfilled and not step.succeeded for step in self._steps.values())
        ready = [step for step in self._steps.values() if self._is_ready(step)]
        if failed:
            # As Argo's DAGs by default: what runs goes on, nothing new begins.
            for step in self._steps.values():
                if step.pod is None and not step.fulfilled:
                    step.end(OMITTED, "an earlier task failed")
        else:
            await asyncio.gather(*(self._create(step) for step in ready))
        for step in self._steps.values():
            await self._attempt(lambda step=step: self._mark_completed(step))  # type: ignore[misc]
        await self._attempt(lambda: self._write_status(RUNNING, "", None))
        self._on_change()

    def _is_ready(self, step: StepState) -> bool:
        return (
            step.pod is None
            and not step.fulfilled
            and all(self._steps[name].succeeded for name in step.task.after)
        )

    async def _create(self, step: StepState) -> None:
        try:
            template = step.template or self._template(step)
        except (PipelineError, BadValue) as error:
            step.end(ERROR, str(error))
            return
        if step.template is None:
            step.template, step.trace = template, (self._trace, secrets.token_hex(8))
            step.node.started_at = datetime.now(UTC)
            inputs = {key: value for key, value in template["inputs"].items() if value}
            step.node.inputs = inputs
        pod = build_pod(
            self._workflow, step.node.name, template, trace_id=step.trace[0], span_id=step.trace[1]
        )

        async def create() -> None:
            try:
                created = await self._client.create(PODS, pod, namespace=self._namespace)
            except Conflict:
                # Created by a request whose answer was lost.
                created = await self._client.get(PODS, step.pod_name, namespace=self._namespace)
            if step.pod is None:
                step.pod, step.gone = created, False

        try:
            await self._attempt(create)
        except ApiError as error:
            step.end(ERROR, f"the Pod was refused: {error}")

    def _template(self, step: StepState) -> dict[str, Any]:
        inputs = self._given.inputs(step.task)
        locations = self._given.locations(step.task)
        return container_template(
            step.task,
            render(step.task, inputs, locations),
            locations,
            parameters={name: as_text(value) for name, value in inputs.items()},
            archive=archive_location(self.name, step.pod_name),
            cached=self._cached and step.task.cached,
        )

    async def _mark_completed(self, step: StepState) -> None:
        """Label the Pod of a finished node, as Argo does; its garbage collectors look for that."""
        if step.marked or not step.fulfilled or step.pod is None or step.gone:
            return
        patch = {"metadata": {"labels": {names.ARGO_COMPLETED: "true"}}}
        with contextlib.suppress(NotFound):
            await self._client.patch(PODS, step.pod_name, patch, namespace=self._namespace)
        step.marked = True

    async def _attempt(self, request: Callable[[], Awaitable[None]]) -> None:
        """Send a request; one that is not answered is sent again in a later turn."""
        try:
            await request()
        except Unavailable as error:
            self._unanswered = True
            self._log.debug("no answer, tried again", error=str(error))

    async def _write_status(self, phase: str, message: str, finished: datetime | None) -> None:
        begun = [step.node for step in self._steps.values() if step.node.started_at or step.fulfilled]
        status = workflow_status(
            self.name, begun, phase=phase, message=message, started_at=self._started, finished_at=finished
        )
        if status == self._written:
            return
        patch: dict[str, Any] = {"status": status}
        if finished is not None:
            labels = {names.ARGO_COMPLETED: "true", "workflows.argoproj.io/phase": phase}
            patch["metadata"] = {"labels": labels}
        await self._client.patch(WORKFLOWS, self.name, patch, namespace=self._namespace)
        self._written = status

    async def _end(self, stopped: str) -> RunResult:
        """Write the end: unfinished Pods are deleted, the Workflow is closed, its results are deleted."""
        unfinished = [step for step in self._steps.values() if not step.fulfilled]
        for step in unfinished:
            step.end(FAILED if step.pod is not None else OMITTED, stopped)
        finished = datetime.now(UTC)
        failed = next((s for s in self._steps.values() if s.node.phase in {FAILED, ERROR}), None)
        phase = FAILED if failed or unfinished else SUCCEEDED
        message = stopped or (f"task {failed.task.name!r}: {failed.node.message}" if failed else "")
        for step in unfinished:
            if step.pod is not None and not step.gone:
                await _insist(lambda step=step: self._delete_pod(step), within=_END_TIMEOUT)  # type: ignore[misc]
        for step in self._steps.values():
            await _insist(lambda step=step: self._mark_completed(step), within=_END_TIMEOUT)  # type: ignore[misc]
        await _insist(lambda: self._write_status(phase, message, finished), within=_END_TIMEOUT)
        await _insist(self._delete_results, within=_END_TIMEOUT)
        self._on_change()
        return RunResult(
            run=self.name,
            state=phase,
            seconds=(finished - self._started).total_seconds(),
            outputs=self._outputs(),
            tasks=tuple(step.outcome() for step in self._steps.values()),
            message=message,
            stopped=bool(stopped),
        )

    async def _delete_pod(self, step: StepState) -> None:
        with contextlib.suppress(NotFound):
            await self._client.delete(PODS, step.pod_name, namespace=self._namespace)
        step.gone = True

    async def _delete_results(self) -> None:
        """Argo deletes a Workflow's results as soon as it has ended."""
        listed = await self._client.list(
            TASK_RESULTS, namespace=self._namespace, label_selector=f"{names.ARGO_WORKFLOW}={self.name}"
        )
        for result in listed["items"]:
            with contextlib.suppress(NotFound):
                await self._client.delete(TASK_RESULTS, result["metadata"]["name"], namespace=self._namespace)

    def _outputs(self) -> dict[str, Any]:
        """The pipeline's outputs, as far as there are any."""
        outputs: dict[str, Any] = {}
        for name, source in self._plan.outputs.items():
            value = self._given.value(source)
            if value is not None:
                outputs[name] = value
        for name, artifact in self._plan.output_artifacts.items():
            step = self._steps[artifact.task]
            if artifact.output in step.artifacts:
                outputs[name] = step.uri(artifact.output)
        return outputs

    def _view(self, step: StepState) -> TaskView:
        if step.succeeded:
            state = step.decision
        elif step.fulfilled:
            state = "skipped" if step.node.phase == OMITTED else "failed"
        elif step.node.phase == RUNNING:
            state = "running"
        elif step.held:
            state = "held"
        else:
            state = "waiting" if step.pod is None else "pending"
        begun, ended = step.node.started_at, step.node.finished_at
        seconds = ((ended or datetime.now(UTC)) - begun).total_seconds() if begun else None
        return TaskView(step.task.name, state, seconds)


async def _insist(request: Callable[[], Awaitable[None]], *, within: float) -> None:
    """Send a request until it is answered, for `within` seconds; then its last error is raised."""
    backoff = Backoff(longest=2.0)
    deadline = asyncio.get_running_loop().time() + within
    while True:
        try:
            await request()
            return
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(backoff.next())
