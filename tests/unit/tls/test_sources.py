"""Where certificates come from, and what counts as a change there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls.certificate import Pair
from pyrycode_relay.tls.sources import Files, Folder, Source, fingerprint, given
from tests.unit.bench import Cases, cases


class SourceCase(Cases):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sources-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.pair = Pair(self.directory / "chain.pem", self.directory / "key.pem")


class SourceTests(SourceCase):
    def test_files(self) -> None:
        """A source of one pair has that pair, whether it is there or not."""
        self.assertEqual([*Files(self.pair).pairs()], [self.pair])

    def test_folder(self) -> None:
        """A key is looked for beside its chain under two names, and in it; other files are not."""
        names = "a.pem a.key b.pem b-key.pem c.pem d.key e.txt .f.pem"
        for name in names.split():
            (self.directory / name).touch()
        pairs = {(pair.certificate.name, pair.key.name) for pair in Folder(self.directory).pairs()}
        expected = {("a.pem", "a.key"), ("b.pem", "b-key.pem"), ("c.pem", "c.pem")}
        self.assertEqual(pairs, expected)

    def test_no_folder(self) -> None:
        """A folder that does not exist, is a file or has no certificate is one sentence."""
        (self.directory / "file").touch()
        for name, words in (
            ("not", "No such file or directory"),
            ("file", "Not a directory"),
            (".", "has no certificate; put its chain there as NAME.pem"),
        ):
            error = self.assertRaises(StartupError, Folder(self.directory / name).pairs)
            self.assertIn(words, str(error))

    def test_given(self) -> None:
        """Certificates and keys of the settings belong together in their order."""
        sources = given([Path("a"), Path("b")], [Path("c"), Path("d")], [Path("e")])
        self.assertEqual(
            sources,
            [
                Files(Pair(Path("a"), Path("c"))),
                Files(Pair(Path("b"), Path("d"))),
                Folder(Path("e")),
            ],
        )


CHANGES: dict[str, Callable[[Pair], object]] = {
    "content": lambda pair: pair.certificate.write_bytes(b"more"),
    "mode": lambda pair: pair.key.chmod(0o600),
    "time": lambda pair: os.utime(pair.key, ns=(1, 1)),
    "replaced": lambda pair: pair.key.with_suffix(".new").rename(pair.key),
    "gone": lambda pair: pair.certificate.unlink(),
    "another": lambda pair: pair.certificate.with_name("b.pem").touch(),
}


class FingerprintTests(SourceCase):
    def setUp(self) -> None:
        super().setUp()
        self.pair = Pair(self.directory / "a.pem", self.directory / "a.key")
        for path in (self.pair.certificate, self.pair.key, self.directory / "a.new"):
            path.touch(0o640)

    def test_same(self) -> None:
        """Reading files is no change."""
        before = fingerprint([Folder(self.directory)])
        self.pair.certificate.read_bytes()
        self.assertEqual(fingerprint([Folder(self.directory)]), before)

    @cases({name: (change,) for name, change in CHANGES.items()})
    def test_change(self, change: Callable[[Pair], object]) -> None:
        """A file that changes in any way that counts is a change."""
        before = fingerprint([Folder(self.directory)])
        change(self.pair)
        self.assertNotEqual(fingerprint([Folder(self.directory)]), before)

    def test_nothing_there(self) -> None:
        """A source that cannot be read has a fingerprint too, which changes once it can be."""
        sources: list[Source] = [
            Folder(self.directory / "none"),
            Files(Pair(Path("/none"), Path("/none"))),
        ]
        before = fingerprint(sources)
        self.assertEqual(fingerprint(sources), before)
        self.directory.joinpath("none").mkdir()
        self.directory.joinpath("none", "a.pem").touch()
        self.assertNotEqual(fingerprint(sources), before)
