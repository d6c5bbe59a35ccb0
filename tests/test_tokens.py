"""The battery of tokens: each is what its name says, and has no other flaw."""

from __future__ import annotations

import jwt
import pytest
from jwt.utils import base64url_decode

from support import tokens

LOGIN = tokens.Login()
FLAWS = {
    "expired": jwt.ExpiredSignatureError,
    "no exp": jwt.MissingRequiredClaimError,
    "other audience": jwt.InvalidAudienceError,
    "other issuer": jwt.InvalidIssuerError,
    "other key": jwt.InvalidSignatureError,
    "payload changed": jwt.InvalidSignatureError,
    "alg none": jwt.InvalidAlgorithmError,
    "HS256, public key": jwt.InvalidAlgorithmError,
    "garbage": jwt.DecodeError,
}
# What a checker would have to leave out to believe it.
LEFT_OUT = {
    "expired": {"verify_exp": False},
    "no exp": {"require": ["sub"]},
    "other audience": {"verify_aud": False},
    "other issuer": {"verify_iss": False},
}


def checked(token: str, options: dict | None = None, key: str = LOGIN.public) -> dict:
    wanted = options or {"require": ["exp", "sub"]}
    return jwt.decode(token, key, algorithms=["EdDSA"], audience="shop", issuer=LOGIN.issuer, options=wanted)


@pytest.fixture
def battery() -> dict[str, str]:
    """Made for each test: tokens that are made when tests are collected have expired before the whole suite comes to them."""
    return LOGIN.battery()


def test_the_good_one_is_good_and_the_only_one(battery):
    assert checked(battery["good"])["sub"] == tokens.HONEST
    assert [*battery] == [*FLAWS, "good"]


@pytest.mark.parametrize("name", FLAWS)
def test_each_is_refused_for_what_its_name_says(battery, name):
    with pytest.raises(jwt.InvalidTokenError) as refused:
        checked(battery[name])
    assert type(refused.value) is FLAWS[name]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_those_that_the_login_signed_have_one_flaw_only(battery, name):
    assert checked(battery[name], LEFT_OUT[name])["sub"] == tokens.LIAR


@pytest.mark.parametrize("name", ["other key", "payload changed", "alg none", "HS256, public key"])
def test_those_that_nobody_signed_claim_what_a_good_one_does(battery, name):
    claims = jwt.decode(battery[name], options={"verify_signature": False})
    good = checked(battery["good"])
    assert claims.keys() == good.keys() and claims["sub"] == tokens.LIAR
    assert (claims["aud"], claims["iss"]) == (good["aud"], good["iss"]) and claims["exp"] - claims["iat"] == 300


def test_algorithm_confusion_is_a_true_hmac_of_the_public_key_and_pyjwt_refuses_such_a_secret(battery):
    token = battery["HS256, public key"]
    signed, _, signature = token.rpartition(".")
    hs256 = jwt.get_algorithm_by_name("HS256")
    assert hs256.verify(signed.encode(), LOGIN.public.encode(), base64url_decode(signature))
    with pytest.raises(jwt.InvalidKeyError):
        jwt.decode(token, LOGIN.public, algorithms=["HS256"], audience="shop")


def test_the_changed_payload_keeps_the_header_and_the_signature_of_the_good_one(battery):
    parts, good = (battery[name].split(".") for name in ("payload changed", "good"))
    assert (parts[0], parts[2]) == (good[0], good[2]) and parts[1] != good[1]
    assert jwt.get_unverified_header(battery["alg none"])["alg"] == "none" and battery["alg none"].endswith(".")


def test_another_login_has_another_key(battery):
    with pytest.raises(jwt.InvalidSignatureError):
        checked(battery["good"], key=tokens.Login().public)
