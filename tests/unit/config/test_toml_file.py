"""Configuration files: reading, mistakes, and how values are written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.config.toml_file import ConfigFile, parse, quoted, read
from pyrycode_relay.startup_error import StartupError
from tests.unit.bench import Cases, cases, examples


class ConfigFileCase(Cases):
    def wrong(self, text: str) -> str:
        """Return the mistake of a file that has one."""
        error: StartupError = self.assertRaises(StartupError, parse, "f.toml", text)
        [problem] = error.problems
        self.assertEqual(len(problem.splitlines()), 1)
        self.assertTrue(problem.endswith("."), problem)
        return problem


class ParseTests(ConfigFileCase):
    @cases(
        {
            "number": ("a = 3", ["3"]),
            "fraction": ("a = 2.5", ["2.5"]),
            "underscores": ("a = 1_000", ["1000"]),
            "hex": ("a = 0x10", ["16"]),
            "text": ("a = 'b c'", ["b c"]),
            "true": ("a = true", ["yes"]),
            "false": ("a = false", ["no"]),
            "list": ("a = [1, 'b', true]", ["1", "b", "yes"]),
            "empty": ("a = []", []),
        }
    )
    def test_value(self, text: str, expected: list[str]) -> None:
        """A value becomes the text that sets it on the command line."""
        self.assertEqual(parse("f", text).texts, {"a": expected})

    def test_names(self) -> None:
        """Underscores in names become dashes; nothing else changes."""
        self.assertEqual([*parse("f", "a_b-c = 1\n'D e' = 2").texts], ["a-b-c", "D e"])

    def test_lists(self) -> None:
        """The names of lists are recorded."""
        self.assertEqual(parse("f", "a_b = [1]\nc = 1").lists, {"a-b"})

    @cases(
        {
            "syntax": ("a = 1\nb = = 2", "f.toml, line 2: Invalid value."),
            "twice": ("a = 1\n\na = 2", "f.toml, at its end: Cannot overwrite a value."),
            "unquoted": ("a = evict", "f.toml, line 1: Invalid value."),
            "end": ("a = [1", "f.toml, at its end: Unclosed array."),
        }
    )
    def test_no_toml(self, text: str, problem: str) -> None:
        """A mistake of syntax is reported with its line."""
        self.assertEqual(self.wrong(text), problem)

    @cases(
        {
            "table": ("[a]\nb = 1", "a is a table;"),
            "dots": ("a.b = 1", "a is a table;"),
            "inline": ("a = {b = 1}", "a is a table;"),
            "date": ("a = 2026-01-01", "a is a date or time;"),
            "time": ("a = 12:00:00", "a is a date or time;"),
            "deep": ("a = [[1]]", "a is a list of other things;"),
            "tables": ("[[a]]\nb = 1", "a is a list of other things;"),
            "both": ("a_b = 1\na-b = 2", "a-b is set twice, with dashes and with underscores."),
        }
    )
    def test_no_setting(self, text: str, problem: str) -> None:
        """A value that no setting can have is one sentence."""
        self.assertIn(f"f.toml: {problem}", self.wrong(text))

    def test_nested(self) -> None:
        """Nesting of any depth is one sentence."""
        self.wrong("a = " + "[" * 100_000)

    def test_digits(self) -> None:
        """A number of any length is a sentence or a text."""
        self.wrong("a = " + "9" * 10_000)
        self.assertEqual(parse("f", "a = 0x" + "f" * 10_000).texts, {"a": ["too large a number"]})

    @examples(300)
    @given(st.text(st.sampled_from("ab=[]{}\"'\n.#-_1 \\é\0"), max_size=20))
    def test_any_text(self, text: str) -> None:
        """Any text is a configuration, or a sentence for each mistake."""
        try:
            parse("f", text)
        except StartupError as error:
            for problem in error.problems:
                self.assertTrue(problem.startswith("f"), problem)


class ReadTests(Cases):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "relay.toml")

    def wrong(self) -> str:
        """Return the mistake of the file, without its path."""
        [problem] = self.assertRaises(StartupError, read, str(self.path)).problems
        return str(problem).replace(str(self.path), "FILE")

    def test_read(self) -> None:
        """A file is read; its path stays with it."""
        self.path.write_text("a = 'ü'")
        self.assertEqual(read(str(self.path)), ConfigFile(str(self.path), {"a": ["ü"]}))

    def test_not_there(self) -> None:
        """A file that cannot be read is reported with the reason."""
        self.assertEqual(self.wrong(), "Cannot read FILE: No such file or directory.")
        self.path.mkdir()
        self.assertEqual(self.wrong(), "Cannot read FILE: Is a directory.")

    def test_not_utf8(self) -> None:
        """A byte that is not UTF-8 is reported with its line."""
        self.path.write_bytes(b"# \xc3\xbc\n\na = '\xff'")
        self.assertEqual(self.wrong(), "FILE, line 3: not UTF-8.")

    def test_huge(self) -> None:
        """A file without an end is refused."""
        self.path.symlink_to("/dev/zero")
        self.assertEqual(self.wrong(), "FILE is larger than 1048576 bytes.")


class QuotedTests(Cases):
    @cases(
        {
            "text": ("a b", '"a b"'),
            "number": ("30", '"30"'),
            "empty": ("", '""'),
            "quotes": ('a"\\', '"a\\"\\\\"'),
            "control": ("\n\x7f", '"\\U0000000a\\U0000007f"'),
        }
    )
    def test_quoted(self, text: str, expected: str) -> None:
        """A text is in quotes, whatever it looks like."""
        self.assertEqual(quoted(text), expected)

    @examples(300)
    @given(st.one_of(st.text(), st.floats().map(repr), st.integers().map(str)))
    def test_any(self, text: str) -> None:
        """A text that is written is read as the same text."""
        if any(0xD800 <= ord(each) < 0xE000 for each in text):
            return
        self.assertEqual(parse("f", f"a = {quoted(text)}").texts, {"a": [text]})
