import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
OTHERS = {"up", "apiserver_admission_webhook_fail_open_count"}
"""Metrics of Prometheus itself and of the API server."""

HEALTHY = {
    **{f'up{{job="{job}", pod="a"}}': "1x120" for job in ("cache-server", "janitor", "metadata-writer")},
    'up{job="metadata-store", pod="a"}': "1x120",
    'up{job="metadata-envoy", endpoint="status", pod="a"}': "1x120",
    'memopod_decisions_total{decision="reuse", reason="hit"}': "0+50x120",
    'memopod_decisions_total{decision="run", reason="miss"}': "0+50x120",
    'memopod_decisions_total{decision="run", reason="outputs-gone"}': "0+1x120",
    'memopod_decisions_total{decision="run", reason="outputs-unchecked"}': "0+1x120",
    'memopod_decisions_total{decision="run", reason="entries-unavailable"}': "0+1x120",
    'memopod_admissions_total{decision="hold", reason=""}': "0+100x120",
    'memopod_admissions_total{decision="run", reason="no-template"}': "0+1x120",
    'memopod_admission_seconds_bucket{le="0.005"}': "0+100x120",
    'memopod_admission_seconds_bucket{le="+Inf"}': "0+100x120",
    "memopod_certificate_expiration_timestamp_seconds": "604800x120",
    'memopod_decision_seconds_bucket{le="0.5"}': "0+100x120",
    'memopod_decision_seconds_bucket{le="+Inf"}': "0+100x120",
    'memopod_overdue_total{action="taken", job="janitor"}': "0+1x120",
    'memopod_overdue_total{action="failed", job="janitor"}': "0x120",
    'memopod_object_store_up{store="minio:9000/b"}': "1x120",
    'memopod_audits_total{result="same"}': "0+1x120",
    'memopod_recorded_total{result="recorded"}': "0+50x120",
    'memopod_placeholders_total{result="completed"}': "0+5x120",
    'memopod_entries_lookups_total{layer="redis", result="entry"}': "0+50x120",
    "memopod_writer_store_reachable": "1x120",
    "memopod_writer_oldest_waiting_seconds": "0.1x120",
    "memopod_writer_steps_quarantined": "0x120",
    'memopod_writer_openlineage_events_total{outcome="sent"}': "0+10x120",
    'metadata_store_calls_total{code="OK", rpc="PutLineageSubgraph"}': "0+100x120",
    'metadata_store_calls_total{code="INTERNAL", rpc="PutLineageSubgraph"}': "0+1x120",
    'metadata_store_call_seconds_bucket{rpc="PutLineageSubgraph", le="0.1"}': "0+100x120",
    'metadata_store_call_seconds_bucket{rpc="PutLineageSubgraph", le="+Inf"}': "0+100x120",
    'metadata_store_workers_replaced{pod="s", lane="light"}': "1x120",
    'memopod_guard_calls_total{code="PERMISSION_DENIED"}': "0+5x120",
}
"""A busy cluster, with the few errors that every cluster has: series -> promtool's notation, by minutes."""

