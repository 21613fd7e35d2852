"""The page and the alerts have the same numbers."""

from __future__ import annotations

import re

from pyrycode_relay.monitoring import thresholds as at
from tests.unit.bench import Cases, cases
from tests.unit.test_deploy import RULES

_OWN = "pyrycode_relay_"


def span(seconds: float) -> str:
    """Return a window in Prometheus's words."""
    return f"[{seconds / at.MINUTE:g}m]"


ALERTS = {
    "RelayReactorLag": (
        f"histogram_quantile({1 - at.LATE_SHARE:g}, rate({_OWN}reactor_lag_seconds_bucket"
        f"{span(at.LAG_WINDOW)})) > {at.LAG:g}"
    ),
    "RelayQueuesNearBudget": (
        f"{_OWN}queue_bytes / {_OWN}queue_bytes_budget > {at.QUEUES_SHARE:g}"
    ),
    "RelayQueuesShed": f"increase({_OWN}queues_shed_total{span(at.SHED_WINDOW)}) > {at.SHED}",
    "RelayPlacesRunOut": (
        f"sum without (leg) ({_OWN}websockets) / {_OWN}websockets_max > {at.CONNECTIONS_SHARE:g}"
    ),
    "RelayFilesRunOut": (
        f'process_open_fds{{job="pyrycode-relay"}} / process_max_fds > {at.FILES_SHARE:g}'
    ),
    "RelayCannotAccept": (
        f"increase({_OWN}accept_failures_total{span(at.ACCEPT_WINDOW)}) > {at.ACCEPT_FAILURES}"
    ),
    "RelayCertificateEnds": (
        f"{_OWN}certificate_not_after_seconds - time() < {at.CERTIFICATE_SOON // at.DAY} * {at.DAY}"
    ),
    "RelayCertificateEndsNow": (
        f"{_OWN}certificate_not_after_seconds - time() < {at.CERTIFICATE_NOW}"
    ),
    "RelayRateLimits": (
        f'rate({_OWN}limit_refusals_total{{kind="rate"}}{span(at.RATE_WINDOW)}) > '
        f"{at.RATE_LIMITED:g}"
    ),
    "RelayReconnectStorm": (
        f'rate({_OWN}ws_upgrade_attempts_total{{endpoint="client",outcome="accept"}}'
        f"{span(at.RECONNECTS_WINDOW)}) > {at.RECONNECTS}"
    ),
    "RelayBinariesGone": (
        f"{_OWN}connected_binaries < {at.BINARIES_SHARE:g} * "
        f"quantile_over_time({at.BINARIES_QUANTILE:g}, {_OWN}connected_binaries"
        f"{span(at.BINARIES_WINDOW)})"
    ),
    "RelayConflicts": (
        f'increase({_OWN}register_failures_total{{kind="server_in_use"}}'
        f"{span(at.CONFLICTS_WINDOW)}) > {at.CONFLICTS}"
    ),
    "RelayProbes": (
        f"sum without (endpoint) (rate({_OWN}ws_upgrade_attempts_total"
        f'{{outcome="probe"}}{span(at.PROBES_WINDOW)})) > {at.PROBES:g}'
    ),
    "RelayHeartbeats": (
        f"sum without (leg) (increase({_OWN}heartbeat_timeouts_total{span(at.HEARTBEATS_WINDOW)}))"
        f" > {at.HEARTBEATS_SHARE:g} * sum without (leg) ({_OWN}websockets) and "
        f"sum without (leg) ({_OWN}websockets) > {at.HEARTBEATS_LEAST}"
    ),
    "RelayPushFails": (
        f'sum without (outcome) (increase({_OWN}push_wakes_total{{outcome=~"send_failed|'
        f'token_fetch_failed"}}{span(at.PUSH_WINDOW)})) > {at.PUSH_FAILED_SHARE:g} * '
        f'sum without (outcome) (increase({_OWN}push_wakes_total{{outcome!="dropped"}}'
        f"{span(at.PUSH_WINDOW)})) and sum without (outcome) (increase({_OWN}push_wakes_total"
        f'{{outcome!="dropped"}}{span(at.PUSH_WINDOW)})) > {at.PUSH_LEAST}'
    ),
    "RelayPushRefused": (
        f'sum without (reason) (increase({_OWN}push_wakes_refused_total{{reason=~"rate|busy"}}'
        f"{span(at.PUSH_WINDOW)})) > {at.PUSH_REFUSED}"
    ),
}
"""The query of each alert with a number, as the thresholds have it."""

WITHOUT_A_NUMBER = {
    *("RelayDown", "RelayRestarts"),  # A page of the relay's cannot show these.
    *("RelayCertificateReload", "RelayPushProviderDown"),
    "RelayCertificateOrders",  # The page shows the first failure, the alert waits for more.
}


class ThresholdTests(Cases):
    @cases({name: (name, query) for name, query in ALERTS.items()})
    def test_alert(self, name: str, query: str) -> None:
        """The alert has the threshold's number and window."""
        found = re.search(rf"alert: {name}\n +expr: (.+)\n", RULES)
        assert found is not None
        self.assertEqual(found[1], query)

    def test_each_alert(self) -> None:
        """Every alert is compared, but for those without a number."""
        alerts = set(re.findall(r"alert: (\w+)", RULES))
        self.assertEqual(alerts, set(ALERTS) | WITHOUT_A_NUMBER)

    def test_windows(self) -> None:
        """The longest window is as long as each of the others."""
        windows = [value for name, value in vars(at).items() if name.endswith("_WINDOW")]
        self.assertEqual(max(windows), at.LONGEST_WINDOW)
