"""Trust by a fingerprint, and the way to a host: what both ends of the API and the doctor need."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import ssl
import urllib.request
from urllib.parse import unquote, urlsplit

from ..core.errors import IntegrityError


def pinned(root: str) -> ssl.SSLContext:
    """TLS 1.3 to a server whose certificate chains to `root` (PEM) and names the host in the URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=root)
    return context


def blind() -> ssl.SSLContext:
    """TLS 1.3 to whoever answers: only to ask for a root that is compared with a fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def fingerprint(pem: bytes) -> str:
    """SHA-256, in hex, of the certificate's DER. Raises IntegrityError where `pem` holds none."""
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii").strip())).hexdigest()
    except ValueError:
        raise IntegrityError("the server answered something else than its root certificate") from None


def loopback(host: str) -> bool:
    """Whether `host` is this machine and no other."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def proxy_for(host: str, scheme: str) -> tuple[str, int, dict[str, str]] | None:
    """(host, port, headers) of the proxy the environment names for `host`; None for a direct way."""
    url = urllib.request.getproxies().get(scheme)
    if not url or urllib.request.proxy_bypass(host):
        return None
    return parsed_proxy(url)


def parsed_proxy(url: str) -> tuple[str, int, dict[str, str]] | None:
    """(host, port, headers) of http://user:password@host:port; None where it names no host."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if not parts.hostname:
        return None
    headers = {}
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair).decode()
    return parts.hostname, parts.port or 8080, headers