BROKEN = {
    "MemopodComponentDown": {'up{job="metadata-writer", pod="a"}': "1 0x119"},
    "MemopodWebhookUnreachable": {
        'apiserver_admission_webhook_fail_open_count{name="cache.memopod.io", type="admit"}': "0+1x120"
    },
    "MemopodCertificateEnds": {"memopod_certificate_expiration_timestamp_seconds": "86400x120"},
    "MemopodAdmissionSlow": {
        'memopod_admission_seconds_bucket{le="0.005"}': "0+50x120",
        'memopod_admission_seconds_bucket{le="5.0"}': "0+100x120",
    },
    "MemopodNoLeader": {'memopod_admissions_total{decision="run", reason="no-controller"}': "0+1x120"},
    "MemopodCreatorsNotTrusted": {
        'memopod_admissions_total{decision="run", reason="untrusted-creator"}': "0+1x120"
    },
    "MemopodPodsStuck": {'memopod_overdue_total{action="failed", job="janitor"}': "0x65 1x60"},
    "MemopodPodsOverdue": {'memopod_overdue_total{action="released", job="janitor"}': "0x65 1x60"},
    "MemopodDecisionSlow": {
        'memopod_decision_seconds_bucket{le="0.5"}': "0+50x120",
        'memopod_decision_seconds_bucket{le="10.0"}': "0+100x120",
    },
    "MemopodEntriesUnavailable": {
        'memopod_decisions_total{decision="run", reason="entries-unavailable"}': "0+20x120"
    },
    "MemopodKubernetesRefuses": {
        'memopod_decisions_total{decision="run", reason="result-refused"}': "0+1x120"
    },
    "MemopodSealsInvalid": {'memopod_decisions_total{decision="run", reason="seal-invalid"}': "0+1x120"},
    "MemopodDecisionsFail": {'memopod_decisions_total{decision="run", reason="internal-error"}': "0x65 1x60"},
    "MemopodObjectStoreDown": {'memopod_object_store_up{store="minio:9000/b"}': "0x120"},
    "MemopodOutputsUnchecked": {
        'memopod_decisions_total{decision="run", reason="outputs-unchecked"}': "0+20x120"
    },
    "MemopodOutputsGone": {'memopod_decisions_total{decision="run", reason="outputs-gone"}': "0+20x120"},
    "MemopodAuditDifference": {'memopod_audits_total{result="different"}': "0x65 1x60"},
    "MemopodStepsNotRecorded": {'memopod_recorded_total{result="unavailable"}': "0+1x120"},
    "MemopodPlaceholdersNotCompleted": {'memopod_placeholders_total{result="foreign"}': "0+1x120"},
    "MemopodLayerSkipped": {'memopod_entries_lookups_total{layer="redis", result="skipped"}': "0+1x120"},
    "MemopodStoreUnreachable": {"memopod_writer_store_reachable": "0x120"},
    "MemopodWriterBehind": {"memopod_writer_oldest_waiting_seconds": "0+60x120"},
    "MemopodWriterQuarantine": {"memopod_writer_steps_quarantined": "2x120"},
    "MemopodEventsLost": {'memopod_writer_openlineage_events_total{outcome="dropped"}': "0x65 1x60"},
    "MemopodStoreErrors": {
        'metadata_store_calls_total{code="UNAVAILABLE", rpc="PutLineageSubgraph"}': "0+20x120"
    },
    "MemopodStoreSlow": {
        'metadata_store_call_seconds_bucket{rpc="PutLineageSubgraph", le="0.1"}': "0+50x120",
        'metadata_store_call_seconds_bucket{rpc="PutLineageSubgraph", le="30"}': "0+100x120",
    },
    "MemopodStoreWorkersDie": {'metadata_store_workers_replaced{pod="s", lane="light"}': "0+1x120"},
    "MemopodGuardFails": {'memopod_guard_calls_total{code="UNAVAILABLE"}': "0+1x120"},
}
"""Alert -> what is different from a healthy cluster."""

PLACEHOLDER = {
    **{series: values for series, values in HEALTHY.items() if "decision" not in series},
    'memopod_admissions_total{decision="reuse", reason="hit"}': "0+50x120",
    'memopod_admissions_total{decision="run", reason="miss"}': "0+50x120",
    'memopod_admissions_total{decision="run", reason="internal-error"}': "0x120",
    'memopod_admissions_total{decision="run", reason="outputs-gone"}': "0+1x120",
    'memopod_admissions_total{decision="run", reason="outputs-unchecked"}': "0+1x120",
    'memopod_admissions_total{decision="run", reason="entries-unavailable"}': "0+1x120",
}
"""The same cluster in placeholder mode, where the webhook decides."""

BROKEN_PLACEHOLDER = {
    "MemopodNoLeader": {'memopod_admissions_total{decision="run", reason="no-controller"}': "0+1x120"},
    "MemopodEntriesUnavailable": {
        'memopod_admissions_total{decision="run", reason="decision-timeout"}': "0+20x120"
    },
    "MemopodKubernetesRefuses": {
        'memopod_admissions_total{decision="run", reason="configmap-unreadable"}': "0+1x120"
    },
    "MemopodDecisionsFail": {
        'memopod_admissions_total{decision="run", reason="internal-error"}': "0x65 1x60"
    },
    "MemopodOutputsUnchecked": {
        'memopod_admissions_total{decision="run", reason="outputs-unchecked"}': "0+20x120"
    },
    "MemopodOutputsGone": {'memopod_admissions_total{decision="run", reason="outputs-gone"}': "0+20x120"},
}


@pytest.fixture(scope="module")
def promtool(find_program):
    return find_program("promtool", "promtool (Prometheus)")


@pytest.fixture
def rules_file(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(ALERTS))
    return path


def check(promtool, *arguments):
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_alerts(promtool, rules_file):
    assert f"{len(RULES)} rules found" in check(promtool, "check", "rules", "--lint-fatal", rules_file)


