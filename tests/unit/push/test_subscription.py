"""Subscriptions: which URLs are read, how, and that no text of them has the URL."""

from __future__ import annotations

from ipaddress import IPv6Address
from urllib.parse import urlsplit

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.web.client import URI

from pyrycode_relay.push.subscription import AllowedHosts, Subscription, SubscriptionError
from tests.unit.bench import Cases, cases, examples

PATH = "/wpush/v2/gAAAAABk-_~%3D.x?a=b&c=/;'()*+,:@!$"

ACCEPTED = {
    "plain": ("https://push.example.org/a", "https://push.example.org", "/a"),
    "long": (f"https://push.example.org{PATH}", "https://push.example.org", PATH),
    "port": ("https://push.example.org:443/a", "https://push.example.org", "/a"),
    "capitals": ("https://Push.Example.ORG/A", "https://push.example.org", "/A"),
    "bare": ("https://push.example.org", "https://push.example.org", "/"),
    "digits": ("https://1.2.3.example/a", "https://1.2.3.example", "/a"),
    "hyphens": ("https://a-b--c.example/", "https://a-b--c.example", "/"),
    "ipv4": ("https://8.8.8.8/a", "https://8.8.8.8", "/a"),
    "ipv6": ("https://[2606:4700:0::1]/a", "https://[2606:4700::1]", "/a"),
    "ipv6_port": ("https://[2606:4700::1]:443/a", "https://[2606:4700::1]", "/a"),
    # Releases of Python spell a mapped address in two ways.
    "mapped": ("https://[::ffff:10.0.0.1]/", f"https://[{IPv6Address('::ffff:a00:1')}]", "/"),
    "dots": ("https://push.example.org/../a", "https://push.example.org", "/../a"),
}

REFUSED = {
    "empty": "",
    "no_url": "push.example.org",
    "http": "http://push.example.org/a",
    "ws": "wss://push.example.org/a",
    "file": "file:///etc/passwd",
    "capital_scheme": "HTTPS://push.example.org/a",
    "no_scheme": "//push.example.org/a",
    "one_slash": "https:/push.example.org/a",
    "three_slashes": "https:///push.example.org/a",
    "no_host": "https:///a",
    "port": "https://push.example.org:8443/a",
    "port_80": "https://push.example.org:80/a",
    "port_zeros": "https://push.example.org:0443/a",
    "port_empty": "https://push.example.org:/a",
    "port_sign": "https://push.example.org:+443/a",
    "port_digits": "https://push.example.org:\uff14\uff14\uff13/a",
    "two_ports": "https://push.example.org:443:443/a",
    "user": "https://user@push.example.org/a",
    "password": "https://user:word@push.example.org/a",
    "empty_user": "https://@push.example.org/a",
    "user_trick": "https://push.example.org:443@127.0.0.1/a",
    "backslash": "https://push.example.org\\@127.0.0.1/a",
    "backslash_path": "https://push.example.org/a\\b",
    "fragment": "https://push.example.org/a#b",
    "fragment_host": "https://push.example.org#@127.0.0.1/",
    "query_host": "https://push.example.org?@127.0.0.1/",
    "space": "https://push.example.org/a b",
    "space_before": " https://push.example.org/a",
    "space_after": "https://push.example.org/a ",
    "newline": "https://push.example.org/a\n",
    "header": "https://push.example.org/a\r\nX: y",
    "tab_host": "https://push.exa\tmple.org/a",
    "nul": "https://push.example.org/a\0",
    "delete": "https://push.example.org/\x7f",
    "percent_host": "https://push%2eexample.org/a",
    "percent": "https://push.example.org/%zz",
    "percent_end": "https://push.example.org/%4",
    "empty_query": "https://push.example.org/a?",
    "empty_query_alone": "https://push.example.org/?",
    "empty_parameters": "https://push.example.org/a;",
    "empty_parameters_query": "https://push.example.org/a;?b",
    "unicode_path": "https://push.example.org/ä",
    "unicode_host": "https://püsh.example.org/a",
    "full_width": "https://\uff11\uff12\uff17.0.0.1/a",
    "full_stop": "https://push\u3002example.org/a",
    "punycode": "https://xn--psh-hoa.example.org/a",
    "punycode_capitals": "https://push.XN--p1ai/a",
    "odd_hyphens": "https://ab--c.example/",
    "trailing_dot": "https://push.example.org./a",
    "trailing_dots": "https://push.example.org../a",
    "leading_dot": "https://.push.example.org/a",
    "two_dots": "https://push..example.org/a",
    "dot": "https://./a",
    "underscore": "https://pu_sh.example.org/a",
    "hyphen_first": "https://-push.example.org/a",
    "hyphen_last": "https://push-.example.org/a",
    "long_label": f"https://{'a' * 64}.example.org/a",
    "long_name": f"https://{'a.' * 126}example/a",
    "one_label": "https://localhost/a",
    "number": "https://2130706433/a",
    "hexadecimal": "https://0x7f000001/a",
    "hexadecimal_parts": "https://0x7f.0.0.0x1/a",
    "octal": "https://0177.0.0.1/a",
    "short": "https://127.1/a",
    "five": "https://1.2.3.4.5/a",
    "above": "https://256.1.1.1/a",
    "numeric_top": "https://push.example.123/a",
    "brackets_name": "https://[push.example.org]/a",
    "brackets_v4": "https://[127.0.0.1]/a",
    "brackets_open": "https://[::1/a",
    "brackets_empty": "https://[]/a",
    "no_brackets": "https://::1/a",
    "zone": "https://[fe80::1%25eth0]/a",
    "zone_plain": "https://[fe80::1%eth0]/a",
    "quote": 'https://push.example.org/"',
    "angle": "https://push.example.org/<a>",
    "brackets_path": "https://push.example.org/[a]",
}

