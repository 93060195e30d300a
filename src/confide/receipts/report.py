"""An attestation report of ACI (4.1): evidence, and the keyset that it was made for."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import msgspec

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.wire import WireCollateral, WireEvidence
from confide.receipts.documents import API_VERSION, Digest, Word, read_fields, read_json
from confide.receipts.keyset import Keyset

MAX_REPORT_BYTES: Final = 4 << 20
_TEE_TYPES: Final = MappingProxyType({Family.TDX: "tdx", Family.SNP: "sev_snp"})
"""ACI's own words; other families go by ours, which ACI leaves to extensions."""
_OURS: Final = "confide"


class _Ours(msgspec.Struct, frozen=True):
    evidence: WireEvidence
    collateral: WireCollateral = WireCollateral()


_Said = Annotated[str, msgspec.Meta(max_length=1024)] | None


class _Source(msgspec.Struct, frozen=True):
    repo_url: _Said = None
    repo_commit: _Said = None
    image_digest: _Said = None


class _Attestation(msgspec.Struct, frozen=True):
    tee_type: Word
    workload_keyset: dict[str, Any]
    report_data: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    evidence: dict[str, Any]
    source_provenance: _Source | None = None


class _Capabilities(msgspec.Struct, frozen=True):
    serving: str = ""


class _Fields(msgspec.Struct, frozen=True):
    api_version: Literal["aci/1"]
    workload_keyset_digest: Digest
    attestation: _Attestation
    service_capabilities: _Capabilities = _Capabilities()


@dataclass(frozen=True)
class Report:
    """A report as its document says it, and nothing about whether its evidence holds.

    report_data: 32 bytes in hexadecimal. serving: whatever is not "direct" is an aggregator (appendix B).
    evidence: None for a form that is not known here. source: where the code comes from, in the report's own words.
    """

    api_version: str

    keyset: Keyset
    keyset_digest: str
    report_data: str
    tee_type: str
    serving: str
    evidence: Evidence | None
    collateral: Collateral
    source: str

    @classmethod
    def read(cls, data: bytes) -> "Report":
        """From JSON. MalformedReceipt for anything else."""
        fields = read_fields(read_json(data, "report", MAX_REPORT_BYTES), "report", _Fields)
        said = fields.attestation
        keyset = Keyset.of(said.workload_keyset)
        keyset.canonical  # noqa: B018 - which it must have
        evidence, collateral = _evidence(said)
        serving = fields.service_capabilities.serving
        source = said.source_provenance or _Source()
        named = (source.repo_url, source.repo_commit, source.image_digest)
        return cls(
            fields.api_version, keyset, fields.workload_keyset_digest, said.report_data, said.tee_type, serving,
            evidence, collateral, " ".join(filter(None, named)),
        )  # fmt: skip


def _evidence(said: _Attestation) -> tuple[Evidence | None, Collateral]:
    if _OURS in said.evidence:
        ours = read_fields(said.evidence[_OURS], "report", _Ours)
        return ours.evidence.thaw(), ours.collateral.thaw()
    quote = said.evidence.get("quote")
    if said.tee_type == _TEE_TYPES[Family.TDX] and isinstance(quote, str):
        try:
            return Evidence(Family.TDX, bytes.fromhex(quote.removeprefix("0x"))), Collateral()
        except ValueError:
            return None, Collateral()
    return None, Collateral()


def write_report(keyset: Keyset, report_data: bytes, evidence: Evidence, collateral: Collateral) -> bytes:
    """A workload's own. report_data: as `keyset.report_data` makes it, and as the evidence has it.

    Whose build this is, a release says that comes with the collateral; measurements are in the evidence.
    """
    wire = {"evidence": WireEvidence.of(evidence), "collateral": WireCollateral.of(collateral)}
    shown: dict[str, Any] = {_OURS: wire}
    if evidence.family is Family.TDX:
        shown["quote"] = evidence.raw.hex()
    report = {
        "api_version": API_VERSION,
        "workload_keyset_digest": keyset.digest,
        "attestation": {
            "tee_type": _TEE_TYPES.get(evidence.family, evidence.family.value),
            "workload_keyset": keyset.document,
            "report_data": report_data[:32].hex(),
            "source_provenance": {
                "repo_url": None,
                "repo_commit": None,
                "image_digest": None,
                "image_provenance": None,
            },
            "evidence": shown,
        },
        "service_capabilities": {"supported_e2ee_versions": [], "serving": "direct"},
    }
    return msgspec.json.encode(report)
