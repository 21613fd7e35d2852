"""Paths that the relay does not have: what was meant, and nothing of what was sent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.http.paths import PathFault, find_path_fault
from tests.unit.bench import Cases, cases, examples

KNOWN = (b"/v1/server", b"/v1/client", b"/v2/server", b"/v2/client", b"/healthz", b"/readyz")


class PathTests(Cases):
    @cases(
        {
            "slash_behind": (b"/v1/server/", b"/v1/server"),
            "slashes": (b"//v1///client", b"/v1/client"),
            "case": (b"/V1/Client", b"/v1/client"),
            "escape": (b"/v2/%63lient", b"/v2/client"),
            "escaped_slash": (b"/v1%2fclient", b"/v1/client"),
            "health": (b"/healthz/", b"/healthz"),
        }
    )
    def test_spelling(self, path: bytes, meant: bytes) -> None:
        """A path that differs in its letters' case, its slashes or its escapes."""
        self.assertEqual(find_path_fault(path, KNOWN), (PathFault.SPELLING, meant))

    @cases(
        {
            "behind": (b"/v1/client/home", b"/v1/client"),
            "in_front": (b"/relay/v1/client", b"/v1/client"),
            "absolute": (b"http://relay.example/v2/server", b"/v2/server"),
            "both_differ": (b"/Relay/V1/Client/", b"/v1/client"),
        }
    )
    def test_surrounded(self, path: bytes, meant: bytes) -> None:
        """A path with more in front of it, as behind a proxy that strips nothing, or behind it."""
        self.assertEqual(find_path_fault(path, KNOWN), (PathFault.SURROUNDED, meant))

    @cases(
        {
            "root": (b"/",),
            "empty": (b"",),
            "star": (b"*",),
            "half": (b"/v1",),
            "version": (b"/v3/client",),
            "longer": (b"/v1/clients",),
            "parameter": (b"/v1/client;a=b",),
            "space_behind": (b"/v1/client%20",),
            "scanner": (b"/wp-login.php",),
            "bytes": (b"/\x80%ff%zz%",),
        }
    )
    def test_unknown(self, path: bytes) -> None:
        """Any other path is like none of the relay's."""
        self.assertEqual(find_path_fault(path, KNOWN), (PathFault.UNKNOWN, None))

    @examples(200)
    @given(
        st.one_of(
            st.binary(),
            st.builds(
                lambda *a: b"".join(a),
                st.binary(max_size=3),
                st.sampled_from(KNOWN),
                st.binary(max_size=3),
            ),
        )
    )
    def test_any(self, path: bytes) -> None:
        """Any bytes have a fault, and the path that is named is one of the relay's."""
        fault, meant = find_path_fault(path, KNOWN)
        self.assertEqual(meant is None, fault is PathFault.UNKNOWN)
        self.assertIn(meant, {None, *KNOWN})
