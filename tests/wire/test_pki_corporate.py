"""A root and an intermediate that a company brings along, made by its own tools, from token to stream."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from aiohttp import web

from atoll.control.engine.pki import Registrar, init
from atoll.core.errors import ConfigError, PrivacyError, ProtocolError, StateError
from atoll.privacy.certificate import certificates
from atoll.privacy.keys import (
    Authority,
    Identity,
    chain_member,
    fingerprint,
    member_of,
    new_key,
    request,
    sign,
    verify,
)
from atoll.privacy.token import Token
from atoll.transport import tls
from atoll.transport.enrol import enrol, renew
from atoll.transport.entry import routes
from tests.wire.pki import NOW, Ledger
from tests.wire.test_tls import Echo, gets_in, grpc_server, raw_context, says_hello

CONFIG = """
[req]
distinguished_name = dn
prompt = no
[dn]
C = DE
O = Example AG
CN = Example CA
[root]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[between]
basicConstraints = critical, CA:true, pathlen:1
keyUsage = critical, keyCertSign, cRLSign, digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
crlDistributionPoints = URI:http://crl.example/root.crl
certificatePolicies = 1.3.6.1.4.1.99999.1
[leaf]
basicConstraints = critical, CA:false
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
"""


class Company(NamedTuple):
    """PEM files: `root`; `between`, signed by it, and its key; `below`, signed by that, and its key."""

    root: bytes
    root_key: bytes
    between: bytes
    between_key: bytes
    below: bytes
    below_key: bytes
    leaf: bytes
    leaf_key: bytes


@pytest.fixture(scope="module", params=["rsa", "ec"])
def company(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Company:
    """Made by the openssl command, as companies do."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("company")
    (folder / "ca.cnf").write_text(CONFIG)
    algorithm = ["rsa:2048"] if request.param == "rsa" else ["ec", "-pkeyopt", "ec_paramgen_curve:P-384"]

    def made(name: str, section: str, above: str = "") -> tuple[bytes, bytes]:
        command = ["openssl", "req", "-config", "ca.cnf", "-newkey", *algorithm, "-nodes"]
        command += ["-keyout", f"{name}.key", "-subj", f"/O=Example AG/CN=Example {name}"]
        if above:
            run([*command, "-out", f"{name}.csr"])
            command = ["openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", f"{above}.pem"]
            command += ["-CAkey", f"{above}.key", "-CAcreateserial", "-extfile", "ca.cnf"]
        else:
            command += ["-x509"]
        run([*command, "-extensions", section, "-days", "90", "-out", f"{name}.pem"])
        return (folder / f"{name}.pem").read_bytes(), (folder / f"{name}.key").read_bytes()

    def run(command: list[str]) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    root, between = made("root", "root"), made("between", "between", "root")
    below, leaf = made("below", "between", "between"), made("leaf", "leaf", "between")
    return Company(*root, *between, *below, *leaf)


def now() -> float:
    return time.time()  # openssl dated its certificates by it


