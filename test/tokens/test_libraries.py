"""Tokens of other libraries are accepted, and those of ssed by them."""

import datetime
import hashlib
import hmac
import json
import os
import signal
import subprocess
import tempfile
import time
import unittest
from base64 import urlsafe_b64encode

import jwt

from shared import LEEWAY, SECONDS, Server, give_up, ssed, stop_servers

SECRETS = {
    "words": b"32 bytes at the least, in words.",
    "bytes": bytes(range(256)),
    # longer than a block of SHA-256, so HMAC takes its hash
    "long": os.urandom(4096),
}
JOSE_SIGN = """
import { SignJWT } from "jose";
import { readFileSync } from "node:fs";
const [file, claims, alg] = process.argv.slice(1);
const token = new SignJWT(JSON.parse(claims)).setProtectedHeader({ alg });
console.log(await token.sign(readFileSync(file)));
"""
JOSE_VERIFY = """
import { jwtVerify } from "jose";
import { readFileSync } from "node:fs";
const [file, token] = process.argv.slice(1);
const { payload } = await jwtVerify(token, readFileSync(file));
console.log(JSON.stringify(payload));
"""


def node(script, *values):
    return subprocess.run(["node", "--input-type=module", "-e", script, *values],
                          cwd=os.environ["JOSE"], check=True, text=True,
                          timeout=SECONDS, capture_output=True).stdout.strip()


def now():
    return int(time.time())


class Libraries(unittest.TestCase):
    def setUp(self):
        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(60)
        self.addCleanup(signal.alarm, 0)
        self.addCleanup(stop_servers)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = os.path.join(folder.name, "secret")

    def begin(self, secret):
        # no line end behind it: the other libraries do not drop one
        with open(self.file, "wb", opener=lambda path, flags:
                  os.open(path, flags, 0o600)) as file:
            file.write(secret)
        self.secret = secret
        self.server = Server("--secret-file", self.file, "--interval", "0")

    def ask(self, token, method="HEAD", path="/events/chat/42"):
        status, _ = self.server.request(
            method, path, "x" if method == "POST" else None,
            {"Authorization": f"Bearer {token}"})
        return status

    def check_rights(self, token):
        """Of one that may read chat/* and write jobs."""
        self.assertEqual(self.ask(token), 200)
        self.assertEqual(self.ask(token, path="/events/chat"), 403)
        self.assertEqual(self.ask(token, "POST", "/events/jobs"), 201)
        self.assertEqual(self.ask(token, "POST"), 403)

    def claims(self, **others):
        return {"read": ["chat/*"], "write": ["jobs"], "exp": now() + 60,
                **others}

    # ---------------------------------------------------- theirs are accepted

    def test_pyjwt(self):
        for name, secret in SECRETS.items():
            with self.subTest(secret=name):
                self.begin(secret)
                self.check_rights(jwt.encode(self.claims(), secret))

    def test_pyjwt_with_what_people_add(self):
        self.begin(SECRETS["words"])
        utc = datetime.timezone.utc
        exp = datetime.datetime.now(utc) + datetime.timedelta(hours=1)
        for claims in ({"exp": exp, "nbf": now() - 5, "iat": now()},
                       {"sub": "usuário 42", "iss": "https://a.example",
                        "aud": ["x", "y"], "jti": "1"},
                       {"exp": time.time() + 60.5},
                       {"roles": {"admin": [1, 2.5, None, True]}}):
            with self.subTest(claims=claims):
                self.check_rights(jwt.encode(
                    self.claims(**claims), self.secret,
                    headers={"kid": "the first"}))

    def test_jose(self):
        for name, secret in SECRETS.items():
            with self.subTest(secret=name):
                self.begin(secret)
                self.check_rights(node(JOSE_SIGN, self.file,
                                       json.dumps(self.claims()), "HS256"))

    # ------------------------------------------------------------- and ours

    def sign(self, claims):
        return subprocess.run(
            [ssed(), "--secret-file", self.file, "--sign", claims], check=True,
            text=True, timeout=SECONDS, capture_output=True).stdout.strip()

    def test_sign(self):
        for name, secret in SECRETS.items():
            with self.subTest(secret=name):
                self.begin(secret)
                token = self.sign("read=chat/* read= write=jobs exp=2h")
                self.check_rights(token)
                payload = jwt.decode(token, secret, algorithms=["HS256"])
                self.assertEqual(payload["read"], ["chat/*", ""])
                self.assertEqual(payload["write"], ["jobs"])
                self.assertAlmostEqual(payload["exp"], now() + 7200, delta=20)
                self.assertEqual(
                    json.loads(node(JOSE_VERIFY, self.file, token)), payload)

    # ----------------------------------------------------------- are refused

    def forged(self, header, claims):
        """Signed with the secret, whatever its header says."""
        def part(data):
            return urlsafe_b64encode(data).rstrip(b"=")

        signed = b".".join(part(json.dumps(data).encode())
                           for data in (header, claims))
        mac = hmac.digest(self.secret, signed, hashlib.sha256)
        return (signed + b"." + part(mac)).decode()

    def test_refused(self):
        self.begin(SECRETS["words"])
        claims = self.claims()
        right = self.forged({"alg": "HS256"}, claims)
        self.check_rights(right)
        head, body, mac = right.split(".")
        other = self.forged({"alg": "HS256"}, self.claims(read=["*"]))
        refused = {
            "none": jwt.encode(claims, None, algorithm="none"),
            "None": self.forged({"alg": "None"}, claims),
            "no alg": self.forged({"typ": "JWT"}, claims),
            "HS384": jwt.encode(claims, self.secret, algorithm="HS384"),
            "HS512": jwt.encode(claims, self.secret, algorithm="HS512"),
            "HS512 of jose": node(JOSE_SIGN, self.file,
                                  json.dumps(claims), "HS512"),
            "RS256 with an HMAC": self.forged({"alg": "RS256"}, claims),
            "hs256": self.forged({"alg": "hs256"}, claims),
            "crit": self.forged({"alg": "HS256", "crit": ["exp"]}, claims),
            "another secret": jwt.encode(claims, SECRETS["bytes"]),
            "a part of the secret": jwt.encode(claims, self.secret[:-1]),
            "claims of another": f"{head}.{other.split('.')[1]}.{mac}",
            "no signature": f"{head}.{body}.",
            "two parts": f"{head}.{body}",
            "four parts": right + ".",
            "expired": jwt.encode(self.claims(exp=now() - LEEWAY - 5),
                                  self.secret),
            "not yet": jwt.encode(self.claims(nbf=now() + LEEWAY + 20),
                                  self.secret),
            "for ever": jwt.encode({"read": ["*"]}, self.secret),
            "not an array": jwt.encode(self.claims(read="chat/*"),
                                       self.secret),
        }
        for name, token in refused.items():
            with self.subTest(token=name):
                self.assertEqual(self.ask(token), 401)
        self.check_rights(right)

    def test_leeway(self):
        self.begin(SECRETS["words"])
        for times in ({"exp": now() - LEEWAY + 20}, {"nbf": now() + 30}):
            self.check_rights(jwt.encode(self.claims(**times), self.secret))
