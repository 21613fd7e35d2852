"""The routing envelope: frames come through byte for byte, and nothing can be forged or crash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

from pyrycode_relay.protocol.envelope import (
    SUFFIX,
    Envelope,
    EnvelopeError,
    EnvelopeFault,
    close_notice,
    data_prefix,
    is_json,
    unwrap,
)
from pyrycode_relay.protocol.push_wake import PushWake, WakeRequest
from tests.unit.bench import Cases, cases, examples

CONN_ID = "client-home-0123abcd"

# JSON as text, with everything in it that a decoder and an encoder would not give back.

space = st.text(" \t\n\r", max_size=2)
hex_digits = st.text("0123456789abcdefABCDEF", min_size=4, max_size=4)
escapes = st.sampled_from([r"\"", r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t"])
surrogates = st.sampled_from([r"\ud800", r"\uDBFF", r"\udc00", r"\uDFFF", r"\ud83d\ude00"])
plain = st.text(max_size=4).map(
    lambda text: "".join(c for c in text if c >= " " and c not in '"\\')
)
strings = st.lists(st.one_of(plain, escapes, surrogates, hex_digits.map(r"\u{}".format))).map(
    lambda parts: f'"{"".join(parts)}"'
)
digits = st.text("0123456789", min_size=1, max_size=40)
numbers = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.one_of(st.just("0"), digits.map(lambda text: text.lstrip("0") or "0")),
    st.one_of(st.just(""), digits.map(".{}".format)),
    st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from(["e", "E+", "e-"]), digits)),
)
literals = st.sampled_from(["true", "false", "null", "1e999", "-0", '""', "[]", "{}"])
keys = st.one_of(strings, st.sampled_from(['"a"', '"frame"', '"conn_id"', r'"\u0061"', '""']))


def bracketed(left: str, right: str) -> Callable[[list[str]], str]:
    """Return what makes one array or object of its parts."""
    return lambda parts: left + ",".join(parts) + right


def nested(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Arrays and objects of ``values``; keys may come twice and in any order."""
    spaced = st.builds("{}{}{}".format, space, values, space)
    member = st.builds("{}{}{}:{}".format, space, keys, space, spaced)
    return st.one_of(
        st.lists(spaced, max_size=4).map(bracketed("[", "]")),
        st.lists(member, max_size=4).map(bracketed("{", "}")),
    )


values = st.recursive(st.one_of(strings, numbers, literals), nested, max_leaves=12)
"""One JSON value, without white space around it."""
documents = st.builds("{}{}{}".format, space, values, space)
"""A message that is exactly one JSON value."""

server_ids = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=20)
conn_ids = st.builds("client-{}-{}".format, server_ids, st.just("0123abcd"))

edits = st.lists(
    st.tuples(
        st.integers(0, 10_000),
        st.sampled_from(["insert", "replace", "delete"]),
        st.one_of(
            st.sampled_from([*'[]{},:"\\ \n\t\x00\x0b\x7f0123456789eE+-.tfnu/\xa0\ufeff']),
            st.sampled_from(["NaN", "Infinity", "-Infinity", r"\ud800", r"\u00", ",,", "[[", "//"]),
            st.sampled_from(["null", "true", '"frame"', '"conn_id"', '"close_code"', ":1", "'"]),
        ),
    ),
    min_size=1,
    max_size=4,
)


def edited(text: str, changes: list[tuple[int, str, str]]) -> str:
    """Return ``text`` with small changes."""
    for place, how, what in changes:
        at = place % (len(text) + 1)
        if how == "insert":
            text = text[:at] + what + text[at:]
        else:
            text = text[:at] + (what if how == "replace" else "") + text[at + 1 :]
    return text


nearly_json = st.builds(edited, documents, edits)

small = st.recursive(st.one_of(strings, numbers, literals), nested, max_leaves=3)


