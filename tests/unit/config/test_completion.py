"""The scripts that complete options: every option is in each of them."""

from __future__ import annotations

import re

from pyrycode_relay.config.completion import script, summary
from pyrycode_relay.config.options import COMMAND_OPTIONS, OPTIONS
from pyrycode_relay.config.values import SHELL, SWITCH
from tests.unit.bench import Cases, cases

SHELLS = {shell: (shell,) for shell in SHELL.words}
MENTION = {"bash": r"--{}(?=[= ])", "fish": r"-l {} ", "zsh": r"--{}(?==?\[)"}
"""How a script names an option."""


class ScriptTests(Cases):
    @cases(SHELLS)
    def test_each_option(self, shell: str) -> None:
        """A script has every option of the command."""
        text = "\n".join(script(shell))
        for each in (*OPTIONS, *COMMAND_OPTIONS):
            self.assertRegex(text, MENTION[shell].format(each.name))

    @cases(SHELLS)
    def test_values(self, shell: str) -> None:
        """A script has the words of each option that has some."""
        text = "\n".join(script(shell))
        for each in (*OPTIONS, *COMMAND_OPTIONS):
            if each.kind.words:
                self.assertIn(" ".join(each.kind.words), text)

    def test_summaries(self) -> None:
        """Each option's description is a few words of one line."""
        for each in (*OPTIONS, *COMMAND_OPTIONS):
            self.assertTrue(re.fullmatch(r"[A-Z].{10,130}[^.:]", summary(each)), summary(each))

    def test_switches(self) -> None:
        """fish does not ask for the value of a switch."""
        lines = {line.split()[4]: line for line in [*script("fish")][2:]}
        for each in (*OPTIONS, *COMMAND_OPTIONS):
            takes = bool(re.search(r" -[xr] ", lines[each.name]))
            self.assertEqual(takes, each.kind is not SWITCH, each.name)
