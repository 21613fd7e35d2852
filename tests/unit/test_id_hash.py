"""Hashes of server-ids: one for each id as long as the key is the same, and no way back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.id_hash import IdHash
from tests.unit.bench import Cases, examples


class IdHashTests(Cases):
    def test_key(self) -> None:
        """One key gives one hash; without a key, each process has its own."""
        key = b"k" * 32
        self.assertEqual(IdHash(key).of("home"), IdHash(key).of("home"))
        self.assertNotEqual(IdHash(key).of("home"), IdHash(key).of("office"))
        self.assertNotEqual(IdHash().of("home"), IdHash().of("home"))

    @examples(100)
    @given(st.text())
    def test_any_name(self, name: str) -> None:
        """Any text has a hash of eight hex digits."""
        self.assertRegex(IdHash().of(name), r"\A[0-9a-f]{8}\Z")
