"""A web server on this machine that answers like Intel's PCS and AMD's KDS, or misbehaves as it is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

NEXT_UPDATE = (datetime.now(UTC) + timedelta(days=30)).replace(microsecond=0)
_KEY = ec.generate_private_key(ec.SECP256R1())
_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Vendor")])
_ISSUED = datetime.now(UTC) - timedelta(days=1)


def certificate() -> x509.Certificate:
    return x509.CertificateBuilder(_NAME, _NAME, _KEY.public_key(), 1, _ISSUED, NEXT_UPDATE).sign(_KEY, SHA256())


def revocation_list() -> bytes:
    builder = x509.CertificateRevocationListBuilder(_NAME, _ISSUED, NEXT_UPDATE)
    return builder.sign(_KEY, SHA256()).public_bytes(Encoding.DER)


CHAIN = certificate().public_bytes(Encoding.PEM)
LEAF = certificate().public_bytes(Encoding.DER)
CRL = revocation_list()
TCB_INFO = f'{{"id":"TDX",  "version":3,"nextUpdate":"{NEXT_UPDATE:%Y-%m-%dT%H:%M:%SZ}"}}'
IDENTITY = TCB_INFO.replace("TDX", "TD_QE")
HEADERS = ("SGX-PCK-CRL-Issuer-Chain", "TCB-Info-Issuer-Chain", "SGX-Enclave-Identity-Issuer-Chain")


@dataclass(frozen=True)
class Reply:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    promised: int | None = None


@dataclass
class VendorServer:
    """url: where it is. replies: by address, one after another, the last for ever. asked: the addresses, in order.

    statuses: OCSP responses by the request; asked_about: the requests, in order.
    """

    url: str = ""
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    statuses: dict[bytes, bytes] = field(default_factory=dict)
    asked_about: list[bytes] = field(default_factory=list)

    def serve_intel(self) -> None:
        chain = quote(CHAIN)
        signed = {"tcbInfo": TCB_INFO, "enclaveIdentity": IDENTITY}
        tcb, identity = (f'{{"{name}": {text} ,"signature":"ab12"}}'.encode() for name, text in signed.items())
        paths = ("sgx/certification/v4/pckcrl?ca=platform&encoding=der",
                 "tdx/certification/v4/tcb?fmspc=B0C06F000000", "tdx/certification/v4/qe/identity")  # fmt: skip
        for path, body, header in zip(paths, (CRL, tcb, identity), HEADERS, strict=True):
            self.replies["/" + path] = [Reply(body, headers={header: chain})]
        self.replies["/root.der"] = [Reply(CRL)]
        self.replies["/sgx/certification/v4/rootcacrl"] = [Reply(CRL.hex().encode())]

    def serve_amd(self, leaf: str, kind: str = "vcek", product: str = "Milan") -> None:
        self.replies[leaf] = [Reply(LEAF)]
        self.replies[f"/{kind}/v1/{product}/cert_chain"] = [Reply(CHAIN)]
        self.replies[f"/{kind}/v1/{product}/crl"] = [Reply(CRL)]


@contextmanager
def running() -> Iterator[VendorServer]:
    vendor = VendorServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            vendor.asked.append(self.path)
            replies = vendor.replies.get(self.path, [Reply(status=404)])
            self.answer(replies.pop(0) if len(replies) > 1 else replies[0])

        def do_POST(self) -> None:
            request = self.rfile.read(int(self.headers["Content-Length"]))
            vendor.asked_about.append(request)
            right = self.path == "/ocsp" and self.headers["Content-Type"] == "application/ocsp-request"
            status = vendor.statuses.get(request) if right else None
            self.answer(Reply(status=404) if status is None else Reply(status))

        def answer(self, reply: Reply) -> None:
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(reply.body) if reply.promised is None else reply.promised))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    vendor.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield vendor
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
