"""Writes deploy/observability/dashboard.json, in the shapes of Grafana's own schema."""

import dataclasses
import itertools
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import StackingMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableHide

PAGE = Path(__file__).resolve().parents[1] / "deploy" / "observability" / "dashboard.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH, HEIGHT = 8, 7
"""Of a panel; a dashboard is 24 wide."""


@dataclasses.dataclass(frozen=True)
class Graph:
    """A panel: `queries` are (expression, legend)."""

    title: str
    meaning: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    stacked: bool = False


@dataclasses.dataclass(frozen=True)
class Number:
    """A panel with one number: how things stand now, or over the time shown."""

    title: str
    meaning: str
    query: str
    unit: str = "short"


def per_second(metric: str, by: str, legend: str = "") -> tuple[str, str]:
    """The rate of a counter by a label."""
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))", legend or f"{{{{{by}}}}}"


def quantiles(metric: str, by: str = "") -> tuple[tuple[str, str], ...]:
    """p50 and p99 of a histogram."""
    labels = f"le, {by}" if by else "le"
    return tuple(
        (
            f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))",
            f"p{q * 100:.0f}" + (f" {{{{{by}}}}}" if by else ""),
        )
        for q in (0.5, 0.99)
    )


def steps(decisions: str, admissions: str) -> str:
    """How many steps were decided for over the time shown, by selectors: those that were held by their
    decision, all others (in placeholder mode that is every one) at admission. A metric without such a
    series counts as zero.
    """
    decided, admitted = (
        f"(sum(increase({metric}[$__range])) or vector(0))"
        for metric in (f"memopod_decisions_total{decisions}", f"memopod_admissions_total{admissions}")
    )
    return f"({decided} + {admitted})"


