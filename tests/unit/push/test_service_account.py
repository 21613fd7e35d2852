"""Service accounts: what a wrong one is told, and what a good one signs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pyrycode_relay.config.values import Secret
from pyrycode_relay.push import service_account
from pyrycode_relay.push.service_account import ServiceAccount, load
from pyrycode_relay.startup_error import StartupError
from tests import ca, needs
from tests.unit.bench import Cases, cases


def pem(key: Any) -> str:
    """Return a key's PEM form."""
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def account(**changes: object) -> str:
    """Return the JSON of an account; a change to None leaves a field out."""
    fields: dict[str, object] = {
        "type": "service_account",
        "project_id": "hunter1-project",
        "private_key_id": "hunter2",
        "private_key": pem(ca.rsa_key()),
        "client_email": "hunter3@example.org",
        "token_uri": "https://hunter4.example.org/token",
    }
    fields |= changes
    return json.dumps({name: value for name, value in fields.items() if value is not None})


class AccountTestCase(Cases):
    def setUp(self) -> None:
        needs.module("google.auth", "pyrycode-relay[push]")


class GoodTests(AccountTestCase):
    def test_file(self) -> None:
        """An account is read from a file."""
        path = Path(self.mktemp())
        path.write_text(account())
        found = load(Secret(path))
        expected = ("hunter1-project", "hunter3@example.org", "https://hunter4.example.org/token")
        self.assertEqual((found.project, found.email, found.token_url), expected)

    def test_text(self) -> None:
        """Or it is the text itself."""
        self.assertEqual(load(Secret(text=account())).project, "hunter1-project")

    def test_default_url(self) -> None:
        """Without a token_uri it is Google's."""
        found = load(Secret(text=account(token_uri=None)))
        self.assertEqual(found.token_url, "https://oauth2.googleapis.com/token")

    def assertion(self, found: ServiceAccount) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return header and claims of an assertion, whose signature is checked."""
        parts = found.assertion(1_700_000_000.9).split(".")
        header, claims, signature = (
            base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts
        )
        signed = ".".join(parts[:2]).encode()
        ca.rsa_key().public_key().verify(signature, signed, PKCS1v15(), hashes.SHA256())
        return json.loads(header), json.loads(claims)

    def test_assertion(self) -> None:
        """An assertion has the claims of the contract, and RS256's signature."""
        header, claims = self.assertion(load(Secret(text=account())))
        self.assertEqual(header, {"alg": "RS256", "typ": "JWT", "kid": "hunter2"})
        expected = {
            "iss": "hunter3@example.org",
            "aud": "https://hunter4.example.org/token",
            "scope": "https://www.googleapis.com/auth/firebase.messaging",
            "iat": 1_699_999_990,
            "exp": 1_700_003_590,
        }
        self.assertEqual(claims, expected)

    def test_no_key_id(self) -> None:
        """Without a private_key_id the header has no kid."""
        header, _ = self.assertion(load(Secret(text=account(private_key_id=None))))
        self.assertEqual(set(header), {"alg", "typ"})

    def test_nothing_is_shown(self) -> None:
        """Neither an account nor where it is from shows its key."""
        text = account()
        key = pem(ca.rsa_key()).splitlines()[1]
        for each in (Secret(text=text), load(Secret(text=text))):
            self.assertNotIn(key, f"{each} {each!r}")
            self.assertNotIn("PRIVATE", f"{each} {each!r}")


class WrongTests(AccountTestCase):
    @cases(
        {
            "not_json": ("{hunter", "it is not JSON"),
            "deep": ("[" * 100_000, "it is not JSON"),
            "array": ("[]", "it is not a JSON object"),
            "user": (account(type="hunter"), "its type is not service_account"),
            "no_type": (account(type=None), "its type is not service_account"),
            "no_email": (account(client_email=None), "its client_email is missing"),
            "email_type": (account(client_email=["hunter"]), "its client_email is missing"),
            "email_line": (account(client_email="hunter\n"), "its client_email is missing"),
            "no_project": (account(project_id=None), "its project_id is missing"),
            "project": (account(project_id="hunter/../x"), "its project_id is not"),
            "query": (account(project_id="hunter?x"), "its project_id is not"),
            "url": (account(token_uri="http://hunter.example.org/"), "its token_uri is not"),
            "url_type": (account(token_uri=1), "its token_uri is missing"),
            "url_port": (account(token_uri="https://hunter:x/"), "its token_uri is not"),
            "url_host": (account(token_uri="https:///hunter"), "its token_uri is not"),
            "key_id": (account(private_key_id=["hunter"]), "its private_key_id is missing"),
            "no_key": (account(private_key=None), "its private_key is not an RSA key"),
            "key_type": (account(private_key=1), "its private_key is not an RSA key"),
            "key_text": (account(private_key="hunter"), "its private_key is not an RSA key"),
            "key_letters": (account(private_key="hünter"), "its private_key is not an RSA key"),
            "ecdsa": (
                account(private_key=pem(ca.ecdsa_key())),
                "its private_key is not an RSA key",
            ),
            "damaged": (
                account(private_key=pem(ca.rsa_key()).replace("M", "N")),
                "its private_key is not an RSA key",
            ),
        }
    )
    def test_sentence(self, text: str, why: str) -> None:
        """A wrong account is one sentence, with the field and without any value."""
        with self.assertRaises(StartupError) as raised:
            load(Secret(text=text))
        [sentence] = raised.exception.problems
        self.assertIn(f"--fcm-credentials is not a usable service account: {why}", sentence)
        self.assertNotIn("hunter", sentence)
        self.assertNotIn("\n", sentence)
        # Nothing behind it carries the value, either.
        self.assertTrue(raised.exception.__suppress_context__ or not raised.exception.__context__)

    def test_large_key(self) -> None:
        """A key whose signatures would hold up the relay is refused."""
        self.assertEqual(service_account._MAX_KEY, 4096)
        # A key of that size takes a second to check.
        self.patch(service_account, "_MAX_KEY", 2047)
        with self.assertRaises(StartupError) as raised:
            load(Secret(text=account()))
        self.assertIn("more than 2047 bits", str(raised.exception))

    @cases(
        {
            "missing": ("hunter.json", "No such file"),
            "directory": (".", "Is a directory"),
            "null": ("hunter\0", "it is not text"),
        }
    )
    def test_unreadable(self, name: str, why: str) -> None:
        """A file that cannot be read is one sentence, without its name."""
        with self.assertRaises(StartupError) as raised:
            load(Secret(Path(name)))
        [sentence] = raised.exception.problems
        self.assertIn(f"it cannot be read ({why}", sentence)
        self.assertNotIn("hunter", sentence)

    def test_other_files(self) -> None:
        """Neither a file that is no text nor a large one is an account."""
        path = Path(self.mktemp())
        for content in (b"\xff\xfe", b" " * 70_000):
            path.write_bytes(content)
            with self.assertRaises(StartupError) as raised:
                load(Secret(path))
            self.assertIn("it cannot be read", str(raised.exception))


class MissingTests(Cases):
    def test_extra(self) -> None:
        """Without the extra, the sentence says what to install."""
        self.patch_modules("google.auth.crypt")
        with self.assertRaises(StartupError) as raised:
            load(Secret(text=account()))
        self.assertIn("install pyrycode-relay[push]", str(raised.exception))

    def patch_modules(self, name: str) -> None:
        """Have the import of a module fail."""
        import sys

        modules: Any = sys.modules
        before = modules.get(name)
        modules[name] = None

        def restore() -> None:
            if before is None:
                del modules[name]
            else:
                modules[name] = before

        self.addCleanup(restore)
