"""Sums of encrypted integers: the scheme of Brakerski, Fan and Vercauteren, by TenSEAL's binding of SEAL.

Brakerski 2012, "Fully homomorphic encryption without modulus switching from classical GapSVP"; Fan,
Vercauteren 2012, "Somewhat practical fully homomorphic encryption", §4. Only additions are used, so an
integer is a coefficient of its own: no batching, no keys to evaluate with. Polynomials have N coefficients:

    encrypt   c = (c0, c1) mod q    c0 = -(c1 * s + e) + rint(q m / t)    c1 uniform, e small, s secret
    decrypt   m = rint(t / q (c0 + c1 * s)) mod t

Whoever adds needs no TenSEAL and does not know q: the coefficients of `members` ciphertexts sum to less than
members * q <= 2**width, so they are added as integers modulo 2**width, and taken modulo q by who decrypts.

Who holds the key reads every ciphertext, and anybody changes what it says by adding to it: what a sum
is of must be shown by other means (learn/encrypted.py has tags).
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ConfigError, ProtocolError

N = 2048  # coefficients of a polynomial, which the standard allows 54 bits of q (homomorphicencryption.org)
_MOST = 54
_ERROR = 21.5  # the largest |e| that SEAL draws, and what rounding q m / t adds
_SPARE = 2  # bits of q, so that decryption's own rounding does not matter
_KEY = 1 << 15  # bytes that a secret key may have
_HEAD = struct.Struct("<HBBBBHQ")  # SEAL's: magic, its own size, version (2), compression, reserved, size
_POLY = 72  # bytes before the coefficients of a plaintext


@dataclass(frozen=True)
class Ring:
    """Sums of up to `members` vectors of integers whose sum stays within 2**(bits - 1), exactly.

    Raises ConfigError where N coefficients have no room for them.
    """

    bits: int
    members: int

    def __post_init__(self) -> None:
        if self.logq > _MOST or self.width > 64:
            raise ConfigError(
                f"sums of {self.members} encrypted integers of {self.bits} bits do not fit: take fewer"
                " members, or fewer bits"
            )

    @cached_property
    def t(self) -> int:
        """What plain integers are modulo: the first prime above 2**bits."""
        return next(p for p in range((1 << self.bits) + 1, 2 << self.bits, 2) if _prime(p))

    @property
    def logq(self) -> int:
        """Bits of q: room for all members' errors below half a unit of the plain integers."""
        return ceil(log2(2 * _ERROR * self.members) + self.bits) + _SPARE

    @property
    def width(self) -> int:
        """Bits in which coefficients are added."""
        return self.logq + ceil(log2(self.members))

    def blocks(self, size: int, tags: int = 0) -> int:
        """How many ciphertexts hold `size` integers, each with so many others besides."""
        return -(-size // (N - tags))


def _prime(p: int) -> bool:
    """By Miller and Rabin, whose first twelve bases leave no doubt below 2**64."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if any(p % a == 0 for a in bases):
        return p in bases
    twos = ((p - 1) & (1 - p)).bit_length() - 1

    def passes(a: int) -> bool:
        x = pow(a, (p - 1) >> twos, p)
        return x == 1 or any(pow(x, 1 << r, p) == p - 1 for r in range(twos))

    return all(passes(a) for a in bases)


def seal() -> Any:
    """SEAL, as TenSEAL ships it. Raises ConfigError where it is not installed."""
    try:
        import tenseal.sealapi as found
    except ImportError:
        raise ConfigError("encrypted sums need TenSEAL: pip install 'atoll-fl[he]'") from None
    return found


@lru_cache(maxsize=8)
def _context(t: int, logq: int) -> tuple[Any, int]:
    """SEAL's context, and q."""
    s = seal()
    parms = s.EncryptionParameters(s.SCHEME_TYPE.BFV)
    parms.set_poly_modulus_degree(N)
    parms.set_coeff_modulus(s.CoeffModulus.Create(N, [logq]))
    parms.set_plain_modulus(t)
    context = s.SEALContext(parms, True, s.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise ConfigError(f"SEAL refuses to encrypt so: {context.parameters_error_message()}")
    return context, parms.coeff_modulus()[0].value()


class _File:
    """What SEAL reads and writes: a file in memory where the system has such, else one that nobody else
    may read. SEAL packs what it writes; what it reads need not be packed.
    """

    def __init__(self, number: int, path: str) -> None:
        self.path = path
        self._file = os.fdopen(number, "w+b", buffering=0)

    def put(self, data: bytes) -> str:
        self._file.seek(0)
        self._file.truncate(0)
        self._file.write(data)
        return self.path

    def raw(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    def close(self) -> None:
        self._file.close()

    def saved(self, thing: Any) -> bytes:
        """What SEAL writes of a thing, unpacked and without its head."""
        import zstandard

        thing.save(self.path)
        return zstandard.ZstdDecompressor().decompressobj().decompress(self.raw()[_HEAD.size :])


@contextmanager
def _file() -> Iterator[_File]:
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("bfv", os.MFD_CLOEXEC)
        with closing(_File(number, f"/proc/self/fd/{number}")) as file:
            yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bfv"
        number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        with closing(_File(number, str(path))) as file:
            yield file


def _framed(body: bytes, like: bytes) -> bytes:
    """A body with a head as SEAL writes it, of the version of `like`, not packed."""
    magic, own, major, minor, *_ = _HEAD.unpack_from(like)
    return _HEAD.pack(magic, own, major, minor, 0, 0, _HEAD.size + len(body)) + body


def fresh(ring: Ring) -> bytes:
    """A new secret key, of the system's entropy."""
    context, _ = _context(ring.t, ring.logq)
    with _file() as file:
        seal().KeyGenerator(context).secret_key().save(file.path)
        return file.raw()


def _loaded(ring: Ring, key: bytes, file: _File) -> Any:
    if len(key) > _KEY:
        raise ProtocolError(f"a key of {len(key)} bytes is none to encrypt with")
    secret = seal().SecretKey()
    try:
        secret.load(_context(ring.t, ring.logq)[0], file.put(key))
    except (RuntimeError, ValueError):
        raise ProtocolError("a key to encrypt with is damaged, or for other sums than these") from None
    return secret


def encrypt(ring: Ring, key: bytes, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`numbers` (blocks, N), modulo t, as ciphertexts (2, blocks, N). Raises ProtocolError for a bad key."""
    s, (context, _) = seal(), _context(ring.t, ring.logq)
    made = np.empty((2, *numbers.shape), np.uint64)
    with _file() as file:
        encryptor = s.Encryptor(context, _loaded(ring, key, file))
        plain, cipher, like = s.Plaintext(N), s.Ciphertext(), file.raw()
        prefix = _framed(file.saved(plain), like)[: -8 * N]
        for i, block in enumerate(numbers):
            plain.load(context, file.put(prefix + block.astype("<u8").tobytes()))
            encryptor.encrypt_symmetric(plain, cipher)
            made[:, i] = np.frombuffer(file.saved(cipher)[-16 * N :], "<u8").reshape(2, N)
    return made


def decrypt(ring: Ring, key: bytes, sums: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What ciphertexts (2, blocks, N), or sums of them modulo 2**width, say: (blocks, N), modulo t.

    Raises ProtocolError for a bad key or shape. Those of another key, or of too many, give nonsense.
    """
    if sums.ndim != 3 or len(sums) != 2 or sums.shape[2] != N or sums.dtype != np.uint64:
        raise ProtocolError(f"a sum of ciphertexts has (2, blocks, {N}) coefficients, this one {sums.shape}")
    s, (context, q) = seal(), _context(ring.t, ring.logq)
    made = np.zeros(sums.shape[1:], np.uint64)
    with _file() as file:
        secret = _loaded(ring, key, file)
        decryptor, plain, cipher, like = (
            s.Decryptor(context, secret),
            s.Plaintext(),
            s.Ciphertext(),
            file.raw(),
        )
        s.Encryptor(context, secret).encrypt_symmetric(s.Plaintext("1"), cipher)
        prefix = _framed(file.saved(cipher), like)[: -16 * N]
        for i in range(sums.shape[1]):
            block = np.ascontiguousarray(sums[:, i] % np.uint64(q), "<u8")
            cipher.load(context, file.put(prefix + block.tobytes()))
            decryptor.decrypt(cipher, plain)
            found = np.frombuffer(file.saved(plain)[_POLY:], "<u8")
            made[i, : len(found)] = found
    return made
