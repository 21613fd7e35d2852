"""A real Prometheus that scrapes a relay by the shipped files, and their alerts tried out."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
from typing import Any
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from tests import needs
from tests.peers.waiting import DEADLINE, eventually
from tests.system.harness import (
    ROOT,
    Relay,
    SystemTestCase,
    binary,
    echo,
    phone,
    round_trip,
    run_program,
)
from tests.system.test_probe import PROBE
from tests.system.test_status_page import ADMIN, admin_port
from tests.unit.test_deploy import expressions

FILES = ROOT / "deploy" / "prometheus"
RULES = "pyrycode-relay.rules.yml"

ALERTS = """
rule_files: [pyrycode-relay.rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'pyrycode_relay_connected_binaries{instance="a"}'
        values: 100x20 40x20
      - series: 'pyrycode_relay_register_failures_total{instance="a",kind="server_in_use"}'
        values: 0x20 0+1x40
      - series: 'pyrycode_relay_ws_upgrade_attempts_total{endpoint="server",outcome="probe"}'
        values: 0+35x60
      - series: 'pyrycode_relay_ws_upgrade_attempts_total{endpoint="client",outcome="probe"}'
        values: 0+35x60
      - series: 'pyrycode_relay_websockets{instance="a",leg="phone"}'
        values: 950x60
      - series: 'pyrycode_relay_websockets{instance="a",leg="binary"}'
        values: 10x60
      - series: 'pyrycode_relay_websockets_max{instance="a"}'
        values: 1000x60
      - series: 'pyrycode_relay_reactor_lag_seconds_bucket{instance="a",le="0.1"}'
        values: 0+100x60
      - series: 'pyrycode_relay_reactor_lag_seconds_bucket{instance="a",le="0.25"}'
        values: 0+120x60
      - series: 'pyrycode_relay_reactor_lag_seconds_bucket{instance="a",le="+Inf"}'
        values: 0+120x60
      - series: 'pyrycode_relay_certificate_not_after_seconds{instance="a",name="relay.example"}'
        values: 90000x200
      - series: 'pyrycode_relay_queue_bytes{instance="a"}'
        values: 10x60
      - series: 'pyrycode_relay_queue_bytes_budget{instance="a"}'
        values: 1000x60
      - series: 'pyrycode_relay_push_breaker_open{instance="a",platform="fcm"}'
        values: 0x10 1x50
      - series: 'pyrycode_relay_push_breaker_open{instance="a",platform="webpush"}'
        values: 0x9 1x2 0x50
      - series: 'pyrycode_relay_push_wakes_total{instance="a",outcome="sent"}'
        values: 0+1x60
      - series: 'pyrycode_relay_push_wakes_total{instance="a",outcome="send_failed"}'
        values: 0x20 0+1x60
      - series: 'pyrycode_relay_push_wakes_total{instance="b",outcome="sent"}'
        values: 0+9x60
      - series: 'pyrycode_relay_push_wakes_total{instance="b",outcome="token_fetch_failed"}'
        values: 0+1x60
      - series: 'pyrycode_relay_push_wakes_refused_total{instance="a",reason="rate"}'
        values: 0+3x60
      - series: 'pyrycode_relay_push_wakes_refused_total{instance="b",reason="off"}'
        values: 0+3x60
      - series: 'up{job="pyrycode-relay",instance="b"}'
        values: 1x10 0x20
    alert_rule_test:
      - {alertname: RelayBinariesGone, eval_time: 15m, exp_alerts: []}
      - alertname: RelayBinariesGone
        eval_time: 28m
        exp_alerts: [{exp_labels: {instance: a, severity: page}}]
      - {alertname: RelayConflicts, eval_time: 20m, exp_alerts: []}
      - alertname: RelayConflicts
        eval_time: 55m
        exp_alerts: [{exp_labels: {instance: a, kind: server_in_use, severity: warn}}]
      - alertname: RelayProbes
        eval_time: 30m
        exp_alerts: [{exp_labels: {outcome: probe, severity: warn}}]
      - alertname: RelayPlacesRunOut
        eval_time: 20m
        exp_alerts: [{exp_labels: {instance: a, severity: page}}]
      - alertname: RelayReactorLag
        eval_time: 20m
        exp_alerts: [{exp_labels: {instance: a, severity: warn}}]
      - alertname: RelayCertificateEnds
        eval_time: 70m
        exp_alerts: [{exp_labels: {instance: a, name: relay.example, severity: warn}}]
      - alertname: RelayCertificateEndsNow
        eval_time: 70m
        exp_alerts: [{exp_labels: {instance: a, name: relay.example, severity: page}}]
      - {alertname: RelayPushProviderDown, eval_time: 14m, exp_alerts: []}
      - alertname: RelayPushProviderDown
        eval_time: 20m
        exp_alerts: [{exp_labels: {instance: a, platform: fcm, severity: page}}]
      - {alertname: RelayPushFails, eval_time: 20m, exp_alerts: []}
      - alertname: RelayPushFails
        eval_time: 40m
        exp_alerts: [{exp_labels: {instance: a, severity: warn}}]
      - alertname: RelayPushRefused
        eval_time: 40m
        exp_alerts: [{exp_labels: {instance: a, severity: warn}}]
      - {alertname: RelayQueuesNearBudget, eval_time: 20m, exp_alerts: []}
      - {alertname: RelayDown, eval_time: 9m, exp_alerts: []}
      - alertname: RelayDown
        eval_time: 20m
        exp_alerts:
          - exp_labels: {instance: b, job: pyrycode-relay, severity: page}
"""
"""What has happened, and which alerts are there for it; they are compared without their texts."""


OPENER = build_opener(ProxyHandler({}))


def free_port() -> int:
    """Return a port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as trial:
        return int(trial.getsockname()[1])


class PrometheusTests(SystemTestCase):
    def setUp(self) -> None:
        super().setUp()
        needs.programs("prometheus", "promtool")

    def test_scraped(self) -> None:
        """By the shipped files it finds the relay, takes the rules, and can answer every query."""
        relay = self.relay(ADMIN)
        port = free_port()
        shipped = (FILES / "prometheus.yml").read_text(encoding="utf-8")
        # Only where the relay is, and how often it is asked, are this test's own.
        config = shipped.replace('["127.0.0.1:9090"]', f'["127.0.0.1:{admin_port(relay)}"]')
        config = config.replace("_interval: 15s", "_interval: 1s")
        self.assertNotEqual(config, shipped)
        shutil.copy(FILES / RULES, self.directory)
        (self.directory / "prometheus.yml").write_text(config, encoding="utf-8")
        self.child(
            "prometheus",
            "--config.file=prometheus.yml",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        )

        def ask(path: str) -> Any:
            url = f"http://127.0.0.1:{port}/api/v1/{path}"
            with OPENER.open(url, timeout=DEADLINE) as answer:
                return json.load(answer)

        def query(expression: str) -> list[dict[str, Any]]:
            answer = ask(f"query?query={quote(expression)}")
            self.assertEqual(answer["status"], "success", expression)
            return list(answer["data"]["result"])

        def phones() -> bool:
            try:
                found = query("pyrycode_relay_connected_phones")
            except OSError:  # It does not listen yet, or says that it is not ready.
                return False
            return [each["value"][1] for each in found] == ["1"]

        async def scenario() -> None:
            async with binary(relay, "b") as server, phone(relay, "b") as handset:
                answering = asyncio.create_task(echo(server))
                await round_trip(handset, "there and back")
                await asyncio.to_thread(eventually, "a phone is scraped", phones)
                answering.cancel()

        self.perform(scenario())
        self.assertEqual([each["value"][1] for each in query("up")], ["1"])
        for expression in expressions():
            plain = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
            query(plain)
        rules = ask("rules")
        [group] = rules["data"]["groups"]
        self.assertGreater(len(group["rules"]), 10)
        self.assertEqual({each.get("lastError", "") for each in group["rules"]}, {""})

    def test_alerts(self) -> None:
        """Alerts are there when they should be, and are not when they should not."""
        self.try_rules(ALERTS)

    def test_probes_raise_no_alert(self) -> None:
        """A relay that is probed every 30 s and does nothing else is one without alerts.

        What a probe leaves in each series is measured: all of it is repeated for two hours.
        """
        relay = self.relay(ADMIN, "--log-level=debug")
        self.assertEqual(self.probe(relay), 0)
        before = self.scrape(relay)
        self.assertEqual(self.probe(relay), 0)
        after = self.scrape(relay)
        long = self.child(PROBE, "--quiet", "--timeout=60", "--count=10000", relay.url)
        eventually("a long probe is under way", lambda: self.connected(relay) == (1, 1))
        during = self.scrape(relay)
        long.kill()
        counted = {name: after[name] - before[name] for name in after if name in before}
        self.assertGreater(counted["pyrycode_relay_probes_total"], 0)

        def values(name: str) -> str:
            if "_total" in name or "_bucket" in name:
                return f"0+{counted.get(name, 0):g}x240"
            # A scrape now and then meets a probe.
            return " ".join(f"{during[name]:g} {after.get(name, 0):g}x{rest}" for rest in [39] * 6)

        series = [
            {"series": labelled(name, 'instance="a",job="pyrycode-relay"'), "values": values(name)}
            for name in during
        ]
        alerts = re.findall("- alert: (.+)", self.rules())
        self.assertGreater(len(alerts), 10)
        expected = [
            {"alertname": alert, "eval_time": f"{minute}m", "exp_alerts": []}
            for alert in alerts
            for minute in range(5, 121, 5)
        ]
        test = {"interval": "30s", "input_series": series, "alert_rule_test": expected}
        # JSON is YAML.
        self.try_rules(
            json.dumps({"rule_files": [RULES], "evaluation_interval": "30s", "tests": [test]})
        )

    def connected(self, relay: Relay) -> tuple[float, float]:
        """Return how many binaries and phones the metrics show."""
        found = self.scrape(relay)
        return found["pyrycode_relay_connected_binaries"], found["pyrycode_relay_connected_phones"]

    def probe(self, relay: Relay) -> int:
        """Run a probe and return its status."""
        return self.child(PROBE, "--quiet", relay.url).wait()

    def scrape(self, relay: Relay) -> dict[str, float]:
        """Return the value of each series, by its name and labels as in the text."""
        url = f"http://127.0.0.1:{admin_port(relay)}/metrics"
        with OPENER.open(url, timeout=DEADLINE) as answer:
            samples = re.findall(r"(?m)^([a-z][^ ]*) (\S+)$", answer.read().decode())
        return {name: float(value) for name, value in samples}

    def rules(self) -> str:
        """Return the shipped rules without their texts, which are for people to improve."""
        text = (FILES / RULES).read_text(encoding="utf-8")
        return re.sub(
            r"^ +annotations:\n(?: +(?:summary|description|runbook): .*\n)+", "", text, flags=re.M
        )

    def try_rules(self, tests: str) -> None:
        """Have promtool try the shipped rules."""
        (self.directory / RULES).write_text(self.rules(), encoding="utf-8")
        (self.directory / "tests.yml").write_text(tests, encoding="utf-8")
        run = run_program("promtool", "test", "rules", "tests.yml", directory=self.directory)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)


def labelled(series: str, labels: str) -> str:
    """Return a series with more labels."""
    name, _, others = series.partition("{")
    return f"{name}{{{labels}" + (f",{others}" if others else "}")
