"""The help: every option in its section, and a page with those that an operator needs first."""

from __future__ import annotations

import re

from pyrycode_relay.config import help_page
from pyrycode_relay.config.options import COMMAND_OPTIONS, OPTIONS, sections
from tests.unit.bench import Cases

WHOLE = [*help_page.whole()]
SHORT = [*help_page.short()]
NAMES = {each.name for each in (*OPTIONS, *COMMAND_OPTIONS)}


def explained(name: str) -> str:
    """Return what stands below an option in the whole help, as one line."""
    start = next(i for i, line in enumerate(WHOLE) if re.match(rf"  --{name}(=|$)", line))
    end = WHOLE.index("", start)
    return " ".join(line.strip() for line in WHOLE[start + 1 : end])


class WholeTests(Cases):
    def test_each_option(self) -> None:
        """Every option stands there with its help, its example and its default."""
        for option in OPTIONS:
            expected = option.help
            if option.example:
                expected += f" Example: --{option.name}={option.example}"
            if option.default and not option.is_switch:
                expected += f" Default: {option.default}"
            self.assertEqual(explained(option.name), expected)
        for each in COMMAND_OPTIONS:
            self.assertEqual(explained(each.name), each.help)

    def test_placeholders(self) -> None:
        """An option with a value has a placeholder for it, and a switch has none."""
        for option in OPTIONS:
            switch = option.usage == f"--{option.name}"
            self.assertEqual(switch, option.is_switch, option.usage)
            self.assertIn(f"  {option.usage}", WHOLE)

    def test_sections(self) -> None:
        """Every option is in one section, and the sections keep the order of the table."""
        found = [option for _, options in sections() for option in options]
        self.assertEqual(found, [*OPTIONS])
        titles = [line[:-1] for line in WHOLE if re.match(r"\w.*:$", line)]
        self.assertEqual(titles, [*(title for title, _ in sections()), "Only on the command line"])

    def test_names_are_whole(self) -> None:
        """No line breaks the name of an option, and no line is wider than a terminal."""
        for line in (*WHOLE, *SHORT):
            self.assertLessEqual(len(line), 80, line)
            for name in re.findall(r"(?<![\w-])--([a-z-]+)", line):
                self.assertIn(name, {*NAMES, "version", "help"}, line)


class ShortTests(Cases):
    def test_options(self) -> None:
        """It has ten options, each on one line."""
        listed = [line.split()[0] for line in SHORT if line.startswith("  --")]
        self.assertEqual(len(listed), 10)
        self.assertEqual(listed, [self.usage(name) for name in help_page.ESSENTIALS])

    def usage(self, name: str) -> str:
        return next(o.usage for o in (*OPTIONS, *COMMAND_OPTIONS) if o.name == name)

    def test_it_fits(self) -> None:
        """It fits on one screen, and names the way to the rest."""
        self.assertLessEqual(len(SHORT), 30)
        self.assertIn("--help", SHORT[-1])
