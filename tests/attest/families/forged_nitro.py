"""Nitro documents by nobody's hypervisor."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import SimulatedRoots

from .authorities import Party, ec_key, party
from .cases import NOW, Case

ROOT = party("aws.nitro-enclaves", ec_key("nitro root"))
REGION = party("region.aws.nitro-enclaves", ec_key("nitro region"), ROOT, path_length=1)
INSTANCE = party("i-1.aws.nitro-enclaves", ec_key("nitro instance"), REGION, path_length=0)
MADE = NOW - timedelta(minutes=1)
PCRS = {index: bytes([index + 1]) * 48 for index in range(5)} | {8: bytes(48)}


def enclave(**fields: Any) -> Party:
    """The enclave's own certificate, for three hours."""
    times = {"begin": MADE - timedelta(minutes=1), "end": MADE + timedelta(hours=3)}
    key = fields.pop("key", ec_key("nitro enclave"))
    return party("i-1-enc1.aws", key, fields.pop("issuer", INSTANCE), ca=False, **(times | fields))


@dataclass(frozen=True)
class Fields:
    """What a document says. payload: fields added, replaced, or with None left out."""

    made: datetime = MADE
    pcrs: dict[Any, Any] = field(default_factory=lambda: dict(PCRS))
    bundle: tuple[Party, ...] = (ROOT, REGION, INSTANCE)
    payload: dict[str, Any] = field(default_factory=dict)
    header: Any = field(default_factory=lambda: {1: -35})
    tagged: bool = False


def document(fields: Fields, signer: Party) -> bytes:
    """A signed document."""
    said: dict[str, Any] = {
        "module_id": "i-1-enc1",
        "digest": "SHA384",
        "timestamp": int(fields.made.timestamp() * 1000),
        "pcrs": fields.pcrs,
        "certificate": signer.der,
        "cabundle": [one.der for one in fields.bundle],
        "public_key": None,
        "user_data": bytes(range(64)),
        "nonce": b"a client's nonce",
    }
    payload = cbor2.dumps({name: value for name, value in (said | fields.payload).items() if value != "left out"})
    header = fields.header if isinstance(fields.header, bytes) else cbor2.dumps(fields.header)
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    signed = cbor2.dumps(["Signature1", header, b"", payload])
    numbers = decode_dss_signature(signer.key.sign(signed, ec.ECDSA(hashes.SHA384())))
    parts = [header, {}, payload, b"".join(number.to_bytes(48, "big") for number in numbers)]
    return cbor2.dumps(cbor2.CBORTag(18, parts) if fields.tagged else parts)


def nitro_case(fields: Fields | None = None, signer: Party | None = None, **payload: Any) -> Case:
    """A document that verifies under the simulated root."""
    fields = replace(fields or Fields(), payload=payload) if payload else fields or Fields()
    evidence = Evidence(Family.NITRO, document(fields, signer or enclave()))
    return Case(evidence, Collateral(), SimulatedRoots({Family.NITRO: ROOT.der}))
