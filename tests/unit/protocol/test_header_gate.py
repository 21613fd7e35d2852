"""The header gate: what a request must have, what it must not, and what the log may show."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.protocol import header_gate
from pyrycode_relay.protocol.header_gate import HeaderError, UpgradeRefusal
from tests.unit.bench import Cases, cases, examples

BINARY = {"x-pyrycode-server": "home", "x-pyrycode-version": "1.2.3", "user-agent": "pyry/1.2"}
PHONE_V1 = {"x-pyrycode-server": "home", "x-pyrycode-token": "t0ken", "user-agent": "app/7"}
PHONE_V2 = {"x-pyrycode-server": "home", "user-agent": "app/7"}

GATES = {
    "binary": (header_gate.gate_binary, BINARY),
    "phone_v1": (header_gate.gate_phone_v1, PHONE_V1),
    "phone_v2": (header_gate.gate_phone_v2, PHONE_V2),
}
REQUIRED = {f"{gate}__{name}": (gate, name) for gate, (_, full) in GATES.items() for name in full}
CONTROLS = {f"{byte:02x}": (byte,) for byte in (*range(0x20), 0x7F) if byte != 0x09}
HIGH = {f"{byte:02x}": (byte,) for byte in range(0x80, 0x100)}
SECRET = "hunter2-do-not-tell"


def block(fields: dict[str, str]) -> list[tuple[bytes, list[bytes]]]:
    """Return a header block with each field once."""
    return [(name.encode(), [value.encode("latin-1")]) for name, value in fields.items()]


class GateCase(Cases):
    """Asks the gates as the relay does: first the block as a whole, then the endpoint's gate."""

    def admit(self, gate: str, **changes: str | None) -> dict[str, str]:
        """Bring a good request with ``changes`` (None takes a header away) to a gate."""
        check, full = GATES[gate]
        fields = dict(full)
        for key, value in changes.items():
            name = key.replace("_", "-")
            if value is None:
                fields.pop(name, None)
            else:
                fields[name] = value
        header_gate.check_block(block(fields))
        check(fields)
        return fields

    def refuse(self, gate: str, **changes: str | None) -> HeaderError:
        """Bring such a request to a gate, which has to refuse it."""
        error: HeaderError = self.assertRaises(HeaderError, self.admit, gate, **changes)
        return error