@pytest.mark.parametrize("depth", ["root", "intermediate", "two intermediates"])
def test_from_a_token_to_a_stream_under_a_companys_root(company: Company, depth: str, tmp_path: Path) -> None:
    chain, key = {
        "root": (b"", company.root_key),
        "intermediate": (company.between, company.between_key),
        "two intermediates": (company.below + company.between, company.below_key),
    }[depth]
    authority = Authority.adopt("lagoon", company.root, chain, key, now=now())
    hub = init(tmp_path / "hub", "lagoon", hosts=["localhost"], now=now(), authority=authority)
    registrar = Registrar(Authority.open(tmp_path / "hub" / "authority"), Ledger())
    token = registrar.token("client", "bank-a", now=now(), random=secrets.token_bytes)
    assert token.fingerprint == fingerprint(company.root)

    async def join() -> Identity:
        app = web.Application()
        app.add_routes(routes(registrar, urls=[], clock=now))
        runner = web.AppRunner(app)
        await runner.setup()
        context = tls.server_context(hub, "optional")
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        url = f"https://localhost:{runner.addresses[0][1]}"
        try:
            made = await enrol(url, token, folder=tmp_path / "bank", proxy="", now=now())
            below = Token.new(fingerprint(company.between), secrets.token_bytes)
            with pytest.raises(PrivacyError):  # what is pinned is the root, not what stands below it
                await enrol(url, below, folder=tmp_path / "x", proxy="", now=now())
            return await renew(url, made, proxy="", now=now())
        finally:
            await runner.cleanup()

    bank = asyncio.run(join())
    assert len(certificates(bank.chain)) == {"root": 1, "intermediate": 2, "two intermediates": 3}[depth]
    assert chain_member(bank.chain, bank.roots, now=now()).uri == "spiffe://lagoon/client/bank-a"
    assert verify(bank.chain, company.root, b"x", sign(bank.key, b"x"), now=now()) == bank.member
    echo = Echo()
    with grpc_server(hub, echo) as port:
        assert says_hello(port, "localhost", bank)
        assert gets_in(port, tls.client_context(company.root, bank, ["h2"]))
        assert not gets_in(port, raw_context(None))
    assert tls.grpc_member(echo.auth[0], federation="lagoon", now=now()) == bank.member


def test_what_the_company_certifies_for_others_is_no_member(company: Company, tmp_path: Path) -> None:
    """Its web servers chain to the same root: TLS lets them in, and the name in the certificate does not."""
    authority = Authority.adopt("lagoon", company.root, company.between, company.between_key, now=now())
    hub = init(tmp_path / "hub", "lagoon", hosts=["localhost"], now=now(), authority=authority)
    for name in ("cert", "key"):
        part = company.leaf + company.between if name == "cert" else company.leaf_key
        (tmp_path / f"{name}.pem").write_bytes(part)
    echo = Echo()
    made = grpc.ssl_channel_credentials(company.root, company.leaf_key, company.leaf + company.between)
    with grpc_server(hub, echo) as port, grpc.secure_channel(f"localhost:{port}", made) as channel:
        assert list(channel.stream_stream("/e/e")(iter([b"hi"]), timeout=20)) == [b"hi"]  # control
    with pytest.raises(ProtocolError, match="names no member"):
        tls.grpc_member(echo.auth[0], federation="lagoon", now=now())
    with pytest.raises(ProtocolError):
        chain_member(company.leaf + company.between, company.root, now=now())


def test_parts_that_do_not_fit_are_told(company: Company) -> None:
    def adopt(root: bytes, chain: bytes, key: bytes) -> Authority:
        return Authority.adopt("lagoon", root, chain, key, now=now())

    stranger = Authority.new("lagoon", now=NOW)
    with pytest.raises(ConfigError, match="does not belong"):
        adopt(company.root, company.between, company.root_key)
    with pytest.raises(ConfigError, match="members would refuse"):
        adopt(stranger.root, company.between, company.between_key)
    with pytest.raises(ConfigError, match="members would refuse"):
        adopt(company.root, company.below, company.below_key)  # the link between is missing
    with pytest.raises(ConfigError, match="members would refuse"):
        adopt(company.root, company.leaf + company.between, company.leaf_key)  # it may not certify
    with pytest.raises(ConfigError, match="exactly one root"):
        adopt(company.root + stranger.root, company.between, company.between_key)
    with pytest.raises((ConfigError, StateError)):
        adopt(b"nothing", company.between, company.between_key)
    with pytest.raises(StateError, match="no private key"):
        adopt(company.root, company.between, b"nothing")
    late = now() + 91 * 86400
    with pytest.raises(StateError, match="has ended"):
        Authority.adopt("lagoon", company.root, company.between, company.between_key, now=late)


def test_no_certificate_outlives_its_issuer(company: Company) -> None:
    authority = Authority.adopt("lagoon", company.root, company.between, company.between_key, now=now())
    csr = request(new_key(), "lagoon", "client", "a")
    chain = authority.sign(csr, role="client", name="a", now=now(), hours=24 * 365)
    assert member_of(chain).until <= authority.ends[1]
