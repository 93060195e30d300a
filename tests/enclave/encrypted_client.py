"""The least that a client does: evidence first, then an encrypted request, then its answer frame by frame."""

import contextlib
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from confide.attest.simulated import SimulatedTee
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.channel.encryption import MEDIA_TYPE, EncryptedExchange, RequestHead, ResponseHead, decode_head
from confide.channel.keys import ChannelPublicKey


def attested_key(client: httpx.Client, tee: SimulatedTee) -> ChannelPublicKey:
    nonce = secrets.token_hex(32)
    shown = Attested.decode(client.get("/attestation", params={"nonce": nonce}).raise_for_status().content)
    claims = Verifier(tee.roots()).verify(shown.evidence.thaw(), shown.collateral.thaw(), datetime.now(UTC))
    assert shown.statement.nonce == nonce
    assert shown.statement.is_bound_by(claims.report_data, claims.family)
    return ChannelPublicKey.parse(shown.statement.channel_keys["hpke"])


def encrypted(key: ChannelPublicKey, path: str, content: Any) -> tuple[EncryptedExchange, bytes]:
    exchange = EncryptedExchange(key)
    head = RequestHead("POST", path, (("content-type", "application/json"),))
    return exchange, exchange.request(head, msgspec.json.encode(content))


@contextlib.contextmanager
def asking(
    client: httpx.Client, key: ChannelPublicKey, path: str, content: Any
) -> Iterator[tuple[ResponseHead, Iterator[bytes]]]:
    """Head and body frames of an answer, as they come."""
    exchange, request = encrypted(key, path, content)
    headers = {"content-type": MEDIA_TYPE}
    with client.stream("POST", "/encrypted", content=request, headers=headers) as response:
        assert response.status_code == 200, response.read()

        def frames() -> Iterator[bytes]:
            for part in response.iter_raw():
                yield from exchange.reader.feed(part)
            exchange.reader.require_end()

        every = frames()
        yield decode_head(next(every), ResponseHead), every


def ask(client: httpx.Client, key: ChannelPublicKey, path: str, content: Any) -> tuple[int, Any]:
    with asking(client, key, path, content) as (head, frames):
        return head.status, msgspec.json.decode(b"".join(frames))