class GateTests(GateCase):
    @cases({gate: (gate,) for gate in GATES})
    def test_admits(self, gate: str) -> None:
        """A request with just the required headers passes."""
        self.admit(gate)

    @cases(REQUIRED)
    def test_missing(self, gate: str, name: str) -> None:
        """A request without a required header is refused, and the refusal names the header."""
        refusal = self.refuse(gate, **{name: None}).refusal
        self.assertEqual(refusal.text, f"{name.replace('_', '-')} is missing")
        self.assertEqual(refusal.label, "reject_headers")

    @cases(REQUIRED)
    def test_blank(self, gate: str, name: str) -> None:
        """A required header that is empty or only white space counts as missing."""
        for blank in ("", " ", "\t", " \t  "):
            self.refuse(gate, **{name: blank})

    def test_v2_takes_no_token(self) -> None:
        """A v2 phone may send a token, an empty one too: it is ignored."""
        for token in ("", " ", "t0ken"):
            self.admit("phone_v2", x_pyrycode_token=token)

    def test_phone_needs_no_version(self) -> None:
        """What only binaries have to send is not asked of phones, and the other way round."""
        self.admit("phone_v1", x_pyrycode_version=None)
        self.admit("binary", x_pyrycode_token=None)

    @cases({gate: (gate,) for gate in GATES})
    def test_server_id_length(self, gate: str) -> None:
        """A server-id has at most 256 bytes."""
        self.admit(gate, x_pyrycode_server="s" * 256)
        error = self.refuse(gate, x_pyrycode_server="s" * 257)
        self.assertIs(error.refusal, UpgradeRefusal.LONG_SERVER_ID)

    @cases(
        {
            "version": ("binary", "x-pyrycode-version"),
            "binary_agent": ("binary", "user-agent"),
            "phone_agent": ("phone_v1", "user-agent"),
            "v2_agent": ("phone_v2", "user-agent"),
            "token": ("phone_v1", "x-pyrycode-token"),
            "v2_token": ("phone_v2", "x-pyrycode-token"),
        }
    )
    def test_value_length(self, gate: str, name: str) -> None:
        """A version, user-agent or token has at most 4096 bytes."""
        self.admit(gate, **{name: "v" * 4096})
        refusal = self.refuse(gate, **{name: "v" * 4097}).refusal
        self.assertEqual(refusal.text, f"{name} is too long")
        self.assertEqual(refusal.label, "reject_headers")

    @cases(CONTROLS | HIGH)
    def test_byte_in_id_or_version(self, byte: int) -> None:
        """A control byte, DEL or a byte from 0x80 on is refused anywhere in an id or a version."""
        for value in (
            f"a{chr(byte)}b",
            f"{chr(byte)}a",
            f"a{chr(byte)}",
            f"{chr(byte)}a{chr(byte)}",
        ):
            for gate in GATES:
                self.refuse(gate, x_pyrycode_server=value)
            self.refuse("binary", x_pyrycode_version=value)

    def test_tab_inside(self) -> None:
        """A tab inside a server-id is a control byte like any other."""
        error = self.refuse("phone_v1", x_pyrycode_server="a\tb")
        self.assertIs(error.refusal, UpgradeRefusal.UNPRINTABLE_SERVER_ID)
        error = self.refuse("binary", x_pyrycode_version="1\t2")
        self.assertIs(error.refusal, UpgradeRefusal.UNPRINTABLE_VERSION)

    def test_printable(self) -> None:
        """Every printable ASCII character may stand in a server-id."""
        value = "".join(map(chr, range(0x21, 0x7F)))
        fields = self.admit("phone_v2", x_pyrycode_server=value)
        self.assertEqual(header_gate.server_id(fields), value)

    def test_free_bytes(self) -> None:
        """A user-agent or token of bytes from 0x80 on is nobody's business."""
        self.admit("phone_v1", user_agent="J\xfcrgen", x_pyrycode_token="\xe9\xff")

    def test_surroundings(self) -> None:
        """White space around a value is HTTP's, not the value's."""
        fields = self.admit("binary", x_pyrycode_server=" home\t", x_pyrycode_version="\t 7 ")
        self.assertEqual(header_gate.server_id(fields), "home")
        self.assertEqual(header_gate.version(fields), "7")

    def test_inner_space(self) -> None:
        """A space inside a server-id is part of it."""
        fields = self.admit("phone_v2", x_pyrycode_server="my home")
        self.assertEqual(header_gate.server_id(fields), "my home")

    def test_case_matters(self) -> None:
        """A server-id is taken as it is, upper and lower case apart."""
        fields = self.admit("phone_v2", x_pyrycode_server="Home")
        self.assertEqual(header_gate.server_id(fields), "Home")


class SilenceTests(GateCase):
    @cases(
        {
            "token": ("phone_v1", "x-pyrycode-token", SECRET * 400),
            "v2_token": ("phone_v2", "x-pyrycode-token", SECRET * 400),
            "token_control": ("phone_v1", "x-pyrycode-token", SECRET + "\x00"),
            "agent": ("phone_v1", "user-agent", SECRET * 400),
            "server_id": ("phone_v1", "x-pyrycode-server", SECRET + "\xff"),
            "server_id_length": ("phone_v1", "x-pyrycode-server", SECRET * 20),
            "version": ("binary", "x-pyrycode-version", SECRET + "\x7f"),
        }
    )
    def test_no_value_in_the_error(self, gate: str, name: str, value: str) -> None:
        """An error names the header at most: it has nothing of the value, in no attribute."""
        error: BaseException | None = self.refuse(gate, **{name: value})
        while error is not None:
            self.assertNotIn(SECRET, f"{error} {error!r} {error.args} {vars(error)}")
            error = error.__cause__ or error.__context__

    def test_nothing_is_returned(self) -> None:
        """A gate hands nothing on, so no value of a header can go anywhere from it."""
        for gate, full in GATES.values():
            self.assertIsNone(gate(full))


