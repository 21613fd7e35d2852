"""Completion in zsh, by Twisted's mechanism."""

from __future__ import annotations

from pyrycode_relay.config.options import OPTIONS
from pyrycode_relay.config.values import DIRECTORY, DOMAIN, FILE_OR_NONE, PATH, SECRET
from tests import needs
from tests.system.harness import TWISTD, SystemTestCase

_OFFERS = """
_arguments() { print -rl -- "$@"; return 1; }
local output
output=$("$@" --_shell-completion zsh:$#) || exit 1
eval "$output"
"""
"""As zsh's own function for Twisted's commands, but it prints the offers."""


class CompletionTests(SystemTestCase):
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
