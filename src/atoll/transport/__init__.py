"""Links between members: sessions, uploads, downloads, and who may speak."""

import os as _os
import sys as _sys

# gRPC cannot be told to speak TLS 1.3 only, but for TLS 1.2 it offers the suites named here, and of these two
# parties without a shared secret agree on none; TLS 1.3 has suites of its own. It reads this when it is
# imported, hence here, before any module of this package can do so. tests/wire/test_tls.py shows it holds.
_SUITES = "ECDHE-PSK-AES128-CBC-SHA"
_GRPC_WAS_FIRST = "grpc" in _sys.modules and _os.environ.get("GRPC_SSL_CIPHER_SUITES") != _SUITES
_os.environ["GRPC_SSL_CIPHER_SUITES"] = _SUITES
