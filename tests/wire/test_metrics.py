"""What the operator's side shows of what happens on the wire: metrics, status, history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from pyrycode_relay.events import Event
from pyrycode_relay.http.admission import Admission, Usage
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.http.relay_site import Readiness
from pyrycode_relay.limits import Limits
from pyrycode_relay.monitoring.admin_site import ASSETS, HEADERS, MAX_WAITING
from pyrycode_relay.monitoring.counters import OUTCOMES
from pyrycode_relay.monitoring.exposition import Metrics
from pyrycode_relay.monitoring.monitored import Monitored
from pyrycode_relay.protocol import probe_ids
from pyrycode_relay.protocol.close_codes import EndCause, FrameFault
from pyrycode_relay.protocol.envelope import EnvelopeFault
from pyrycode_relay.protocol.header_gate import UpgradeRefusal
from tests import needs
from tests.peers.frames import frame
from tests.peers.requests import phone_headers, upgrade_request
from tests.wire.harness import Answer, Peer, Relay, WireTest

ROOT = Path(__file__).parents[2]

GO_NAMES: dict[str, list[dict[str, str]]] = {
    "pyrycode_relay_connected_binaries": [{}],
    "pyrycode_relay_connected_phones": [{}],
    "pyrycode_relay_frames_forwarded_total": [
        {"direction": "phone_to_binary"},
        {"direction": "binary_to_phone"},
    ],
    "pyrycode_relay_grace_expiries_total": [{}],
    "pyrycode_relay_ws_upgrade_attempts_total": [
        {"endpoint": endpoint, "outcome": outcome}
        for endpoint in ("server", "client")
        for outcome in (
            "accept", "reject_headers", "reject_409", "reject_404", "reject_429",
            "reject_rate_limit",
        )
    ],
    "pyrycode_relay_register_failures_total": [
        {"kind": kind} for kind in ("no_server", "server_in_use", "phones_at_cap", "ratelimit")
    ],
}  # fmt: skip
"""What the relay written in Go exports."""


class Scrape:
    """What one scrape has: values by name and labels."""

    def __init__(self, relay: Relay) -> None:
        answer = relay.ask("/metrics")
        assert answer.status == 200, answer.raw
        self.values = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        full = name if name.startswith("process_") else f"pyrycode_relay_{name}"
        return self.values[full, *sorted(labels.items())]


class MetricsCase(WireTest):
    settings: ClassVar[dict[str, Any]] = {"admin_listen": "127.0.0.1:0"}

    def scrape(self) -> Scrape:
        return Scrape(self.relay)

    def status(self) -> dict[str, Any]:
        answer = self.relay.ask("/status.json")
        self.assertEqual(answer.status, 200)
        document = json.loads(answer.body)
        assert isinstance(document, dict)
        return document


class NameTests(MetricsCase):
    def test_names_of_the_go_relay(self) -> None:
        """Each series of the relay written in Go is there, at zero, before anybody has come."""
        values = self.scrape().values
        for name, cells in GO_NAMES.items():
            for labels in cells:
                self.assertEqual(values[name, *sorted(labels.items())], 0, (name, labels))

    def test_cells_from_the_start(self) -> None:
        """Whatever happens, no series comes that was not there from the start, and none goes."""
        before = set(self.scrape().values)
        binary, phone = self.relay.pair()
        binary.forward(phone, "1")
        phone.text("x")
        binary.text("y")
        self.relay.phone("nobody")
        self.relay.binary()
        self.relay.client("/v1/client", [])
        binary.close(3999, "of their own")
        self.relay.advance(100)
        self.assertEqual(set(self.scrape().values), before)

    def test_every_sample_is_a_number(self) -> None:
        """The text is what Prometheus's own parser takes, under the type that says so."""
        answer = self.relay.ask("/metrics")
        self.assertEqual(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        self.assertGreater(len(self.scrape().values), 200)

    def test_causes(self) -> None:
        """Each cause has a label: its cell is there from the start, and no other."""
        values = self.scrape().values

        def cells(metric: str, label: str) -> set[str]:
            return {
                pair[1]
                for name, *pairs in values
                for pair in pairs
                if name == f"pyrycode_relay_{metric}" and pair[0] == label
            }

        faults = {fault.label for fault in EnvelopeFault}
        self.assertEqual(
            cells("envelopes_refused_total", "reason"), {*faults, "unknown_conn_id", "other"}
        )
        self.assertEqual(
            cells("frames_refused_total", "reason"), {fault.value for fault in FrameFault}
        )
        self.assertEqual(
            cells("closes_total", "initiator"), {cause.initiator.value for cause in EndCause}
        )
        refusals = {refusal.label for refusal in UpgradeRefusal}
        self.assertLessEqual(refusals, cells("ws_upgrade_attempts_total", "outcome"))


class CountTests(MetricsCase):
    limits: ClassVar = {"max_phones": 1, "grace": 30, "heartbeat_interval": 20}

    def test_connections(self) -> None:
        """Who is connected, in grace, and in a place."""
        binary, _ = self.relay.pair()
        scrape = self.scrape()
        self.assertEqual(
            (scrape("connected_binaries"), scrape("connected_phones"), scrape("binaries_in_grace")),
            (1, 1, 0),
        )
        self.assertEqual(scrape("websockets", leg="phone"), 1)
        binary.reset()
        scrape = self.scrape()
        self.assertEqual((scrape("connected_binaries"), scrape("binaries_in_grace")), (0, 1))
        self.relay.advance(31)
        self.assertEqual(self.scrape()("grace_expiries_total"), 1)
        self.assertEqual(
            self.scrape()("closes_total", leg="phone", code="1000", initiator="relay"), 1
        )

    def test_frames(self) -> None:
        """Frames and their bytes, by direction, survive the phone that sent them."""
        binary, phone = self.relay.pair()
        phone.text('"to the binary"')
        binary.forward(phone, "[1,2]")
        binary.forward(phone, "[3]")
        phone.close()
        scrape = self.scrape()
        for direction, frames, size in (("phone_to_binary", 1, 15), ("binary_to_phone", 2, 8)):
            self.assertEqual(scrape("frames_forwarded_total", direction=direction), frames)
            self.assertEqual(scrape("bytes_forwarded_total", direction=direction), size)

    def test_upgrades(self) -> None:
        """Each upgrade counts once, as what became of it; so does the failure beside it."""
        self.relay.pair()
        self.relay.phone()
        self.relay.phone("nobody")
        self.relay.binary()
        self.relay.client("/v2/client", [])
        self.relay.request(upgrade_request(b"/v1/server", [], method=b"POST"))
        self.relay.request(
            upgrade_request(b"/v1/client", phone_headers(), change={b"Upgrade": None})
        )
        self.relay.service.readiness = Readiness.DRAINING
        self.relay.request(upgrade_request(b"/v1/client", phone_headers()))
        self.relay.service.readiness = Readiness.READY
        scrape = self.scrape()
        found = {
            (endpoint, outcome): count
            for endpoint in ("server", "client")
            for outcome in OUTCOMES
            if (count := scrape("ws_upgrade_attempts_total", endpoint=endpoint, outcome=outcome))
        }
        expected = {
            ("server", "accept"): 1,
            ("server", "reject_409"): 1,
            ("server", "reject_headers"): 1,
            ("client", "accept"): 1,
            ("client", "reject_404"): 1,
            ("client", "reject_429"): 1,
            ("client", "reject_headers"): 1,
            ("client", "reject_handshake"): 1,
            ("client", "reject_not_ready"): 1,
        }
        self.assertEqual(found, expected)
        failures = ("no_server", "phones_at_cap", "server_in_use", "ratelimit")
        self.assertEqual(
            [scrape("register_failures_total", kind=kind) for kind in failures], [1, 1, 1, 0]
        )
        self.assertEqual(scrape("upgrade_duration_seconds_count", leg="phone"), 3)
        self.assertEqual(scrape("upgrade_duration_seconds_count", leg="binary"), 2)

    def test_probes(self) -> None:
        """What a probe provokes is counted, and is no refusal; what others do under its id is."""
        name = f"{probe_ids.PREFIX}1"
        before = self.status()["numbers"]["refusals"]
        self.relay.binary(name)
        self.relay.phone(name)
        self.assertEqual(self.relay.binary(name).closed, EndCause.CONFLICT.close)
        self.assertEqual(self.relay.phone(f"{name}2").closed, EndCause.NO_SERVER.close)
        scrape = self.scrape()
        for endpoint, outcome in (
            *(("server", "accept"), ("server", "probe")),
            *(("client", "accept"), ("client", "probe")),
        ):
            labels = {"endpoint": endpoint, "outcome": outcome}
            self.assertEqual(scrape("ws_upgrade_attempts_total", **labels), 1, labels)
        self.assertEqual(scrape("probes_total"), 1)
        self.assertEqual(scrape("closes_total", leg="phone", code="4404", initiator="relay"), 1)
        for kind in ("no_server", "server_in_use"):
            self.assertEqual(scrape("register_failures_total", kind=kind), 0)
        self.assertEqual(self.status()["numbers"]["refusals"], before)
        self.assertEqual(self.relay.phone(name).closed, EndCause.AT_CAP.close)
        self.assertEqual(self.scrape()("register_failures_total", kind="phones_at_cap"), 1)

    def test_probes_end_at_once(self) -> None:
        """A probe's slot has no grace, which is no expiry to count either."""
        name = f"{probe_ids.PREFIX}1"
        binary, phone = self.relay.binary(name), self.relay.phone(name)
        binary.reset()
        self.relay.advance(0)
        scrape = self.scrape()
        self.assertEqual(phone.closed, EndCause.GRACE_EXPIRED.close)
        self.assertEqual((scrape("connected_binaries"), scrape("binaries_in_grace")), (0, 0))
        self.assertEqual(scrape("grace_expiries_total"), 0)

    def test_duration_of_an_upgrade(self) -> None:
        """An upgrade takes from the connection's start to its handshake's end."""
        self.relay.binary()
        peer = self.relay.tcp()
        request = upgrade_request(b"/v1/client", phone_headers())
        peer.send(request[:20])
        self.relay.advance(2)
        peer.send(request[20:])
        scrape = self.scrape()
        self.assertEqual(scrape("upgrade_duration_seconds_bucket", leg="phone", le="1.0"), 0)
        self.assertEqual(scrape("upgrade_duration_seconds_bucket", leg="phone", le="2.5"), 1)
        self.assertEqual(scrape("upgrade_duration_seconds_sum", leg="phone"), 2)

    def test_what_is_refused(self) -> None:
        """What phones and binaries send wrong is counted by what is wrong with it."""
        binary, phone = self.relay.pair()
        phone.text("no JSON")
        for message in ("[]", "{}", '{"conn_id":"x","frame":1}', '{"push_wake":{}}'):
            binary.text(message)
        big = self.relay.phone()
        big.send(frame(1, b"1" * 300_000))
        odd = self.relay.phone()
        odd.send(frame(1, b"\xff\xff"))
        bad = self.relay.phone()
        bad.send(frame(5, b""))
        slow = self.relay.phone()
        slow.answers = False
        slow.send(frame(1, b"1", length=10))
        self.relay.advance(31)
        scrape = self.scrape()
        for reason in ("not_json", "not_utf8", "too_big", "protocol", "too_slow"):
            self.assertEqual(scrape("frames_refused_total", reason=reason), 1, reason)
        for reason in ("not_an_object", "no_conn_id", "unknown_conn_id"):
            self.assertEqual(scrape("envelopes_refused_total", reason=reason), 1, reason)
        self.assertEqual(scrape("late_envelopes_total"), 0)
        binary.forward(slow, "1")
        scrape = self.scrape()
        self.assertEqual(scrape("late_envelopes_total"), 1)
        self.assertEqual(scrape("envelopes_refused_total", reason="unknown_conn_id"), 1)
        self.assertEqual(scrape("push_wakes_refused_total", reason="off"), 1)
        self.assertEqual(self.status()["refusals"]["frames"], 5)

    def test_closes(self) -> None:
        """Each connection's end counts once: by leg, by code, and by who ended it."""
        binary, phone = self.relay.pair()
        phone.close(1000)
        second = self.relay.phone()
        binary.direct(second, 4421)
        third = self.relay.phone()
        third.reset()
        fourth = self.relay.phone()
        fourth.close(3777)
        binary.reset()
        scrape = self.scrape()
        for code, initiator in (
            ("1000", "peer"), ("4421", "binary"), ("1001", "network"), ("other", "peer"),
        ):  # fmt: skip
            self.assertEqual(
                scrape("closes_total", leg="phone", code=code, initiator=initiator), 1, code
            )
        self.assertEqual(scrape("closes_total", leg="binary", code="1001", initiator="network"), 1)
        total = sum(value for (name, *_), value in scrape.values.items() if "closes_total" in name)
        self.assertEqual(total, 5)

    def test_reclaim_and_eviction(self) -> None:
        """A binary that comes back within its grace is a reclaim, and evicts its phones."""
        binary, _ = self.relay.pair()
        binary.reset()
        self.relay.binary()
        scrape = self.scrape()
        self.assertEqual((scrape("reclaims_total"), scrape("evictions_total")), (1, 1))
        self.assertEqual(scrape("takeovers_total"), 0)

    def test_takeover(self) -> None:
        """A binary in the place of a silent one is a takeover; the silent one is timed out."""
        binary, _ = self.relay.pair()
        binary.answers = False
        self.relay.binary()
        self.relay.advance(11)
        scrape = self.scrape()
        self.assertEqual((scrape("takeovers_total"), scrape("reclaims_total")), (1, 0))
        self.assertEqual(scrape("heartbeat_timeouts_total", leg="binary"), 1)

    def test_heartbeat(self) -> None:
        """A ping's round trip is measured; a peer that does not answer is a time-out."""
        _, phone = self.relay.pair()
        self.relay.advance(25)
        scrape = self.scrape()
        self.assertEqual(scrape("ping_round_trip_seconds_count", leg="phone"), 1)
        self.assertEqual(scrape("ping_round_trip_seconds_bucket", leg="phone", le="0.005"), 1)
        phone.answers = False
        self.relay.advance(60)
        scrape = self.scrape()
        self.assertEqual(scrape("heartbeat_timeouts_total", leg="phone"), 1)
        self.assertEqual(scrape("ping_round_trip_seconds_count", leg="phone"), 1)

    def test_pong_without_a_ping(self) -> None:
        """A pong that nobody asked for measures nothing."""
        _, phone = self.relay.pair()
        phone.send(frame(10, b""))
        self.assertEqual(self.scrape()("ping_round_trip_seconds_count", leg="phone"), 0)


class QueueTests(MetricsCase):
    limits: ClassVar = {"hold_bytes": 1000, "outbox_bytes": 100_000, "heartbeat_interval": 600}

    def test_held_and_paused(self) -> None:
        """Frames held for an absent binary, and the pauses of a phone that has sent too many."""
        binary, phone = self.relay.pair()
        binary.reset()
        for _ in range(3):
            phone.text('"%s"' % ("x" * 500))
        self.relay.advance(5)
        scrape = self.scrape()
        self.assertEqual((scrape("held_frames"), scrape("frames_held_total")), (2, 2))
        self.assertGreater(scrape("queue_bytes"), 1000)
        self.assertEqual(scrape("paused_peers", leg="phone"), 1)
        self.assertEqual(scrape("read_pauses_total", leg="phone"), 1)
        self.assertEqual(scrape("read_pause_seconds_total", leg="phone"), 5)
        self.relay.binary()
        scrape = self.scrape()
        self.assertEqual((scrape("held_frames"), scrape("queue_bytes")), (0, 0))
        self.assertGreater(scrape("queue_bytes_highest"), 1000)
        self.assertEqual(scrape("paused_peers", leg="phone"), 0)
        self.assertEqual(scrape("read_pause_seconds_total", leg="phone"), 5)

    def test_backlog(self) -> None:
        """A phone that does not read and whose outbox is full is a backlog close."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        for _ in range(5):
            binary.forward(phone, '"%s"' % ("x" * 50_000))
        self.assertEqual(self.scrape()("backlog_closes_total"), 1)

    def test_stall(self) -> None:
        """A peer that takes nothing at all is a write stall of its leg."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        binary.forward(phone, "1")
        self.relay.advance(60)
        self.assertEqual(self.scrape()("write_stalls_total", leg="phone"), 1)


class LimitTests(MetricsCase):
    limits: ClassVar = {"upgrade_rate": 1, "upgrade_burst": 1}

    def test_rate(self) -> None:
        """An upgrade over the rate is a refusal of its kind, of the registry's kind, and once."""
        self.relay.binary()
        self.relay.phone()
        scrape = self.scrape()
        self.assertEqual(scrape("limit_refusals_total", kind="rate"), 1)
        self.assertEqual(scrape("register_failures_total", kind="ratelimit"), 1)
        attempts = "ws_upgrade_attempts_total"
        self.assertEqual(scrape(attempts, endpoint="client", outcome="reject_rate_limit"), 1)


class CapTests(MetricsCase):
    limits: ClassVar = {"max_connections_per_address": 1}

    def test_cap(self) -> None:
        """A connection over its address's number is a refusal too."""
        self.relay.binary()
        self.relay.phone()
        scrape = self.scrape()
        self.assertEqual(scrape("limit_refusals_total", kind="address"), 1)
        attempts = "ws_upgrade_attempts_total"
        self.assertEqual(scrape(attempts, endpoint="client", outcome="reject_cap"), 1)


class DryRunTests(MetricsCase):
    limits: ClassVar = {"max_connections_per_address": 1, "limits_dry_run": True}

    def test_dry_run(self) -> None:
        """What a dry run lets in is a refusal that would have been, and an upgrade that was."""
        self.relay.pair()
        scrape = self.scrape()
        self.assertEqual(scrape("limit_refusals_total", kind="address"), 1)
        attempts = "ws_upgrade_attempts_total"
        self.assertEqual(scrape(attempts, endpoint="client", outcome="reject_cap"), 0)
        self.assertEqual(scrape(attempts, endpoint="client", outcome="accept"), 1)


class ProcessTests(MetricsCase):
    def test_process(self) -> None:
        """What the process takes, under the names that every exporter gives it."""
        scrape = self.scrape()
        self.assertGreater(scrape("process_resident_memory_bytes"), 1 << 20)
        self.assertGreater(scrape("process_cpu_seconds_total"), 0)
        self.assertGreaterEqual(scrape("process_max_fds"), scrape("process_open_fds"))

    def test_lag(self) -> None:
        """The reactor's lag is measured all the time."""
        self.relay.advance(10)
        self.assertEqual(self.scrape()("reactor_lag_seconds_count"), 20)

    def test_draining(self) -> None:
        """A scrape during the drain says so; after it, nobody answers and no timer is left."""
        _, phone = self.relay.pair()
        phone.answers = False
        self.relay.service.stopService()
        self.relay.pump()
        self.assertEqual(self.scrape()("draining"), 1)
        self.assertEqual(self.status()["state"], "draining")


class StatusTests(MetricsCase):
    def test_document(self) -> None:
        """The page's JSON has what the metrics have, and an hour of it."""
        binary, phone = self.relay.pair()
        for _ in range(20):
            phone.text('"hello"')
        binary.forward(phone, "1")
        self.relay.advance(10)
        document = self.status()
        self.assertEqual(document["state"], "ready")
        self.assertEqual(document["numbers"]["phones"], 1)
        self.assertEqual(document["numbers"]["frames_to_binaries"], 20)
        self.assertEqual(document["history"]["frames_to_binaries"], [0, 2.0])
        self.assertEqual(document["history"]["phones"], [0, 1])
        self.assertEqual(document["latest"]["frames_to_binaries"], 2.0)
        self.assertIsNone(document["certificate"])

    def test_schema(self) -> None:
        """The JSON is what the published schema says, with nothing left out or added."""
        needs.module("jsonschema", "pyrycode-relay[test]")
        from jsonschema import Draft202012Validator

        schema = json.loads((ROOT / "docs" / "status.schema.json").read_text(encoding="utf-8"))
        Draft202012Validator.check_schema(schema)
        binary, phone = self.relay.pair()
        self.status()
        for _ in range(3):
            phone.text('"hello"')
            self.relay.advance(6)
            document = self.status()
        phone.text("no JSON")
        binary.reset()
        self.relay.service.readiness = Readiness.DRAINING
        document = self.status()
        self.assertTrue(document["attention"] and document["busiest"]["ids"])
        errors = Draft202012Validator(schema).iter_errors(document)
        self.assertEqual([f"{each.json_path}: {each.message}" for each in errors], [])

    def test_attention(self) -> None:
        """A relay in order is well; one that drains says so, since when, and what to do."""
        self.assertEqual((self.status()["verdict"], self.status()["attention"]), ("well", []))
        self.relay.service.readiness = Readiness.DRAINING
        began = self.status()["now"]
        self.relay.advance(20)
        document = self.status()
        self.assertEqual(document["verdict"], "warn")
        [item] = document["attention"]
        self.assertEqual((item["kind"], item["text"]), ("draining", "The relay is draining"))
        self.assertEqual(item["section"], "It does not stop")
        self.assertLess(abs(item["since"] - began), 1)

    def test_busiest(self) -> None:
        """While somebody looks, the busiest server-id is shown by its hash, with its rates."""
        _, phone = self.relay.pair()
        self.assertEqual(self.status()["busiest"]["seconds"], None)
        self.relay.advance(10)
        for _ in range(20):
            phone.text('"hello"')
        self.status()
        self.relay.advance(0.1)
        busiest = self.status()["busiest"]
        [row] = busiest["ids"]
        self.assertEqual(row["name"], self.relay.service.context.id_hash.of("home"))
        self.assertEqual((row["connections"], row["frames"], row["bytes"]), (1, 2.0, 14.0))
        [row] = busiest["addresses"]
        self.assertEqual((row["connections"], row["frames"]), (1, 2.0))

    def test_hash(self) -> None:
        """The page, the log and the look-up have one hash for a server-id."""
        self.relay.pair()
        self.relay.phone("nobody-there")
        [claimed] = self.relay.seen.of(Event.SERVER_CLAIMED)
        [registered] = self.relay.seen.of(Event.PHONE_REGISTERED)
        self.assertEqual(claimed["id_hash"], registered["id_hash"])
        found = self.relay.ask("/id-hash", headers={"X-Pyrycode-Server": "home"})
        self.assertEqual(found.body.decode(), f"{claimed['id_hash']}\n")
        found = self.relay.ask("/id-hash", headers={"X-Pyrycode-Server": "nobody-there"})
        events = {each["event"]: each["server"] for each in self.status()["events"]}
        self.assertEqual(found.body.decode(), f"{events['phone_register_no_server']}\n")
        self.assertEqual(self.relay.ask("/id-hash").status, 400)

    def test_nobody_is_shown(self) -> None:
        """Neither an address nor an id nor a name of anybody is in what the page gets."""
        binary, phone = self.relay.pair()
        phone.text("no JSON")
        binary.reset()
        self.relay.phone("nobody-there")
        self.relay.advance(40)
        document = self.status()
        self.assertIn("server_expired", [each["event"] for each in document["events"]])
        raw = json.dumps(document)
        for word in ("192.0.2", "home", "nobody-there", phone.conn_id, "1.2.3"):
            self.assertNotIn(word, raw)


class SiteTests(MetricsCase):
    limits: ClassVar = {"header_timeout": 5, "close_timeout": 5}

    def refused(self, answer: Answer, status: int) -> None:
        self.assertEqual(answer.status, status)
        for name in HEADERS:
            self.assertIn(name.decode().lower(), answer.headers)

    def test_paths(self) -> None:
        """Every file of the page is there, under a policy that lets in nothing else."""
        for path, (_, media_type) in ASSETS.items():
            answer = self.relay.ask(path)
            self.assertEqual((answer.status, answer.headers["content-type"]), (200, media_type))
            self.assertGreater(len(answer.body), 50, path)
            policy = answer.headers["content-security-policy"]
            self.assertIn("default-src 'none'", policy)
            self.assertNotIn("unsafe", policy)
            self.assertEqual(answer.headers["cache-control"], "no-store")

    def test_other_paths(self) -> None:
        """There is nothing else: no relay's paths, no way out of the folder."""
        for path in ("/v1/client", "/healthz", "/static/index.html", "/../setup.cfg", "/metrics/"):
            self.refused(self.relay.ask(path), 404)

    def test_metrics_are_not_public(self) -> None:
        """The public side knows none of these paths."""
        for path in ("/metrics", "/status.json", "/"):
            peer = self.relay.request(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            self.assertEqual(peer.answer.status, 404)

    def test_methods(self) -> None:
        """Only reading is possible; HEAD has no body."""
        self.refused(self.relay.ask("/metrics", method="POST"), 405)
        answer = self.relay.ask("/metrics", method="HEAD")
        self.assertEqual((answer.status, answer.body), (200, b""))

    def test_foreign_host(self) -> None:
        """A page of a name that was made to point here gets nothing."""
        for host in ("evil.example:9090", "127.0.0.1.evil.example"):
            self.refused(self.relay.ask("/status.json", host=host), 421)

    def test_silent_peers(self) -> None:
        """Peers that ask for nothing are dropped in time, and crowd nobody out."""
        admin = self.relay.service.admin
        assert admin is not None
        silent = [Peer(self.relay, "127.0.0.1") for _ in range(MAX_WAITING + 8)]
        for peer in silent:
            self.relay._accept(peer, admin)
        self.assertEqual(len(admin.channels), MAX_WAITING)
        self.assertEqual(self.relay.ask("/metrics").status, 200)
        self.relay.advance(6)
        self.assertTrue(all(peer.gone for peer in silent))

    def test_a_peer_that_does_not_read(self) -> None:
        """A peer that asks and does not read the answer is dropped as well."""
        peer = Peer(self.relay, "127.0.0.1")
        self.relay._accept(peer, self.relay.service.admin)
        peer.stop_reading(100)
        peer.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        self.relay.advance(6)
        self.assertTrue(peer.gone)


class ClearTests(MetricsCase):
    settings: ClassVar[dict[str, Any]] = {"admin_listen": "127.0.0.1:0", "status_ids": True}

    def test_ids(self) -> None:
        """An operator who wants it sees ids and addresses, and still no name of a device."""
        _, phone = self.relay.pair()
        self.status()
        self.relay.advance(10)
        phone.text('"hello"')
        self.relay.phone("nobody-there")
        self.status()
        self.relay.advance(0.1)
        document = self.status()
        self.assertTrue(document["ids_in_clear"])
        self.assertEqual([each["name"] for each in document["busiest"]["ids"]], ["home"])
        [row] = document["busiest"]["addresses"]
        self.assertTrue(row["name"].startswith("192.0.2."), row)
        self.assertIn("nobody-there", [each["server"] for each in document["events"]])


class RemoteTests(MetricsCase):
    settings: ClassVar[dict[str, Any]] = {
        "admin_listen": "127.0.0.1:0",
        "admin_allow_remote": True,
    }

    def test_any_host(self) -> None:
        """Where others may look, they may call it what they like."""
        self.assertEqual(self.relay.ask("/metrics", host="relay.example:9090").status, 200)


class OffTests(WireTest):
    def test_off(self) -> None:
        """Without an address for it nobody watches, and no timer runs."""
        self.assertIsNone(self.relay.service.admin)
        self.assertIsNone(self.relay.service.status)
        self.assertEqual(self.relay.reactor.getDelayedCalls(), [])


class CertificateTests(MetricsCase):
    def test_certificates(self) -> None:
        """With TLS there is when each name's certificate ends, and how the last reading went."""
        service = self.relay.service

        class Certificates:
            last_reload: ClassVar = (1_700_000_000.0, False)

            def not_after(self) -> dict[str, float]:
                return {"relay.example": 1_800_000_000.0, "b.example": 1_900_000_000.0}

        monitored = Monitored(
            registry=service.context.registry,
            memory_budget=service.context.memory_budget,
            tally=service.context.tally,
            admission=Admission(
                Limits(), Capacity(9, 9, 9, 0, 9), Usage(Limits(), Clock().seconds)
            ),
            certificates=Certificates(),  # type: ignore[arg-type]
            state=lambda: "ready",
            crowded_out=lambda: 0,
            log_lines_dropped=lambda: 0,
            seconds=lambda: 0.0,
            wall=lambda: 0.0,
        )
        text = Metrics(monitored).text().decode()
        ends = 'pyrycode_relay_certificate_not_after_seconds{name="relay.example"} 1.8e+09'
        self.assertIn(ends, text)
        self.assertIn("pyrycode_relay_certificate_reload_ok 0.0", text)
        self.assertIn("pyrycode_relay_certificate_reload_seconds 1.7e+09", text)


class RefusalTests(MetricsCase):
    def test_causes(self) -> None:
        """A refusal before the gate is told with its cause."""
        self.relay.service.readiness = Readiness.DRAINING
        self.relay.request(upgrade_request(b"/v1/client", phone_headers()))
        self.relay.service.readiness = Readiness.READY
        self.relay.request(upgrade_request(b"/v1/client", phone_headers(), method=b"PUT"))
        said = [fields["err"] for fields in self.relay.seen.of(Event.REQUEST_REFUSED)]
        self.assertEqual(said, [UpgradeRefusal.NOT_READY, UpgradeRefusal.NO_HANDSHAKE])

    def test_reasons(self) -> None:
        """Each refused request counts once by what is wrong with it: its path, or its headers."""
        for path, headers in (
            (b"/", []),
            (b"/", []),
            (b"/V1/client?x=1", []),
            (b"/relay/v1/client", phone_headers()),
            (b"/v1/client", []),
            (b"/v2/server", phone_headers()),
            (b"/v1/client", [*phone_headers(), *phone_headers()]),
        ):
            self.relay.request(upgrade_request(path, headers))
        self.relay.request(upgrade_request(b"/v1/client", phone_headers(), method=b"PUT"))
        scrape = self.scrape()
        for reason, number in (
            ("path_unknown", 2), ("path_spelling", 1), ("path_surrounded", 1),
            ("no_server_id", 1), ("no_version", 1), ("repeated_header", 1), ("no_handshake", 1),
            ("no_token", 0),
        ):  # fmt: skip
            self.assertEqual(scrape("requests_refused_total", reason=reason), number, reason)

    def test_not_counted(self) -> None:
        """What is no fault of a request is not counted, nor are other listeners' requests."""
        before = self.refused_requests()
        self.relay.service.readiness = Readiness.DRAINING
        self.relay.request(upgrade_request(b"/v1/client", phone_headers()))
        self.relay.service.readiness = Readiness.READY
        self.relay.request(upgrade_request(b"/v1/client", phone_headers()))
        self.relay.request(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertEqual(self.relay.ask("/nowhere").status, 404)
        self.assertEqual(self.refused_requests(), before)

    def refused_requests(self) -> float:
        """Return how many refused requests there were, for all reasons."""
        return sum(
            value
            for name, value in self.scrape().values.items()
            if name[0] == "pyrycode_relay_requests_refused_total"
        )