URLS = st.one_of(
    st.text(),
    st.from_regex(r"https://[a-z0-9.\-\[\]:@%\\]{1,20}(/[!-~]{0,20})?", fullmatch=True),
    st.sampled_from([each for each, *_ in ACCEPTED.values()]).flatmap(
        lambda url: st.integers(0, len(url)).flatmap(
            lambda at: st.characters().map(lambda one: url[:at] + one + url[at:])
        )
    ),
)


class SubscriptionTests(Cases):
    @cases(ACCEPTED)
    def test_accepted(self, url: str, origin: str, path: str) -> None:
        """What push services hand out is read."""
        subscription = Subscription.parse(url)
        self.assertEqual((subscription.origin, subscription.path), (origin, path))
        self.assertEqual(subscription.url, origin + path)

    @cases({name: (url,) for name, url in REFUSED.items()})
    def test_refused(self, url: str) -> None:
        """What is odd is refused, and the error has nothing of it."""
        with self.assertRaises(SubscriptionError) as caught:
            Subscription.parse(url)
        self.assertIn(
            str(caught.exception),
            {"the URL has a form that is not allowed", "the URL's host is not allowed"},
        )

    @given(URLS)
    @example("https://push.example.org/a")
    @examples(2000)
    def test_one_reading(self, url: str) -> None:
        """What is accepted, other parsers read alike; it is printable, and no secret shows."""
        try:
            subscription = Subscription.parse(url)
        except SubscriptionError:
            return
        parts = urlsplit(subscription.url)
        twisted = URI.fromBytes(subscription.url.encode("ascii"))
        self.assertEqual(parts.hostname, subscription.host)
        self.assertEqual(twisted.host.decode().strip("[]"), subscription.host)
        self.assertEqual((twisted.scheme, twisted.port), (b"https", 443))
        self.assertEqual(twisted.originForm.decode(), subscription.path)
        self.assertEqual((parts.username, parts.password, parts.fragment), (None, None, ""))
        self.assertTrue(subscription.url.isprintable())
        self.assertNotIn(" ", subscription.url)
        self.assertEqual(Subscription.parse(subscription.url), subscription)
        self.assertNotIn("path", repr(subscription))

    def test_longest(self) -> None:
        """The time that a URL takes to be read grows no faster than its length."""
        for url in (
            "https://" + "a-" * 2000,
            "https://" + "a." * 2000,
            "https://a.b/" + "%4" * 2000,
        ):
            with self.assertRaises(SubscriptionError):
                Subscription.parse(url)


class AllowedHostTests(Cases):
    @cases(
        {
            "all": ((), "push.example.org", True),
            "name": (("push.example.org",), "push.example.org", True),
            "below_name": (("push.example.org",), "a.push.example.org", False),
            "below": ((".example.org",), "push.example.org", True),
            "far_below": ((".example.org",), "a.b.example.org", True),
            "not_itself": ((".example.org",), "example.org", False),
            "ends_alike": ((".example.org",), "badexample.org", False),
            "begins_alike": (("push.example.org",), "push.example.org.bad.example", False),
            "other": (("push.example.org", ".example.net"), "example.com", False),
            "second": (("push.example.org", ".example.net"), "a.example.net", True),
            "address": ((".example.org",), str(IPv6Address("::1")), False),
        }
    )
    def test_allowed(self, patterns: tuple[str, ...], host: str, allowed: bool) -> None:
        """A name allows itself; a leading dot allows what is below."""
        self.assertEqual(host in AllowedHosts(patterns), allowed)
