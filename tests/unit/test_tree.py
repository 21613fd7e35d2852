"""The unit tests mirror the package: each module has its tests where a reader looks for them."""

from __future__ import annotations

from pathlib import Path

from tests.unit.bench import Cases, cases
from tests.unit.sources import SOURCES

TESTS = Path(__file__).parents[1]

ELSEWHERE = {
    "__main__": "system/test_command_line",
    "acme.client": "live/test_acme_answers",
    "endpoints.binary": "wire/test_claims",
    "endpoints.context": "wire/test_closes",
    "endpoints.phone": "wire/test_routing",
    "http.challenge_site": "wire/test_challenge_site",
    "http.relay_site": "wire/test_gate",
    "http.server": "wire/test_http",
    "monitoring.monitored": "wire/test_metrics",
    "monitoring.status": "wire/test_metrics",
    "placement.carry": "system/test_workers",
    "placement.handover": "system/test_workers",
    "probe.command": "system/test_probe",
    "probe.conversation": "system/test_probe",
    "push.providers": "system/test_fcm",
    "registry.legs": "wire/test_claims",
    "served_certificates": "wire/test_tls",
    "service": "wire/test_drain",
    "tls.connection": "wire/test_tls",
    "process": "system/test_command_line",
    "supervisor": "system/test_workers",
    "tap": "system/test_command_line",
    "worker": "system/test_workers",
    "worker_process": "system/test_workers",
    "websocket.connection": "wire/test_quirks",
    "websocket.liveness": "wire/test_liveness",
    "websocket.sending": "wire/test_flow",
    "websocket.stage": "wire/test_closes",
}
"""The modules whose work shows only in a running relay, each with the main module of its tests."""

ABOUT_ALL = {
    "test_causes",
    "test_clients",
    "test_deploy",
    "test_docs",
    "test_layers",
    "test_log_calls",
    "test_tree",
}
"""The test modules that are about the repository as a whole."""


def mirrored(module: str) -> str:
    """Return the path, without its ending, of the unit tests of a module."""
    *folders, name = module.split(".")
    return "/".join([*folders, f"test_{name}"])


EXPECTED = {mirrored(module): module for module in SOURCES if not module.endswith("__init__")}
PRESENT = {
    path.relative_to(TESTS / "unit").with_suffix("").as_posix()
    for path in (TESTS / "unit").rglob("test_*.py")
}


class TreeTests(Cases):
    def test_each_module_has_its_tests(self) -> None:
        """A module has unit tests under its own name, or other tests under `ELSEWHERE`."""
        without = {module for path, module in EXPECTED.items() if path not in PRESENT}
        self.assertEqual(without, set(ELSEWHERE))

    def test_each_test_has_its_module(self) -> None:
        """A module of unit tests is named after a module of the package."""
        self.assertEqual(PRESENT - set(EXPECTED), ABOUT_ALL)

    @cases({module.replace(".", "_"): (path,) for module, path in ELSEWHERE.items()})
    def test_elsewhere(self, path: str) -> None:
        """The tests of another layer that cover a module exist."""
        self.assertTrue((TESTS / f"{path}.py").is_file(), path)

    def test_packages(self) -> None:
        """Both runners import every folder of tests."""
        folders = {path.parent for path in TESTS.rglob("test_*.py")}
        self.assertEqual([f for f in folders if not (f / "__init__.py").is_file()], [])
