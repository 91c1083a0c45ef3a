"""Suites against published vectors; keys and streams written out by their standards."""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from atoll.core.errors import ProtocolError
from atoll.privacy.hazmat.suite import GM, INTL, SUITES, Suite

VECTORS = json.loads(Path(__file__).with_name("suites.json").read_text(encoding="utf-8"))


def raw(case: dict[str, Any]) -> dict[str, Any]:
    kept = ("source", "suite", "times")
    return {k: v if k in kept else bytes.fromhex(v) for k, v in case.items()}


@pytest.mark.parametrize("case", VECTORS["sm3"], ids=lambda case: case["source"])
def test_sm3(case: dict[str, Any]) -> None:
    given = raw(case)
    assert GM.digest(given["text"]) == given["hash"]


@pytest.mark.parametrize("case", VECTORS["sm4"], ids=lambda case: case["source"])
def test_sm4(case: dict[str, Any]) -> None:
    given = raw(case)
    single = Cipher(GM._cipher(given["key"]), modes.ECB()).encryptor()  # noqa: S305  as the standard has it
    text = given["text"]
    for _ in range(given["times"]):
        text = single.update(text)
    assert text == given["sealed"]


@pytest.mark.parametrize("case", VECTORS["gcm"], ids=lambda case: case["source"])
def test_gcm(case: dict[str, Any]) -> None:
    given = raw(case)
    suite, how = SUITES[given["suite"]], (given["key"], given["nonce"])
    assert suite.encrypted(*how, given["text"], given["bound"]) == given["sealed"]
    assert suite.decrypted(*how, given["sealed"], given["bound"]) == given["text"]
    for place in (0, len(given["text"]), len(given["sealed"]) - 1):
        wrong = bytearray(given["sealed"])
        wrong[place] ^= 1
        with pytest.raises(ProtocolError, match="was changed"):
            suite.decrypted(*how, bytes(wrong), given["bound"])
    for cut in (b"", given["sealed"][:15], given["sealed"][:-1]):
        with pytest.raises(ProtocolError, match="was changed"):
            suite.decrypted(*how, cut, given["bound"])
    with pytest.raises(ProtocolError, match="was changed"):
        suite.decrypted(*how, given["sealed"], b"something else")


@pytest.mark.parametrize("case", VECTORS["box"], ids=lambda case: case["source"])
def test_letters_of_intl(case: dict[str, Any]) -> None:
    given = raw(case)
    box = INTL._box(given["key"])
    assert box.encrypt(given["nonce"], given["text"], given["bound"]) == given["sealed"]


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_a_sealed_letter_is_its_keys_alone(suite: Suite) -> None:
    one, other = bytes(32), bytes([1]) * 32
    sealed = suite.sealed(one, b"text")
    assert len(sealed) == len(b"text") + 16
    assert suite.unsealed(one, sealed) == b"text"
    for key, text in ((other, sealed), (one, sealed[:-1]), (one, b"")):
        with pytest.raises(ProtocolError, match="was changed"):
            suite.unsealed(key, text)


@pytest.mark.parametrize("case", VECTORS["hkdf"], ids=lambda case: case["source"])
def test_hkdf_as_published(case: dict[str, Any]) -> None:
    """The same few lines that the next test compares keys with."""
    given = {k: v if k in ("source", "hash") else bytes.fromhex(v) for k, v in case.items()}
    assert expanded(INTL, given["secret"], given["info"], len(given["key"])) == given["key"]


def keyed(suite: Suite, key: bytes, text: bytes) -> bytes:
    """HMAC (RFC 2104) over a suite's hash, of blocks of 64 bytes."""
    key = key.ljust(64, b"\0")
    inner = suite.digest(bytes(b ^ 0x36 for b in key) + text)
    return suite.digest(bytes(b ^ 0x5C for b in key) + inner)


def expanded(suite: Suite, secret: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869, §2, with an empty salt."""
    prk, made, block = keyed(suite, bytes(32), secret), b"", b""
    while len(made) < size:
        block = keyed(suite, prk, block + info + bytes([len(made) // 32 + 1]))
        made += block
    return made[:size]


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_keys_are_hkdf_over_the_suites_hash(suite: Suite) -> None:
    secret, purpose = bytes(range(32)), ("atoll", "plant", 7, b"digest")
    assert suite.derived(secret, *purpose) == expanded(suite, secret, msgspec.msgpack.encode(purpose), 32)
    assert keyed(INTL, secret, b"text") == hmac.digest(secret, b"text", "sha256")


@pytest.mark.parametrize(("suite", "block"), [(INTL, algorithms.AES), (GM, algorithms.SM4)], ids=SUITES)
def test_a_stream_is_the_cipher_of_a_counter(suite: Suite, block: Any) -> None:
    key = bytes(range(32))
    single = Cipher(block(key[: suite.size]), modes.ECB()).encryptor()  # noqa: S305  a counter mode by hand
    stream = b"".join(single.update(i.to_bytes(16, "big")) for i in range(40))
    assert suite.stream(key).update(bytes(len(stream))) == stream
