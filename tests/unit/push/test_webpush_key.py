"""The command that makes the relay's VAPID key."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

from pyrycode_relay.push.vapid import public_half, read_key
from pyrycode_relay.push.webpush_key import PROGRAM, main
from tests.unit.bench import Cases


class KeyCommandTests(Cases):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="relay-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "webpush.pem"

    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        """Run the command; return its status, its output and its errors."""
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                status = main(arguments)
            except SystemExit as end:
                status = int(end.code or 0)
        return status, output.getvalue(), errors.getvalue()

    def sentence(self, *arguments: str) -> str:
        """Return the one sentence that a command fails with."""
        status, output, errors = self.run_command(*arguments)
        self.assertEqual((status, output), (1, ""))
        self.assertRegex(errors, rf"\A{PROGRAM}: [^\n]+\.\n\Z")
        return errors

    def test_make(self) -> None:
        """The key is for its owner alone, and the last line is its public half."""
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        status, output, errors = self.run_command(str(self.path))
        self.assertEqual((status, errors), (0, ""))
        public = output.splitlines()[-1]
        self.assertTrue(re.fullmatch(r"B[A-Za-z0-9_-]{86}", public), public)
        self.assertEqual(public, public_half(read_key(self.path)))
        self.assertEqual(self.path.stat().st_mode & 0o7777, 0o600)
        self.assertEqual([*self.folder.iterdir()], [self.path])

    def test_show(self) -> None:
        """The public half can be had again, and the file stays as it is."""
        _, made, _ = self.run_command(str(self.path))
        before = self.path.read_bytes()
        self.assertEqual(self.run_command("--show", str(self.path)), (0, made, ""))
        self.assertEqual(self.path.read_bytes(), before)

    def test_never_overwrites(self) -> None:
        """A file that exists is left alone, and so is a link that leads nowhere."""
        self.path.write_text("precious")
        self.assertIn("exists already", self.sentence(str(self.path)))
        self.assertEqual(self.path.read_text(), "precious")
        link = self.folder / "link.pem"
        link.symlink_to(self.folder / "nowhere")
        self.assertIn("exists already", self.sentence(str(link)))
        self.assertEqual({each.name for each in self.folder.iterdir()}, {"webpush.pem", "link.pem"})

    def test_cannot_write(self) -> None:
        """A folder that is not there is one sentence."""
        self.assertIn("cannot be written: No such file", self.sentence(f"{self.folder}/no/key.pem"))

    def test_cannot_show(self) -> None:
        """A file without a key is one sentence."""
        self.assertIn("cannot be read: No such file", self.sentence("--show", str(self.path)))
        self.path.write_text("nothing")
        self.assertIn("no private key", self.sentence("--show", str(self.path)))

    def test_mistakes(self) -> None:
        """A mistake on the command line has the status 2, and help has 0."""
        self.assertEqual(self.run_command()[0], 2)
        self.assertEqual(self.run_command("--shw", str(self.path))[0], 2)
        status, output, _ = self.run_command("--help")
        self.assertEqual(status, 0)
        self.assertIn("--webpush-key", output)
        self.assertFalse(self.path.exists())
