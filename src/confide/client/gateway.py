"""Asking a gateway for its attestation report, and noting which key the connection ended at."""

import hashlib
from urllib.parse import urlsplit

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.client.hop import getting, read_bounded
from confide.errors import MalformedReceipt
from confide.errors.certificates import PARSE_ERRORS
from confide.receipts.report import MAX_REPORT_BYTES
from confide.receipts.verify_report import Channel

PATH = "/v1/aci/attestation"


def fetch_report(http: httpx.Client, url: str, nonce: str) -> tuple[bytes, Channel | None]:
    """A gateway's report for a nonce, and the channel that it came through; None without TLS.

    url: of the gateway, with the report's path or without. ConnectionLost, GatewayError, ServerBusy; MalformedReceipt
    for one that is too large. No redirect is followed.
    """
    with getting(http, url.removesuffix(PATH) + PATH, {"nonce": nonce}) as answer:
        content = read_bounded(answer, MAX_REPORT_BYTES)
        return content, _channel(answer, url)


def _channel(answer: httpx.Response, url: str) -> Channel | None:
    stream = answer.extensions.get("network_stream")
    tls = None if stream is None else stream.get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(True)
    if certificate is None:
        return None
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except PARSE_ERRORS:
        raise MalformedReceipt("The gateway's certificate cannot be read; check the address.") from None
    return Channel(urlsplit(url).hostname or "", hashlib.sha256(spki).hexdigest())
