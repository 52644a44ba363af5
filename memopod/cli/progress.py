"""Shows a run while it goes on: a table that changes on a terminal, a line for each change elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from memopod.sandbox.runner import Run, RunResult, TaskView

_COLOURS = {
    "executed": "green",
    "reused": "cyan",
    "running": "yellow",
    "held": "magenta",
    "failed": "red",
    "skipped": "dim",
}
_REFRESH = 8
"""Redraws of the table in a second."""


class Progress:
    """Follows one run; `changed` is called when a task's state may have changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._run: Run | None = None
        self._told: dict[str, str] = {}

    def follow(self, run: Run) -> None:
        """The run to show."""
        self._run = run
        self._told = {}

    def changed(self) -> None:
        """Print what is new, where no terminal shows it anyway."""
        if self._run is None or self._console.is_terminal:
            return
        for view in self._run.views():
            if self._told.get(view.name) != view.state and view.state != "waiting":
                self._told[view.name] = view.state
                self._console.print(
                    f"{self._run.name}  {view.name}: {view.state}{_after(view)}", highlight=False
                )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table while the context lasts."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self._console, refresh_per_second=_REFRESH):
            yield

    def _table(self) -> RenderableType:
        if self._run is None:
            return ""
        return task_table(self._run.name or "starting", self._run.views())


def task_table(title: str, views: Sequence[TaskView]) -> Table:
    """A run's tasks as they are."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("task")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    for view in views:
        colour = _COLOURS.get(view.state, "default")
        seconds = "" if view.seconds is None else f"{view.seconds:.1f}"
        table.add_row(view.name, f"[{colour}]{view.state}[/]", seconds)
    return table


def summary(result: RunResult) -> str:
    """One line about a run that has ended."""
    counts = {
        decision: sum(t.decision == decision for t in result.tasks) for decision in ("executed", "reused")
    }
    tasks = ", ".join(f"{count} {decision}" for decision, count in counts.items() if count) or "no task ran"
    return f"{result.run}: {result.state} in {result.seconds:.1f} s ({tasks})"


def _after(view: TaskView) -> str:
    ended = view.state in {"executed", "reused", "failed"}
    return f" after {view.seconds:.1f} s" if ended and view.seconds is not None else ""
