"""Tokens that want in: the battery of chapter 09, JSON Web Tokens (RFC 7519) of which a gateway may believe one.

    login = Login()
    login.battery()["expired"]  # what a client sends after "Authorization: Bearer "

The attacks are those of RFC 8725, section 2. Who builds them here has no key but his own: what needs the login's private
key is a token that the login did sign, for another day, another service, or by a test system with the same key.
"""

from __future__ import annotations

import hmac
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.utils import base64url_encode

LIFE_SECONDS = 300
LIAR, HONEST = "admin", "ann"  # who the hostile tokens say that the caller is, and who the good one says


class Login:
    """Stands for the service that signs tokens, with a key pair (Ed25519) that it makes.

    public: the public key, as PEM. Anybody may know it. issuer, audience: who signs, and for whom.
    """

    def __init__(self, issuer: str = "https://login.example", audience: str = "shop") -> None:
        self.issuer, self.audience = issuer, audience
        self._private = Ed25519PrivateKey.generate()
        pem = self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.public = pem.decode()

    def token(self, **claims: Any) -> str:
        """A signed token that is good for LIFE_SECONDS, but for `claims`; a claim of None is left out."""
        return jwt.encode(self._claims(**claims), self._private, algorithm="EdDSA")

    def battery(self) -> dict[str, str]:
        """By name, nine hostile tokens, and then `good`."""
        now, good = int(time.time()), self.token(sub=HONEST)
        head, _, signature = good.split(".")
        none = f"{_encoded({'alg': 'none', 'typ': 'JWT'})}.{_encoded(self._claims())}"
        by_hand = f"{_encoded({'alg': 'HS256', 'typ': 'JWT'})}.{_encoded(self._claims())}"
        public_secret = hmac.digest(self.public.encode(), by_hand.encode(), "sha256")
        return {
            "expired": self.token(iat=now - 2 * LIFE_SECONDS, exp=now - LIFE_SECONDS),
            "no exp": self.token(exp=None),
            "other audience": self.token(aud="payroll"),
            "other issuer": self.token(iss="https://login.test"),
            "other key": jwt.encode(self._claims(), Ed25519PrivateKey.generate(), algorithm="EdDSA"),
            "payload changed": f"{head}.{_encoded(self._claims())}.{signature}",
            "alg none": f"{none}.",
            "HS256, public key": f"{by_hand}.{base64url_encode(public_secret).decode()}",
            "garbage": "let.me.in",
            "good": good,
        }

    def _claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        usual = {"sub": LIAR, "iss": self.issuer, "aud": self.audience, "iat": now, "exp": now + LIFE_SECONDS}
        return {name: value for name, value in (usual | changes).items() if value is not None}


def _encoded(part: dict[str, Any]) -> str:
    """A part of a token, as RFC 7515 writes it: JSON in base64, without its padding."""
    return base64url_encode(json.dumps(part, separators=(",", ":")).encode()).decode()
