"""Completion in bash, fish and zsh, by the real shells."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from pathlib import Path

from pyrycode_relay.config.completion import summary
from pyrycode_relay.config.options import COMMAND_OPTIONS, OPTIONS
from pyrycode_relay.config.values import DIRECTORY, DOMAIN, FILE_OR_NONE, PATH, SECRET
from tests import needs
from tests.peers.waiting import eventually
from tests.system.harness import TWISTD, SystemTestCase, clean_environment, run_program

_OFFERS = """
_arguments() { print -rl -- "$@"; return 1; }
local output
output=$("$@" --_shell-completion zsh:$#) || exit 1
eval "$output"
"""
"""As zsh's own function for Twisted's commands, but it prints the offers."""


class ScriptTestCase(SystemTestCase):
    """Has the script that the command prints for a shell."""

    def script(self, shell: str) -> Path:
        """Return a file with the script."""
        run = run_program(TWISTD, "pyrycode-relay", f"--completion={shell}")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        path = self.directory / f"pyrycode-relay.{shell}"
        path.write_text(run.stdout, encoding="utf-8")
        return path


class BashTests(ScriptTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.typed = b""
        (self.directory / "chain.pem").touch()
        (self.directory / "certs").mkdir()
        primary, secondary = pty.openpty()
        self.addCleanup(os.close, primary)
        self.terminal = primary
        os.set_blocking(primary, False)
        bash = subprocess.Popen(
            [needs.program("bash"), "--norc", "--noprofile", "-i"],
            cwd=self.directory,
            env=clean_environment({"TERM": "dumb", "PS1": "", "INPUTRC": "/dev/null"}),
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            start_new_session=True,
        )
        self.addCleanup(bash.wait)
        self.addCleanup(bash.kill)
        os.close(secondary)
        self.enter(f"source {self.script('bash')}; bind 'set bell-style none'; echo rea''dy")
        self.expect("ready\r\n")

    def enter(self, text: str) -> None:
        """Type a text and the return key."""
        os.write(self.terminal, f"{text}\n".encode())

    def expect(self, text: str) -> None:
        """Wait until the terminal shows a text."""

        def shown() -> bool:
            with contextlib.suppress(BlockingIOError):
                self.typed += os.read(self.terminal, 65536)
            return text.encode() in self.typed

        eventually(f"the terminal shows {text!r}", shown)
        self.typed = b""

    def test_keys(self) -> None:
        """The tab key completes names, words, files and directories."""
        for typed, shown in (
            ("--log-l\td\t", "--log-level=debug "),
            ("--completion z\t", "--completion zsh "),
            ("--tls-c\tch\t", "--tls-cert=chain.pem "),
            ("--tls-d\tc\t", "--tls-dir=certs/"),
            ("--produ\t", "--production "),
        ):
            os.write(self.terminal, f"pyrycode-relay {typed}".encode())
            self.expect(f"pyrycode-relay {shown}")
            os.write(self.terminal, b"\x15")  # Control-U takes the line back.

    def test_nothing_to_offer(self) -> None:
        """A number is not completed with a file's name."""
        os.write(self.terminal, b"pyrycode-relay --grace=ch\t\t--end")
        self.expect("--grace=ch--end")


class FishTests(ScriptTestCase):
    def offered(self, *words: str) -> dict[str, list[str]]:
        """Return what fish offers for each beginning of the command's last word."""
        (self.directory / "chain.pem").touch()
        (self.directory / "certs").mkdir()
        lines = [f"source {self.script('fish')}"]
        lines += [f"echo '> {word}'; complete -C 'pyrycode-relay {word}'" for word in words]
        run = run_program("fish", "--no-config", "-c", "; ".join(lines), directory=self.directory)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        found: dict[str, list[str]] = {}
        for line in run.stdout.splitlines():
            if line.startswith("> "):
                last = found.setdefault(line.removeprefix("> "), [])
            else:
                last.append(line)
        return found

    def test_offers(self) -> None:
        """Names have descriptions; values are words, files or directories, if there are any."""
        offered = self.offered("--", "--log-level=", "--tls-cert=c", "--tls-dir=c", "--grace=c")
        described = dict(line.split("\t") for line in offered["--"])
        for option in (*OPTIONS, *COMMAND_OPTIONS):
            self.assertEqual(described[f"--{option.name}"], summary(option))
        values = {
            word: {line.split("\t")[0].partition("=")[2] for line in lines}
            for word, lines in offered.items()
        }
        self.assertEqual(values["--log-level="], {"debug", "info", "warn", "error"})
        self.assertEqual(values["--tls-cert=c"], {"chain.pem", "certs/"})
        self.assertEqual(values["--tls-dir=c"], {"certs/"})
        self.assertEqual(values["--grace=c"], set())


class ZshTests(ScriptTestCase):
    def test_script(self) -> None:
        """zsh reads the script for the command; it has a specification for each option."""
        path = self.directory / "offers"
        path.write_text(
            f'_arguments() {{ print -rl -- "$@" }}\nsource {self.script("zsh")}\n',
            encoding="utf-8",
        )
        run = run_program("zsh", "-f", path)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        offered = run.stdout.splitlines()[2:]
        self.assertIn("--completion=", offered[-4])
        for option in OPTIONS:
            often = "*" if option.many else ""
            value = "" if option.is_switch else "="
            start = f"{often}--{option.name}{value}["
            self.assertEqual(len([each for each in offered if each.startswith(start)]), 1)


class TwistedTests(SystemTestCase):
    """Twisted's own completion, which zsh ships."""

    def offered(self, *words: str) -> list[str]:
        """Return the actions that zsh gets from the script for a command line."""
        zsh = needs.program("zsh")
        script = self.directory / "offers"
        script.write_text(f'f() {{{_OFFERS}}}\nf {TWISTD} "$@"\nexit 0\n', encoding="utf-8")
        child = self.child(zsh, "-f", script, *words)
        self.assertEqual((child.wait(), child.errors()), (0, ""))
        return child.output().splitlines()

    def test_each_option(self) -> None:
        """Every option is offered with a description, as often as it may be given."""
        offered = self.offered("pyrycode-relay", "--")
        for option in OPTIONS:
            often = "*" if option.many else ""
            value = "" if option.is_switch else "="
            start = f"{often}--{option.name}{value}["
            [line] = [each for each in offered if each.startswith(start)]
            self.assertGreater(len(line), len(start) + 10)

    def test_values(self) -> None:
        """The value of an option is offered as its words, files or hosts, if it takes any."""
        offered = self.offered("pyrycode-relay", "--")
        for option in OPTIONS:
            if option.is_switch:
                continue
            start = f"--{option.name}="
            [line] = [each for each in offered if each.lstrip("*").startswith(start)]
            action = line.rpartition(":")[2]
            if option.kind.words:
                self.assertEqual(action, f"({' '.join(option.kind.words)})")
            elif option.kind in {PATH, FILE_OR_NONE, SECRET, DIRECTORY}:
                self.assertTrue(action.startswith(("_files", "_directories")), line)
            else:
                self.assertEqual(action, "_hosts" if option.kind is DOMAIN else "")

    def test_words_are_values(self) -> None:
        """Every word that is offered is a value."""
        for option in OPTIONS:
            for word in option.kind.words:
                self.assertEqual(option.kind.show(option.kind.parse(word)), word)

    def test_the_command(self) -> None:
        """twistd's commands include the relay."""
        child = self.child(TWISTD, "pyry", "--_shell-completion", "zsh:2")
        self.assertEqual(child.wait(), 0)
        self.assertIn('"pyrycode-relay:', child.output())