class BlockTests(Cases):
    def refuse(
        self,
        fields: Iterable[tuple[bytes, list[bytes]]],
        refusal: UpgradeRefusal = UpgradeRefusal.CONTROL_BYTE,
    ) -> None:
        """Bring a header block to the check, which has to refuse it for this cause."""
        error = self.assertRaises(HeaderError, header_gate.check_block, [*fields])
        self.assertIs(error.refusal, refusal)

    @cases(
        {
            name: (name.encode(),)
            for name in (
                "x-pyrycode-server",
                "x-pyrycode-version",
                "x-pyrycode-token",
                "x-pyrycode-device-name",
                "user-agent",
            )
        }
    )
    def test_twice(self, name: bytes) -> None:
        """A routing header may stand once, even if both say the same."""
        header_gate.check_block([(name, [b"a"])])
        for second in (b"a", b"b"):
            self.refuse([(name, [b"a", second])], UpgradeRefusal.REPEATED_HEADER)

    def test_others_twice(self) -> None:
        """Headers that route nothing may stand as often as they like."""
        header_gate.check_block([(b"cookie", [b"a", b"b"]), (b"x-forwarded-for", [b"a", b"a"])])

    @cases(CONTROLS | {"85": (0x85,)})
    def test_control_byte(self, byte: int) -> None:
        """A byte at which a later parser could split a line is refused in any header."""
        for name in (b"cookie", b"user-agent", b"x-pyrycode-token", b"x-pyrycode-device-name"):
            self.refuse([(name, [b"a" + bytes([byte]) + b"x-pyrycode-server: other"])])
            self.refuse([(b"host", [b"relay"]), (name, [bytes([byte])])])

    def test_tab(self) -> None:
        """A tab is white space in HTTP."""
        header_gate.check_block([(b"user-agent", [b"a\tb"])])

    def test_second_value(self) -> None:
        """All values of a header are looked at, not the first alone."""
        self.refuse([(b"cookie", [b"a", b"b\x85c"])])

    def test_text_in_a_device_name(self) -> None:
        r"""A device name may be any UTF-8, also where its bytes have a ``\x85``."""
        for name in ("Ångström", "naïve café", "电话", "📱 phone", "a\x85b"):
            header_gate.check_block([(b"x-pyrycode-device-name", [name.encode()])])

    def test_broken_text_in_a_device_name(self) -> None:
        r"""A bare ``\x85`` in a device name is no letter but the end of a line."""
        self.refuse([(b"x-pyrycode-device-name", [b"a\x85x-pyrycode-server: other"])])

    def test_text_elsewhere(self) -> None:
        r"""In what Autobahn gets to see, a ``\x85`` is refused even as part of a letter."""
        self.refuse([(b"user-agent", ["Å".encode()])])

    @examples(200)
    @given(st.sampled_from(header_gate.GATED), st.binary(max_size=40))
    def test_no_smuggling(self, name: str, value: bytes) -> None:
        """Whatever passes is one line to a parser that splits lines as Python does."""
        try:
            header_gate.check_block([(name.encode(), [value])])
        except HeaderError:
            return
        self.assertLessEqual(len(f"{name}: {value.decode('latin-1')}".splitlines()), 1)


class DeviceNameTests(Cases):
    @cases(
        {
            "ascii": (b"Pixel 8", "Pixel 8"),
            "utf8": ("Jürgens Gerät".encode(), "Jürgens Gerät"),
            "emoji": ("📱".encode(), "📱"),
            "empty": (b"", ""),
            "not_utf8": (b"J\xfcrgen", "J\N{REPLACEMENT CHARACTER}rgen"),
            "controls": (b"a\x00\x1b[31mb\x7fc", "a[31mbc"),
            "c1": ("a\x85\x9bb".encode(), "ab"),
            "line_separators": ("a\u2028b\u2029c".encode(), "abc"),
            "bidirectional": ("a\u202eb\u2066c".encode(), "abc"),
            "surrounded": (b"  a  ", "a"),
            "encoded_surrogate": (b"a\xed\xa0\x80b", "a\ufffd\ufffd\ufffdb"),
        }
    )
    def test_shown(self, raw: bytes, shown: str) -> None:
        """A device name is decoded with replacement and loses what could trick a terminal."""
        self.assertEqual(header_gate.device_name(raw), shown)

    def test_cut(self) -> None:
        """128 characters are shown, however many bytes they are."""
        self.assertEqual(header_gate.device_name(b"d" * 129), "d" * 128)
        self.assertEqual(header_gate.device_name("ü".encode() * 129), "ü" * 128)
        self.assertEqual(header_gate.device_name(b"d" * 128), "d" * 128)

    @examples(200)
    @given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)))
    def test_anything(self, raw: bytes) -> None:
        """Of any bytes at most 128 characters are shown, no control or separator among them."""
        shown = header_gate.device_name(raw)
        self.assertLessEqual(len(shown), 128)
        self.assertEqual(len(shown.splitlines()), 1 if shown else 0)
        hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
        self.assertFalse(hidden & {unicodedata.category(each) for each in shown})
        shown.encode()