def test_each_alert_fires_for_its_fault_and_none_in_a_healthy_cluster(promtool, rules_file, tmp_path):
    assert sorted(BROKEN) == sorted(rule["alert"] for rule in RULES)
    cases = [
        {
            "name": name or "healthy",
            "interval": "1m",
            "input_series": [{"series": k, "values": v} for k, v in {**cluster, **changes}.items()],
            # Of each alert whether it fires; what its labels are is not compared.
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertstate="firing", alertname="{rule["alert"]}"}})',
                    "eval_time": "70m",
                    "exp_samples": [{"value": 1, "labels": "{}"}] if rule["alert"] == name else [],
                }
                for rule in RULES
            ],
        }
        for cluster, faults in ((HEALTHY, BROKEN), (PLACEHOLDER, BROKEN_PLACEHOLDER))
        for name, changes in [("", {}), *faults.items()]
    ]
    path = tmp_path / "tests.yaml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(rules_file)], "evaluation_interval": "1m", "tests": cases})
    )
    check(promtool, "test", "rules", path)


def test_each_component_that_is_down_or_gone_is_told_by_its_name(promtool, rules_file, tmp_path):
    cases = [
        {
            "interval": "1m",
            "input_series": [{"series": k, "values": v} for k, v in {**HEALTHY, down: values}.items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (job) (ALERTS{alertstate="firing", alertname="MemopodComponentDown"})',
                    "eval_time": "70m",
                    "exp_samples": [
                        {"value": 1, "labels": f'{{job="{re.findall(r"job=.([^, ]+).,", down)[0]}"}}'}
                    ],
                }
            ],
        }
        for down in HEALTHY
        if down.startswith("up{")
        for values in ("0x120", "_x120")
    ]
    assert len(cases) == 10
    path = tmp_path / "tests.yaml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(rules_file)], "evaluation_interval": "1m", "tests": cases})
    )
    check(promtool, "test", "rules", path)


def test_each_alert_has_its_place_in_the_guide(pages):
    headings = re.findall(r"^#+ (.+)$", pages["docs/operations.md"], re.MULTILINE)
    for rule in RULES:
        assert rule["alert"] in headings, rule["alert"]
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
    assert {name for name in headings if name.startswith("Memopod")} <= set(BROKEN)


def test_grafanas_schema_knows_every_field_of_the_dashboard():
    read = Dashboard.from_json(DASHBOARD)
    assert json.loads(JSONEncoder(sort_keys=True).encode(read)) == DASHBOARD
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["uid"] == "memopod"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_the_share_of_reused_steps_is_shown_whether_controller_or_webhook_decides(promtool, tmp_path):
    (share,) = (p["targets"][0]["expr"] for p in DASHBOARD["panels"] if p["title"] == "Reused")
    # Of a minute's steps 50 are reused; the controller decides about 103, and the webhook lets one more run.
    cases = [
        {
            "interval": "1m",
            "input_series": [{"series": k, "values": v} for k, v in cluster.items()],
            "promql_expr_test": [
                {
                    "expr": f"round({share.replace('$__range', '1h')}, 0.001)",
                    "eval_time": "70m",
                    "exp_samples": [{"value": wanted, "labels": "{}"}],
                }
            ],
        }
        for cluster, wanted in ((HEALTHY, 0.481), (PLACEHOLDER, 0.485))
    ]
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": cases}))
    check(promtool, "test", "rules", path)


def test_no_panel_lies_over_another_one():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_prometheus_reads_every_query_of_the_dashboard(promtool, tmp_path):
    expressions = [re.sub(r"\$__(rate_interval|range)", "5m", expression) for expression in queries()]
    rules = [{"record": f"q:{n}", "expr": expression} for n, expression in enumerate(expressions)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in check(promtool, "check", "rules", path)


def test_alerts_and_dashboard_ask_for_metrics_and_labels_that_exist(metrics):
    for expression in [*queries(), *(rule["expr"] for rule in RULES)]:
        names = re.findall(r"\b(?:memopod|metadata|apiserver)_\w+|\bup\b", expression)
        assert names, expression
        for name in names:
            known = metrics.get(re.sub("_bucket$", "", name))
            assert known or name in OTHERS, (name, expression)
        for name, matched in re.findall(r"\b((?:memopod|metadata)_\w+)\{([^}]*)\}", expression):
            labels = re.findall(r"(\w+)(?:=|!=|=~|!~)\"", matched)
            assert set(labels) <= set(metrics[re.sub("_bucket$", "", name)][1]), expression


def test_the_dashboard_shows_every_metric(metrics):
    shown = set(re.findall(r"\b(?:memopod|metadata)_\w+", " ".join(queries())))
    assert {re.sub("_bucket$", "", name) for name in shown} == set(metrics)


def queries():
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets") or ()]
