"""Push credentials as an operator gives them: mistakes are one sentence, and nothing is shown."""

from __future__ import annotations

import json
import sys

from tests import needs
from tests.fcm_server import FcmServer
from tests.system.harness import ROOT, binary, receive, send
from tests.system.test_command_line import CommandLineTestCase
from tests.system.test_fcm import wake

VARIABLE = "PYRYCODE_RELAY_FCM_CREDENTIALS"

LOADED = """\
import sys
from twisted.application.service import Application
from pyrycode_relay.tap import Options, makeService
options = Options()
options.parseOptions(["--insecure-listen=tcp:0:interface=127.0.0.1", *sys.argv[1:]])
makeService(options)
wanted = ("google", "josepy", "pyrycode_relay.push")
print(*sorted(each for each in sys.modules if each.startswith(wanted)))
"""
"""Makes the relay's service, and prints which modules of push are loaded."""


class CredentialTests(CommandLineTestCase):
    def setUp(self) -> None:
        super().setUp()
        needs.module("google.auth", "pyrycode-relay[push]")
        self.google = FcmServer(self.directory)
        self.addCleanup(self.google.close)

    def test_wrong(self) -> None:
        """A wrong credential ends the start with one sentence and 2, with or without a check."""
        path = self.directory / "wrong.json"
        for fields in (
            {"type": "hunter2"},
            {"private_key": "hunter2"},
            {"client_email": "hunter 2"},
        ):
            path.write_text(json.dumps(self.google.account(**fields)))
            for more in ((), ("--check-config",)):
                run = self.twistd(self.listen, f"--fcm-credentials={path}", *more)
                self.refused(run, "--fcm-credentials is not a usable service account")
                self.assertEqual(run.returncode, 2)
                self.assertNotIn("hunter", run.stderr)

    def test_wrong_text(self) -> None:
        """So does a wrong one in the environment, or a file that is not there."""
        for text in ('{"type": "hunter2"', '{"type": "hunter2"}', "hunter2.json"):
            run = self.twistd(self.listen, environment={VARIABLE: text})
            self.refused(run, "--fcm-credentials is not a usable service account")
            self.assertNotIn("hunter", run.stderr)

    def test_wrong_authorities(self) -> None:
        """So does a file of authorities that has none."""
        wrong = self.directory / "wrong.pem"
        wrong.write_text("hunter2")
        options = [*self.google.options[:2], f"--push-ca-file={wrong}"]
        self.refused(self.twistd(self.listen, *options), "give --push-ca-file the root")

    def test_check(self) -> None:
        """``--check-config`` shows the file's path, or that there is a text, and no word of it."""
        run = self.twistd(self.listen, "--check-config", *self.google.options)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertIn(f'fcm-credentials = "{self.google.credentials}"', run.stdout)
        text = json.dumps(self.google.account())
        run = self.twistd(self.listen, "--check-config", environment={VARIABLE: text})
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertIn(f"{VARIABLE}", run.stdout)
        for secret in ("PRIVATE", str(self.google.account()["client_email"])):
            self.assertNotIn(secret, run.stdout)

    def test_without_the_extra(self) -> None:
        """Without google-auth, one sentence says what to install."""
        (self.directory / "sitecustomize.py").write_text(
            "import sys\nsys.modules['google'] = sys.modules['google.auth'] = None\n"
        )
        environment = {"PYTHONPATH": str(self.directory)}
        run = self.twistd(self.listen, *self.google.options, environment=environment)
        self.refused(run, r"install pyrycode-relay\[push\]")
        self.assertEqual(run.returncode, 2)

    def test_in_the_environment(self) -> None:
        """The JSON itself in the environment, as the Go relay takes it, is as good as a file."""
        environment = {VARIABLE: json.dumps(self.google.account())}
        relay = self.relay(*self.google.options[1:], environment=environment)

        async def scenario() -> None:
            async with binary(relay, "home") as server:
                await send(server, wake())
                self.assertEqual((await receive(server))["push_result"]["outcome"], "sent")

        self.perform(scenario())

    def test_only_with_push(self) -> None:
        """Without an option of push nothing of it is loaded; with one, it is."""
        without = self.loaded()
        self.assertEqual(without, "")
        self.assertIn("pyrycode_relay.push.fcm", self.loaded(*self.google.options))

    def loaded(self, *options: str) -> str:
        """Return which modules of push a relay has loaded."""
        environment = {"PYTHONPATH": str(ROOT)}
        child = self.child(sys.executable, "-c", LOADED, *options, environment=environment)
        self.assertEqual(child.wait(), 0, child.errors())
        return child.output().strip()
