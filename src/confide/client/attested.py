"""Asking a workload for evidence, and appraising what it shows."""

import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

import httpx
import msgspec
import rfc8785

from confide.attest.configuration import CorpusServed
from confide.attest.policy_toml import policy_digest
from confide.attest.wire import MAX_ATTESTED_BYTES, Attested
from confide.audit.log import is_kept, note
from confide.client.corpora import require_current
from confide.client.hop import fetch, may_pass
from confide.client.relying_party import RelyingParty, Verified
from confide.errors import AttestationError, AttestationRefused, ConfideError, ServerBusy
from confide.net.patience import pause

PATH: Final = "/attestation"
NONCE_BYTES: Final = 32
ATTEMPTS: Final = 6


def fetch_attestation(http: httpx.Client, url: str, nonce: str) -> Attested:
    """What the workload at this address shows for a nonce in hexadecimal.

    MalformedEvidence, ConnectionLost, GatewayError. No redirect is followed, and a reply that is too large is not read.
    """
    return Attested.decode(fetch(http, url + PATH, {"nonce": nonce}, MAX_ATTESTED_BYTES))


def verify_workload(
    http: httpx.Client, url: str, party: RelyingParty, sleep: Callable[[float], None] = time.sleep
) -> Verified:
    """Ask with a fresh nonce and appraise the answer now. AttestationError where it is not to be trusted.

    Asks again, with another nonce and after a pause, where the server has too much to do.
    """
    for attempt in range(1, ATTEMPTS + 1):
        nonce = secrets.token_hex(NONCE_BYTES)
        try:
            attested = fetch_attestation(http, url, nonce)
        except ConfideError as error:
            if attempt == ATTEMPTS or not may_pass(error):
                raise
            busy = error
        else:
            return appraised(party, url, attested, nonce)
        sleep(pause(attempt, busy.retry_seconds if isinstance(busy, ServerBusy) else 0.0))
    raise ValueError("There is at least one attempt.")


def _require_current(verified: Verified) -> None:
    """CorpusRefused where the workload serves a corpus, and an older head of it than this user has met."""
    configuration = verified.statement.configuration
    if configuration is not None and isinstance(configuration.corpus, CorpusServed):
        require_current(configuration.corpus, simulated=verified.result.simulated)


def appraised(party: RelyingParty, url: str, attested: Attested, nonce: str) -> Verified:
    """The verdict on what a workload showed for a nonce, now. AttestationError where it is not to be trusted.

    It stands in the audit log, if this user keeps one, before anything follows from it.
    """
    try:
        verified = party.appraise(attested, nonce, datetime.now(UTC), url)
        _require_current(verified)
    except AttestationError as error:
        if is_kept():
            codes = error.checks if isinstance(error, AttestationRefused) else ()
            note("refused", mode="enclave", peer=url, failed=codes or (error.code,), policy=policy_digest(party.policy))
        raise
    if is_kept():
        note(
            "connected",
            mode="enclave",
            peer=url,
            model=verified.statement.model_digest,
            policy=policy_digest(party.policy),
            evidence=sha256(rfc8785.dumps(msgspec.to_builtins(attested.evidence))).hexdigest(),
            statement=verified.statement.digest().hex(),
            simulated=verified.result.simulated,
        )
    return verified