def member(names: list[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """One field of an object, with white space."""
    name = keys if not names else st.sampled_from(names)
    return st.builds("{}{}{}:{}{}".format, space, name, space, values, space)


envelopes = st.lists(
    st.one_of(
        member(
            ['"conn_id"', r'"conn\u005fid"', r'"\u0063onn_id"'],
            st.one_of(st.just(f'"{CONN_ID}"'), strings, small),
        ),
        member(['"frame"', r'"\u0066rame"'], small),
        member(
            ['"close_code"', r'"close_\u0063ode"'],
            st.one_of(st.integers(-1, 70_000).map(str), small),
        ),
        member(['"push_wake"'], small),
        member([], small),
    ),
    max_size=5,
).map(bracketed("{", "}"))
"""Objects with an envelope's fields in any order and spelling, valid or not, some twice."""


def refuse_constant(name: str) -> object:
    raise ValueError(name)


def read(text: str) -> Any:
    """Read one JSON value by the standard library: objects as lists of pairs, numbers as text.

    The reference: it refuses NaN and Infinity, which Python would take.
    """
    return json.loads(
        text,
        parse_constant=refuse_constant,
        parse_int=lambda number: ("number", number),
        parse_float=lambda number: ("number", number),
        object_pairs_hook=lambda pairs: ("object", pairs),
    )


def readable(text: str) -> bool:
    """Whether the reference takes ``text`` for one JSON value."""
    try:
        read(text)
    except ValueError:
        return False
    return True


def envelope(**fields: str) -> bytes:
    """Return an object with ``fields``, given as JSON text."""
    members = [f'"{name}":{value}' for name, value in fields.items()]
    return bracketed("{", "}")(members).encode()


class RoundTripTests(Cases):
    @examples(120)
    @given(conn_ids, documents)
    def test_bytes_survive(self, conn_id: str, frame: str) -> None:
        """A frame comes out of its envelope as it went in, but for white space around it."""
        payload = frame.encode()
        self.assertTrue(is_json(payload))
        message = data_prefix(conn_id) + payload + SUFFIX
        bare = payload.strip(b" \t\n\r")
        if bare == b"null":
            self.assertRaises(EnvelopeError, unwrap, message)
            return
        found = unwrap(message)
        assert isinstance(found, Envelope)
        self.assertEqual(found.conn_id, conn_id)
        self.assertEqual(found.frame, bare)
        self.assertIsNone(found.close_code)

    @examples(80)
    @given(conn_ids, documents)
    def test_any_reader_sees_the_same(self, conn_id: str, frame: str) -> None:
        """An envelope around a frame has two fields and no more, whatever the frame."""
        message = (data_prefix(conn_id) + frame.encode() + SUFFIX).decode()
        self.assertEqual(read(message), ("object", [("conn_id", conn_id), ("frame", read(frame))]))

    @cases(
        {
            "integer_beyond_floats": ("9" * 4000,),
            "infinite_float": ("1e999",),
            "precise_float": ("0.1000000000000000055511151231257827",),
            "negative_zero": ("-0",),
            "order_and_doubles": ('{"b":1,"a":2,"b":3}',),
            "odd_space": ('{ "a"\t:\r\n[ 1 ,2 ] }',),
            "escaped_slash": (r'"a\/b"',),
            "escaped_letter": (r'"\u0041\u00E9"',),
            "markup": ('"<script>&amp;\u2028"',),
            "lone_surrogate": (r'"\ud800"',),
            "surrogates_the_wrong_way": (r'"\udc00\ud800"',),
            "lone_surrogate_in_a_key": (r'{"\udfff":1}',),
            "surrogate_before_an_escape": (r'"\ud800\n"',),
            "nul": (r'"\u0000"',),
            "del": ('"\x7f"',),
            "noncharacter": ('"\uffff"',),
            "nested": ("[" * 200 + "]" * 200,),
            "null_inside": ("[null]",),
            "false": ("false",),
            "zero": ("0",),
            "empty_string": ('""',),
            "what_looks_like_an_envelope": ('{"conn_id":"victim","close_code":1000}',),
        }
    )
    def test_survivor(self, frame: str) -> None:
        """What an encoder would change comes through unchanged."""
        payload = frame.encode()
        self.assertTrue(is_json(payload))
        found = unwrap(data_prefix(CONN_ID) + payload + SUFFIX)
        assert isinstance(found, Envelope)
        self.assertEqual(found.frame, payload)

    def test_large(self) -> None:
        """A frame of 256 KiB, each byte of which an encoder could escape, stays that long."""
        payload = b'"%s"' % (b"<" * 262_142)
        self.assertTrue(is_json(payload))
        found = unwrap(data_prefix(CONN_ID) + payload + SUFFIX)
        assert isinstance(found, Envelope)
        self.assertEqual(found.frame, payload)

    @cases(
        {
            "quote": ('client-a"b-00000000',),
            "backslash": ("client-a\\b-00000000",),
            "forging": ('client-x","frame":1,"conn_id":"victim-00000000',),
            "trailing_backslash": ("client-\\-00000000",),
            "escape_look_alike": (r"client-\u0041-00000000",),
        }
    )
    def test_awkward_ids(self, conn_id: str) -> None:
        """A server-id with quotes and backslashes is a string like any other, in all envelopes."""
        data = read((data_prefix(conn_id) + b"[1]" + SUFFIX).decode())
        self.assertEqual(data[1][0], ("conn_id", conn_id))
        found = unwrap(data_prefix(conn_id) + b"[1]" + SUFFIX)
        assert isinstance(found, Envelope)
        self.assertEqual(found.conn_id, conn_id)
        notice = read(close_notice(conn_id, 1001).decode())
        self.assertEqual(
            notice, ("object", [("conn_id", conn_id), ("close_code", ("number", "1001"))])
        )

    def test_shapes(self) -> None:
        """The envelopes look just as the contract shows them, key order and all."""
        self.assertEqual(
            data_prefix(CONN_ID) + b" [1] " + SUFFIX,
            b'{"conn_id":"client-home-0123abcd","frame": [1] }',
        )
        self.assertEqual(
            close_notice(CONN_ID, 4401), b'{"conn_id":"client-home-0123abcd","close_code":4401}'
        )


class GrammarTests(Cases):
    @examples(120)
    @given(nearly_json)
    @example("\ufeff1")
    @example('{"a":1,}')
    @example(r'["\ud800",NaN]')
    @example('"\\ud800" \xa0')
    def test_agrees_on_nearly_json(self, text: str) -> None:
        """On JSON with a few characters changed, the check says what the reference says."""
        self.assertEqual(is_json(text.encode()), readable(text))

    @examples(120)
    @given(st.one_of(st.text(max_size=20), st.text('[]{},:"\\u0d8123eE+-. tn', max_size=12)))
    def test_agrees_on_any_text(self, text: str) -> None:
        """On any text, the check says what the reference says."""
        self.assertEqual(is_json(text.encode()), readable(text))

    @examples(120)
    @given(st.one_of(st.binary(max_size=60), nearly_json.map(str.encode)), st.binary(max_size=3))
    def test_never_raises(self, head: bytes, tail: bytes) -> None:
        """Any bytes, UTF-8 or not, get a yes or a no."""
        self.assertIn(is_json(head + tail), {True, False})

    @examples(120)
    @given(conn_ids, st.one_of(nearly_json, documents))
    @example("client-a-0", '1,"conn_id":"victim"')
    @example("client-a-0", '1,"conn_id":"victim","x":"\\ud800"')
    @example("client-a-0", '1}{"conn_id":"victim","frame":1')
    def test_nothing_forged(self, conn_id: str, text: str) -> None:
        """What passes the check cannot end its envelope's frame and begin another field."""
        if not is_json(text.encode()):
            return
        message = (data_prefix(conn_id) + text.encode() + SUFFIX).decode()
        kind, members = read(message)
        self.assertEqual(kind, "object")
        self.assertEqual([name for name, _ in members], ["conn_id", "frame"])
        self.assertEqual(members[0][1], conn_id)

    @cases(
        {
            "forgery": (b'1,"conn_id":"victim"',),
            "forgery_with_a_surrogate": (rb'"\ud800","conn_id":"victim"',),
            "two_values": (b"1 2",),
            "two_objects": (b"{}{}",),
            "empty": (b"",),
            "space": (b" \n",),
            "open": (b"[1",),
            "open_string": (b'"a',),
            "open_escape": (b'"\\ud8',),
            "closed_too_often": (b"[1]]",),
            "trailing_comma": (b"[1,]",),
            "leading_zero": (b"01",),
            "plus": (b"+1",),
            "bare_point": (b"1.",),
            "bare_exponent": (b"1e",),
            "hexadecimal": (b"0x10",),
            "nan": (b"NaN",),
            "infinity": (b"-Infinity",),
            "nan_beside_a_surrogate": (rb'["\ud800",NaN]',),
            "capital": (b"True",),
            "single_quotes": (b"'a'",),
            "comment": (b"1//a",),
            "raw_newline": (b'"a\nb"',),
            "raw_newline_beside_a_surrogate": (b'"\\ud800\n"',),
            "raw_nul": (b'"a\x00b"',),
            "bad_escape": (rb'"\x41"',),
            "short_escape": (rb'"\u12"',),
            "bad_hexadecimal": (rb'"\u12g4"',),
            "bad_key": (b"{1:2}",),
            "byte_order_mark": (b"\xef\xbb\xbf1",),
            "no_break_space": ("\xa01".encode(),),
            "form_feed": (b"\x0c1",),
            "utf16": ("[1]".encode("utf-16"),),
            "deep": (b"[" * 200_000,),
            "deep_and_closed": (b"[" * 200_000 + b"]" * 200_000,),
            "deep_objects": (b'{"a":' * 200_000,),
            "deep_beside_a_surrogate": (rb'["\ud800",' + b"[" * 200_000,),
            "surrogate_below_depth": (b"[" * 200_000 + rb'"\ud800"',),
        }
    )
    def test_refused(self, payload: bytes) -> None:
        """What is not exactly one JSON value is refused, and never a crash."""
        self.assertFalse(is_json(payload))

    @cases(
        {
            "scalar": (b"1",),
            "space_around": (b" \t\r\n1\n",),
            "space_around_a_surrogate": (b' \t\r\n"\\ud800"\n ',),
            "null": (b"null",),
            "infinite": (b"-1E+9999",),
            "many_digits": (b"9" * 100_000,),
            "many_digits_beside_a_surrogate": (rb'["\ud800",' + b"9" * 100_000 + b"]",),
            "wide": (b"[" + b"1," * 50_000 + b"1]",),
            "nested": (b"[" * 500 + b"]" * 500,),
            "nested_with_a_surrogate": (b"[" * 500 + rb'"\ud800"' + b"]" * 500,),
            "pair": (rb'"\ud83d\ude00"',),
            "letters_beside_a_surrogate": ('["\\udead","ü電📱"]'.encode(),),
        }
    )
    def test_accepted(self, payload: bytes) -> None:
        """Whatever the grammar allows is accepted."""
        self.assertTrue(is_json(payload))


class UnwrapTests(Cases):
    def frame(self, message: bytes) -> bytes | None:
        """Return the frame of an envelope for `CONN_ID`."""
        found = unwrap(message)
        assert isinstance(found, Envelope)
        self.assertEqual(found.conn_id, CONN_ID)
        return None if found.frame is None else bytes(memoryview(found.frame))

    def refuse(self, message: bytes) -> None:
        """Unwrap a message, which has to be refused."""
        self.assertRaises(EnvelopeError, unwrap, message)

    @cases({str(code): (code,) for code in (1, 999, 1000, 1005, 4401, 4426, 65535)})
    def test_directive(self, code: int) -> None:
        """A close code may come alone, beside a null, or beside a frame."""
        ends: tuple[dict[str, str], ...] = (
            {},
            {"frame": "null"},
            {"frame": " null "},
            {"frame": "[1]"},
        )
        for fields in ends:
            found = unwrap(envelope(conn_id=f'"{CONN_ID}"', close_code=str(code), **fields))
            assert isinstance(found, Envelope)
            self.assertEqual(found.close_code, code)
            self.assertEqual(found.frame is None, fields.get("frame") != "[1]")

    @cases(
        {
            "zero": ("0",),
            "negative": ("-1",),
            "negative_zero": ("-0",),
            "too_large": ("65536",),
            "huge": ("9" * 400,),
            "huger": ("9" * 10_000,),
            "infinite": ("1e999",),
            "whole_float": ("1.0",),
            "whole_float_in_range": ("4401.0",),
            "exponent": ("1e3",),
            "true": ("true",),
            "null": ("null",),
            "string": ('"x"',),
            "number_as_string": ('"1000"',),
            "array": ("[1000]",),
            "object": ("{}",),
        }
    )
    def test_close_code(self, code: str) -> None:
        """A close code that is no integer from 1 to 65535 spoils the envelope, frame and all."""
        for rest in ({}, {"frame": "1"}, {"frame": "null"}, {"frame": r'"\ud800"'}):
            self.refuse(envelope(conn_id=f'"{CONN_ID}"', close_code=code, **rest))
            self.refuse(envelope(close_code=code, **rest, conn_id=f'"{CONN_ID}"'))

    @cases(
        {
            "missing": ({},),
            "empty": ({"conn_id": '""'},),
            "number": ({"conn_id": "1"},),
            "null": ({"conn_id": "null"},),
            "array": ({"conn_id": f'["{CONN_ID}"]'},),
            "surrogate": ({"conn_id": r'"\ud800"'},),
        }
    )
    def test_conn_id(self, fields: dict[str, str]) -> None:
        """Without a conn_id that is a string, and not an empty one, there is no envelope."""
        for rest in ({"frame": "1"}, {"close_code": "1000"}, {"frame": r'"\ud800"'}):
            self.refuse(envelope(**fields, **rest))

    @cases(
        {
            "no_frame": ({},),
            "null": ({"frame": "null"},),
            "spaced_null": ({"frame": "\t null\n"},),
            "null_beside_a_surrogate": ({"frame": "null", "x": r'"\ud800"'},),
            "other_fields": ({"frames": "1", "Frame": "1", "CLOSE_CODE": "1000"},),
        }
    )
    def test_nothing_to_do(self, fields: dict[str, str]) -> None:
        """An envelope with neither a frame nor a close code is malformed."""
        self.refuse(envelope(conn_id=f'"{CONN_ID}"', **fields))

    @cases(
        {
            "array": (b'[{"conn_id":"a","frame":1}]',),
            "string": (b'"conn_id"',),
            "null": (b"null",),
            "number": (b"1",),
            "empty": (b"",),
            "two": (b'{"conn_id":"a","frame":1}{"conn_id":"a","frame":1}',),
            "rest": (b'{"conn_id":"a","frame":1},',),
            "rest_and_surrogate": (rb'{"conn_id":"a","frame":"\ud800"} x',),
            "trailing_comma": (b'{"conn_id":"a","frame":1,}',),
            "open": (b'{"conn_id":"a","frame":1',),
            "nan": (b'{"conn_id":"a","frame":NaN}',),
            "nan_and_surrogate": (rb'{"conn_id":"a","frame":[NaN,"\ud800"]}',),
            "not_utf8_id": (b'{"conn_id":"\xff","frame":1}',),
            "not_utf8_id_and_surrogate": (b'{"conn_id":"\xff","frame":"\\ud800"}',),
            "deep": (b"[" * 200_000,),
            "deep_frame": (b'{"conn_id":"a","frame":' + b"[" * 200_000,),
            "deep_and_closed": (
                b'{"conn_id":"a","frame":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
            ),
            "deep_unknown": (b'{"x":' + b"[" * 200_000,),
            "deep_and_surrogate": (rb'{"x":"\ud800","frame":' + b"[" * 200_000,),
        }
    )
    def test_malformed(self, message: bytes) -> None:
        """What is no JSON object by itself is refused, and never a crash."""
        self.refuse(message)

    @cases(
        {
            "unknown_fields": (b'{"v":2,"conn_id":"%s","x":{"frame":9},"frame":[1]}',),
            "unknown_surrogates": (rb'{"x":"\ud800","conn_id":"%s","frame":[1],"\udc00":0}',),
            "other_order": (b'{"frame":[1],"conn_id":"%s"}',),
            "white_space": (b'\n{ "conn_id" :\t"%s" , "frame" : [1] }\r\n',),
            "white_space_and_surrogate": (
                b'\n{ "conn_id" :\t"%s" , "frame" : [1] , "x":"\\udddd" }\r',
            ),
            "escaped_names": (rb'{"\u0063onn_id":"%s","fr\u0061me":[1]}',),
            "escaped_names_and_surrogate": (rb'{"\u0063onn_id":"%s","fr\u0061me":[1],"\ud900":1}',),
            "frame_twice": (b'{"frame":[2],"conn_id":"%s","frame":[1]}',),
            "frame_twice_and_surrogate": (rb'{"frame":"\ud800","conn_id":"%s","frame":[1]}',),
            "id_twice": (b'{"conn_id":"other","frame":[1],"conn_id":"%s"}',),
            "push_beside": (b'{"conn_id":"%s","frame":[1],"push_wake":{}}',),
        }
    )
    def test_envelopes_like_this(self, template: bytes) -> None:
        """Unknown fields are passed over, names are names however spelt, the last one counts."""
        self.assertEqual(self.frame(template.replace(b"%s", CONN_ID.encode())), b"[1]")

    @cases(
        {
            "id": (rb'{"conn_id":"client-\u0068ome-0123abcd","frame":[1]}',),
            "id_and_surrogate": (
                rb'{"conn_id":"client-\u0068ome-0123abcd","frame":[1],"\ud800":1}',
            ),
        }
    )
    def test_escaped_id(self, message: bytes) -> None:
        """A conn_id means the same with escapes in it."""
        self.assertEqual(self.frame(message), b"[1]")

    @cases(
        {
            "plain": (b'{"push_wake":%s}',),
            "more_fields": (b'{"v":1,"push_wake":%s}',),
            "escaped_name": (rb'{"push\u005fwake":%s}',),
            "surrogate": (rb'{"x":"\ud800","push_wake":%s}',),
            "white_space": (b'{ "push_wake" : %s }',),
            "empty_id": (b'{"conn_id":"","push_wake":%s}',),
            "null_id": (b'{"conn_id":null,"push_wake":%s}',),
            "null_id_and_surrogate": (rb'{"conn_id":null,"push_wake":%s,"x":"\ud800"}',),
            "frame": (b'{"push_wake":%s,"frame":[1]}',),
            "code": (b'{"close_code":4401,"push_wake":%s}',),
            "twice": (b'{"push_wake":1,"push_wake":%s}',),
        }
    )
    def test_push_wake(self, template: bytes) -> None:
        """Without a conn_id, a wake is read, whatever stands beside it."""
        content = b'{"platform":"fcm","token":"hunter2"}'
        found = unwrap(template.replace(b"%s", content))
        self.assertEqual(found, PushWake(WakeRequest("fcm", "hunter2")))

    @cases(
        {
            "number": (b'{"push_wake":1}',),
            "array": (b'{"push_wake":[]}',),
            "false": (b'{"push_wake":false}',),
            "surrogate": (rb'{"push_wake":{"token":"\ud800"}}',),
            "type": (b'{"conn_id":"","push_wake":{"token":1}}',),
        }
    )
    def test_malformed_push_wake(self, message: bytes) -> None:
        """A wake that cannot be read is one all the same, and no envelope."""
        self.assertEqual(unwrap(message), PushWake(None))

    @cases(
        {
            "null": (b'{"push_wake":null}', EnvelopeFault.NO_CONN_ID),
            "null_and_space": (b'{"push_wake" : null , "frame":1}', EnvelopeFault.NO_CONN_ID),
            "null_and_surrogate": (rb'{"push_wake":null,"x":"\ud800"}', EnvelopeFault.NO_CONN_ID),
            "null_id": (b'{"conn_id":null,"push_wake":null}', EnvelopeFault.CONN_ID_TYPE),
            "id_type": (b'{"conn_id":1,"push_wake":{}}', EnvelopeFault.CONN_ID_TYPE),
        }
    )
    def test_no_push_wake(self, message: bytes, fault: EnvelopeFault) -> None:
        """A wake that is null, or stands beside a conn_id that is no string, is none."""
        with self.assertRaises(EnvelopeError) as raised:
            unwrap(message)
        self.assertIs(raised.exception.fault, fault)

    @cases({"good": (b'{"platform":"fcm","token":"t"}',), "null": (b"null",), "bad": (b"[1]",)})
    def test_push_wake_beside_an_id(self, wake: bytes) -> None:
        """With a conn_id a wake is ignored, a malformed one too."""
        message = b'{"conn_id":"%s","frame":[1],"push_wake":%s}' % (CONN_ID.encode(), wake)
        self.assertEqual(self.frame(message), b"[1]")

    def test_errors_are_literals(self) -> None:
        """An error has nothing of the message in it."""
        for message in (
            b'{"conn_id":"hunter2"}',
            b'{"conn_id":["hunter2"],"frame":1}',
            b'{"conn_id":"a","hunter2":1}',
            b'{"conn_id":"a","frame":hunter2}',
            b'{"conn_id":"a","close_code":"hunter2"}',
            b'{"conn_id":"a","frame":"\\ud800","close_code":"hunter2"}',
            b"hunter2",
        ):
            error = self.assertRaises(EnvelopeError, unwrap, message)
            self.assertNotIn("hunter2", f"{error} {error!r} {error.args}")

    @cases(
        {
            "too_deep": (b'{"conn_id":"a","frame":' + b"[" * 200_000, EnvelopeFault.TOO_DEEP),
            "array": (b"[]", EnvelopeFault.NOT_AN_OBJECT),
            "no_json": (b"{", EnvelopeFault.NOT_AN_OBJECT),
            "surrogates": (rb'["\ud800"]', EnvelopeFault.NOT_AN_OBJECT),
            "missing": (b'{"frame":1}', EnvelopeFault.NO_CONN_ID),
            "empty": (b'{"conn_id":"","frame":1}', EnvelopeFault.NO_CONN_ID),
            "conn_id": (b'{"conn_id":1,"frame":1}', EnvelopeFault.CONN_ID_TYPE),
            "surrogate_conn_id": (
                rb'{"conn_id":"\ud800","frame":1}',
                EnvelopeFault.CONN_ID_SURROGATE,
            ),
            "conn_id_beside_a_surrogate": (
                rb'{"frame":"\ud800","conn_id":1,"conn_id":"x"}',
                EnvelopeFault.CONN_ID_TYPE,
            ),
            "code_beside_a_surrogate": (
                rb'{"conn_id":"x","frame":"\ud800","close_code":"1","close_code":1}',
                EnvelopeFault.CLOSE_CODE,
            ),
            "code": (b'{"conn_id":"a","close_code":"1"}', EnvelopeFault.CLOSE_CODE),
            "code_range": (b'{"conn_id":"a","close_code":0}', EnvelopeFault.CLOSE_CODE),
            "nothing": (b'{"conn_id":"a"}', EnvelopeFault.NOTHING_ASKED),
        }
    )
    def test_fault(self, message: bytes, fault: EnvelopeFault) -> None:
        """The error says what is wrong with the message."""
        error = self.assertRaises(EnvelopeError, unwrap, message)
        self.assertIs(error.fault, fault)

    @examples(120)
    @given(
        st.one_of(
            st.binary(max_size=60),
            envelopes.map(str.encode),
            st.builds(edited, envelopes, edits).map(str.encode),
            st.builds(lambda text, end: text.encode() + end, envelopes, st.binary(max_size=2)),
            nearly_json.map(str.encode),
        )
    )
    @example(b'{"conn_id":"a","\xff":1,"frame":1}')
    @example(b'{"conn_id":"\\ud800\xff","frame":1}')
    def test_raises_nothing_else(self, message: bytes) -> None:
        """Any bytes, UTF-8 or not, are an envelope, a wake, or refused as malformed."""
        try:
            found = unwrap(message)
        except EnvelopeError:
            return
        if isinstance(found, Envelope):
            self.assertTrue(found.conn_id)
            self.assertTrue(found.frame is not None or found.close_code is not None)

    @examples(250)
    @given(st.one_of(envelopes, st.builds(edited, envelopes, edits)))
    @example('{"frame":[1],"conn_id":1,"conn_id":"x"}')
    @example('{"frame":[1],"close_code":1.5,"close_code":1,"conn_id":"x"}')
    @example(f'{{"frame":1,"fram\\ud065":2,"conn_id":"{CONN_ID}"}}')
    @example(r'{"conn_id":"a\\ud800","frame":"\\ud800"}')
    def test_surrogates_change_nothing(self, text: str) -> None:
        """A lone surrogate in an unknown field makes no difference to what an envelope means."""
        inner = text.removeprefix("{")
        comma = "" if inner.lstrip(" \t\n\r").startswith("}") else ","
        other = text if inner == text else r'{"\uDFFF":"\ud800"' + comma + inner
        self.assertEqual(outcome(text), outcome(other))

    @cases(
        {
            "key": (rb'{"conn_id":"a","frame":1,"fram\ud065":2}', "a", b"1"),
            "key_of_the_id": (rb'{"conn_id":"a","conn\uD05fid":"b","frame":1}', "a", b"1"),
            "escaped_backslash": (rb'{"conn_id":"a\\ud800","frame":"\ud800"}', r"a\ud800", None),
            "replacement": (rb'{"conn_id":"\uf8ff","frame":"\ud800"}', "\uf8ff", None),
            "pair": (rb'{"conn_id":"\ud83d\ude00","frame":"\ud800"}', "\U0001f600", None),
            "same_text_before": (rb'{"x":"\uf800","frame":"\ud800","conn_id":"a"}', "a", None),
            "twice": (rb'{"frame":"\uf800","frame":"\ud800","conn_id":"a"}', "a", None),
        }
    )
    def test_replaced_escapes_do_not_show(
        self, message: bytes, conn_id: str, frame: bytes | None
    ) -> None:
        """What the parser reads instead of a surrogate is in no key, no conn_id and no frame."""
        found = unwrap(message)
        assert isinstance(found, Envelope)
        self.assertEqual(found.conn_id, conn_id)
        self.assertEqual(found.frame, rb'"\ud800"' if frame is None else frame)

    def test_large_frame_with_surrogates(self) -> None:
        """A frame that is not copied shows the bytes that the binary sent."""
        payload = b'["%s"]' % (rb"\uD800\udfff\\ud\uf800" * 4000)
        found = unwrap(data_prefix(CONN_ID) + payload + SUFFIX)
        assert isinstance(found, Envelope)
        self.assertEqual(found.frame, payload)

    @cases(
        {
            "arrays": (b"[],",),
            "space": (b" " * 100 + b"1,",),
            "numbers": (b"1e9,",),
            "surrogates": (rb'"\udead",',),
        }
    )
    def test_surrogates_are_cheap(self, part: bytes) -> None:
        """A surrogate makes a message dearer by a small factor, for phones and for binaries."""
        many = part * (262_000 // len(part))
        plain = b"[" + many.replace(rb"\u", rb"\\") + b'""]'
        costly = b"[" + many + rb'"\ud800"]'
        around = data_prefix(CONN_ID), SUFFIX
        self.assertLess(least(is_json, costly), 15 * least(is_json, plain))
        plain, costly = plain.join(around), costly.join(around)
        self.assertLess(least(unwrap, costly), 15 * least(unwrap, plain))

    @examples(120)
    @given(st.one_of(envelopes, st.builds(edited, envelopes, edits)))
    def test_agrees_with_the_reference(self, text: str) -> None:
        """An envelope means what a plain reading of it says, field by field."""
        expected = reference(text)
        try:
            found = unwrap(text.encode())
        except EnvelopeError:
            self.assertIsNone(expected)
            return
        if isinstance(found, PushWake):
            self.assertEqual(expected, "push_wake")
            return
        frame = None if found.frame is None else read(bytes(memoryview(found.frame)).decode())
        self.assertEqual((found.conn_id, frame, found.close_code), expected)


def reference(text: str) -> tuple[str, Any, int | None] | str | None:
    """Read an envelope plainly: (conn_id, frame, close code), ``push_wake``, or None if malformed.

    A field that comes twice must be of the right type each time, and the last one counts. Passed
    over is a wake with a close code, because an envelope's rules for it do not apply.
    """
    try:
        whole = read(text)
    except ValueError:
        return None
    if not (isinstance(whole, tuple) and whole[0] == "object"):
        return None
    if not all(right_type(name, value) for name, value in whole[1]):
        return None
    fields = dict(whole[1])
    if fields.get("conn_id") in (None, "") and fields.get("push_wake") is not None:
        assume("close_code" not in fields)
        return "push_wake"
    code = None
    if "close_code" in fields:
        code = number(fields["close_code"])
        if code is None:
            return None
    conn_id = fields.get("conn_id")
    if not (isinstance(conn_id, str) and conn_id and is_text(conn_id)):
        return None
    frame = fields.get("frame")
    if frame is None and code is None:
        return None
    return conn_id, frame, code


def right_type(name: str, value: Any) -> bool:
    """Whether a field may have this value anywhere: a conn_id is text, a code is an integer."""
    if name == "conn_id":
        return value is None or isinstance(value, str)
    if name == "close_code":
        text = value[1] if isinstance(value, tuple) and value[0] == "number" else "none"
        return text.lstrip("-").isdigit() and len(text) < 4000 and -(2**63) <= int(text) < 2**64
    return True


def outcome(text: str) -> tuple[object, ...]:
    """Return what a message means, in values that can be compared."""
    try:
        found = unwrap(text.encode())
    except EnvelopeError as error:
        return (error.fault,)
    if isinstance(found, PushWake):
        return (found,)
    frame = None if found.frame is None else bytes(found.frame)
    return found.conn_id, frame, found.close_code


def least(call: Callable[[bytes], object], message: bytes) -> float:
    """Return the processor time of a call: the least of several."""

    def once() -> float:
        began = time.process_time()
        call(message)
        return time.process_time() - began

    return min(once() for _ in range(7))


def number(value: Any) -> int | None:
    """Return a close code that is one, else None."""
    if not (isinstance(value, tuple) and value[0] == "number" and value[1].isdigit()):
        return None
    code = int(value[1]) if len(value[1]) < 10 else 0
    return code if 1 <= code <= 65535 else None


def is_text(value: str) -> bool:
    """Whether a string is one that UTF-8 can express; a conn_id with a surrogate names no phone."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