STEPS = steps("", '{decision!="hold"}')
REUSED = steps('{decision="reuse"}', '{decision="reuse"}')
ROWS: dict[str, tuple[Graph | Number, ...]] = {
    "Now": (
        Number(
            "Reused", "Share of the steps that were a reuse, over the time shown.",
            f"{REUSED} / {STEPS}", "percentunit",
        ),
        Number("Steps reused", "Steps that were finished without running, over the time shown.", REUSED),
        Number(
            "Pods held too long", "Nobody decided in time; above zero there is an alert.",
            'sum(increase(memopod_overdue_total{action!="taken"}[$__range]))',
        ),
        Number(
            "Steps in quarantine", "Steps that the metadata writer cannot record.",
            "max(memopod_writer_steps_quarantined)",
        ),
        Number(
            "Longest wait for a record", "How long the step waits that waits longest for its record.",
            "max(memopod_writer_oldest_waiting_seconds)", "s",
        ),
        Number(
            "Audits that differed", "Steps that put out something else when they ran again.",
            'sum(increase(memopod_audits_total{result="different"}[$__range]))',
        ),
    ),
    "Reuse": (
        Graph(
            "Decisions", "What was decided for held Pods, and why.",
            (
                (
                    "sum by (decision, reason) (rate(memopod_decisions_total[$__rate_interval]))",
                    "{{decision}}: {{reason}}",
                ),
            ),
            "ops", stacked=True,
        ),
        Graph(
            "Admissions", "Pods that the webhook saw, by what it said of them.",
            (
                (
                    "sum by (decision, reason) (rate(memopod_admissions_total[$__rate_interval]))",
                    "{{decision}}: {{reason}}",
                ),
            ),
            "ops", stacked=True,
        ),
        Graph(
            "Steps that ran", "What became of steps that ran: recorded is an entry.",
            (per_second("memopod_recorded_total", "result"),), "ops", stacked=True,
        ),
        Graph(
            "Time of a decision", "From a held Pod seen to its decision carried out.",
            quantiles("memopod_decision_seconds"), "s",
        ),
        Graph(
            "Time of an admission", "From request to answer; a Pod's creation is late by it.",
            quantiles("memopod_admission_seconds"), "s",
        ),
        Graph(
            "Certificate", "How long the webhook's certificate is still valid.",
            (("min by (pod) (memopod_certificate_expiration_timestamp_seconds) - time()", "{{pod}}"),), "s",
        ),
        Graph(
            "Overdue Pods", "Pods that were held too long, by what sweepers and janitor did.",
            (per_second("memopod_overdue_total", "action"),), "ops",
        ),
        Graph(
            "Waiting", "Pods that wait for an identical step, and how waits ended.",
            (("sum(memopod_waiting)", "waiting"), per_second("memopod_waits_total", "end", "{{end}} /s")),
        ),
        Graph(
            "Audits", "Hits that ran to be compared, by what came of it.",
            (per_second("memopod_audits_total", "result"),), "ops",
        ),
        Graph(
            "Events dropped", "Kubernetes Events that were not written, since others wait.",
            (("sum(rate(memopod_events_dropped_total[$__rate_interval]))", "dropped"),), "ops",
        ),
        Graph(
            "Placeholders", "Placeholder mode: what became of placeholder Pods.",
            (per_second("memopod_placeholders_total", "result"),), "ops",
        ),
    ),
    "Entries": (
        Graph(
            "Look-ups", "What each layer answered.",
            (
                (
                    "sum by (layer, result) (rate(memopod_entries_lookups_total[$__rate_interval]))",
                    "{{layer}}: {{result}}",
                ),
            ),
            "ops", stacked=True,
        ),
        Graph(
            "Object stores", "1 while an object store answers.",
            (("min by (store) (memopod_object_store_up)", "{{store}}"),),
        ),
        Graph(
            "Deleted by retention", "Entries that were beyond a limit, by which.",
            (per_second("memopod_entries_deleted_total", "reason"),), "ops",
        ),
        Graph(
            "Told by Redis", "1 while Redis tells a replica of changes.",
            (("sum by (pod) (memopod_entries_subscribed)", "{{pod}}"),),
        ),
    ),
    "Metadata writer": (
        Graph(
            "Records", "Writes that brought a step up to date, by its state.",
            (
                per_second("memopod_writer_steps_recorded_total", "state"),
                ("sum(rate(memopod_writer_steps_unchanged_total[$__rate_interval]))", "known already"),
            ),
            "ops",
        ),
        Graph(
            "Time to a record", "From the event that showed a step to its record.",
            quantiles("memopod_writer_lag_seconds"), "s",
        ),
        Graph(
            "Waiting for a record", "Steps in the queue, failing, in quarantine, or without an artifact.",
            (
                ("sum(memopod_writer_queue_depth)", "queue"),
                ("sum(memopod_writer_steps_failing)", "failing"),
                ("sum(memopod_writer_steps_quarantined)", "quarantine"),
                ("sum(memopod_writer_steps_unresolved)", "unresolved"),
            ),
        ),
        Graph(
            "Retries", "Recordings that were tried again, by why.",
            (per_second("memopod_writer_retries_total", "reason"),), "ops",
        ),
        Graph(
            "The API server's work", "Objects that were asked for, and Pods that were labelled.",
            (
                per_second("memopod_writer_fetches_total", "kind", "fetched {{kind}}"),
                ("sum(rate(memopod_writer_pods_marked_total[$__rate_interval]))", "labelled Pods"),
                ("sum(rate(memopod_writer_outputs_offloaded_total[$__rate_interval]))", "offloaded outputs"),
            ),
            "ops",
        ),
        Graph(
            "Kept", "Objects kept for steps that are not recorded in full.",
            (("sum by (pod) (memopod_writer_kept_bytes)", "{{pod}}"),), "bytes",
        ),
        Graph(
            "Store reachable", "1 while the store answers the writer.",
            (("sum by (pod) (memopod_writer_store_reachable)", "{{pod}}"),),
        ),
        Graph(
            "OpenLineage", "Events, by what became of them.",
            (per_second("memopod_writer_openlineage_events_total", "outcome"),), "ops",
        ),
    ),
    "Metadata store": (
        Graph("Calls", "By RPC.", (per_second("metadata_store_calls_total", "rpc"),), "ops", stacked=True),
        Graph(
            "Calls that did not end well", "By gRPC status.",
            (per_second('metadata_store_calls_total{code!="OK"}', "code"),), "ops",
        ),
        Graph(
            "Time of a call", "p99 by RPC, waiting for a worker included.",
            quantiles("metadata_store_call_seconds", "rpc")[1:], "s",
        ),
        Graph(
            "Waiting for a worker", "Calls, by lane.",
            (("sum by (lane) (metadata_store_calls_waiting)", "{{lane}}"),),
        ),
        Graph(
            "Workers replaced", "Workers that died, since the start of each replica.",
            (("sum by (pod, lane) (metadata_store_workers_replaced)", "{{pod}} {{lane}}"),),
        ),
        Graph(
            "Guard", "Calls to the metadata guard, by gRPC status.",
            (per_second("memopod_guard_calls_total", "code"),), "ops",
        ),
    ),
}  # fmt: skip


def reference() -> str:
    """The dashboard as JSON."""
    built = (
        dashboard.Dashboard("memopod")
        .uid("memopod")
        .description("Steps that are reused, and what every step did.")
        .tags(["memopod"])
        .refresh("1m")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource")
            .label("Prometheus")
            .type("prometheus")
            .hide(VariableHide.DONT_HIDE)
        )
    )
    ids = itertools.count(1)
    for title, panels in ROWS.items():
        built.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            built.with_panel((number(panel) if isinstance(panel, Number) else graph(panel)).id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def graph(panel: Graph) -> timeseries.Panel:
    """A panel over time."""
    built = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.meaning)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .fill_opacity(20 if panel.stacked else 5)
        .span(WIDTH)
        .height(HEIGHT)
    )
    if panel.stacked:
        built.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for letter, (expression, legend) in zip("ABCD", panel.queries, strict=False):
        built.with_target(query(expression).legend_format(legend).ref_id(letter))
    return built


def number(panel: Number) -> stat.Panel:
    """A panel with one number."""
    built = stat.Panel().title(panel.title).description(panel.meaning).datasource(SOURCE).unit(panel.unit)
    return built.span(4).height(4).with_target(query(panel.query).instant().ref_id("A"))


def query(expression: str) -> prometheus.Dataquery:
    """A query of the data source that is chosen on the dashboard."""
    return prometheus.Dataquery().datasource(SOURCE).expr(expression)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
