"""Every parser of evidence, collateral, policies, receipts, results and traces has a target that reaches it."""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from fuzz.targets import corpus, targets

import confide
from sources import parsed

ATTEST = Path(confide.__file__).parent / "attest"
RECEIPTS = ATTEST.parent / "receipts"
OTHERS = [ATTEST.parent / path for path in ("bench/results.py", "evaluate/trace.py")]
PARSERS = {
    "bundle.py": {"Bundle.read": "bundle"},
    "cbor.py": {"decode": "nitro-document"},
    "certificates.py": {
        "Certificate.read": "score-certificate",
        "Certificate.read_lines": "score-certificate",
        "predicate_type": "training-certificate",
    },
    "chain.py": {"read_certificate": "certificates", "read_chain": "certificates", "read_crl": "certificates"},
    "collateral_files.py": {"gather": "collateral"},
    "collateral_nvidia.py": {"rim_document": "gpu-services"},
    "collateral_sources.py": {
        "_chain": "vendor-answers",
        "_chain_ends": "vendor-answers",
        "_crl_ends": "vendor-answers",
        "_der": "vendor-answers",
        "_leaf_ends": "vendor-answers",
        "certificate_table": "host-table",
        "signed_text": "vendor-answers",
    },
    "der.py": {"elements": "ocsp", "read_fields": "ra-tls"},
    "evidence_files.py": {"family_of": "evidence", "read_collateral": "collateral", "read_evidence": "evidence"},
    "forms.py": {"octets": "evidence", "read_form": "evidence", "read_object": "evidence"},
    "ocsp.py": {"OcspResponses.__init__": "ocsp", "response_end": "gpu-services"},
    "policy_toml.py": {"any_policy_from_toml": "policy"},
    "ra_tls.py": {
        "_from_list": "ra-tls",
        "_from_quote": "ra-tls",
        "decode_evidence": "ra-tls",
        "extract": "ra-tls",
        "open_certificate": "ra-tls",
    },
    "release.py": {"parse_measurements": "release-statement", "verify_release": "release"},
    "statement.py": {"Statement.decode": "statement"},
    "tokens.py": {"_bundle": "gpu-tokens", "verify_token": "token"},
    "wire.py": {"Attested.decode": "attested", "WireCollateral.thaw": "attested", "WireEvidence.thaw": "attested"},
    "families/azure.py": {"HclReport.parse": "hcl-report", "parse_runtime_data": "runtime-data"},
    "families/dcap.py": {"_papers": "dcap-quote"},
    "families/dcap_quote.py": {"Quote.parse": "dcap-quote"},
    "families/dcap_signature.py": {"parse": "dcap-quote"},
    "families/eventlog.py": {"replay": "event-log"},
    "families/nitro.py": {"Document.parse": "nitro-document"},
    "families/nvidia_json.py": {
        "family_of": "gpu-json",
        "manifest_kind": "gpu-collateral",
        "read_evidence": "gpu-json",
    },
    "families/nvidia_report.py": {"Report.parse": "gpu-report"},
    "families/nvidia_rim.py": {"ReferenceManifest.read": "reference-manifest", "reference_chain": "gpu-services"},
    "families/snp.py": {"Report.parse": "snp-report"},
    "families/tpm.py": {
        "Quote.parse": "tpm-quote",
        "Signature.parse": "tpm-signature",
        "verify_quote": "tpm-signature",
    },
    "reading/tpm.py": {"parse_registers": "tpm-registers"},
    "../bench/results.py": {"read_result": "bench-result"},
    "../evaluate/trace.py": {"read_trace": "trace"},
    "../receipts/client.py": {"ClientReceipt.read": "client-receipt"},
    "../receipts/client_key.py": {"parse_key": "client-key"},
    "../receipts/documents.py": {"read_document": "receipt", "read_json": "report"},
    "../receipts/events.py": {"sampling_event": "sampling", "sources_event": "sources"},
    "../receipts/keyset.py": {"Keyset.read": "keyset"},
    "../receipts/receipt.py": {"Receipt.read": "receipt"},
    "../receipts/report.py": {"Report.read": "report"},
    "../receipts/session.py": {"AttestedSession.read": "session"},
}
"""What takes outside bytes apart, by its module, seen from `attest`, with a target that must reach it."""
NO_PARSERS = {
    "certificates.py": {"signed_by"},  # signatures
    "chain.py": {"_parsed", "list_date"},  # by way of the three above
    "collateral_files.py": {
        "_sort",
        "_sort_json",
        "_sort_certificate",
        "_sort_pem",
        "_blocks",
        "_sort_der",
        "_sort_status",
        "_sort_key",
    },
    "cursor.py": {"Cursor.__init__"},
    "der.py": {"_only", "_first"},  # by way of elements
    "evidence_files.py": {"_quoted", "_listed", "_plain", "_unwrapped", "_extended", "_family_of_quote"},
    "evidence.py": {"qualifying_data"},  # a hash
    "../receipts/client_key.py": {"ClientKey.sign"},  # what it signs is its own
    "../receipts/documents.py": {"digest_of"},  # a hash
    "../receipts/verify.py": {"_digest"},  # a hash
    "families/dcap_signature.py": {"_public_key"},  # of the library, 64 bytes that the quoting enclave signed
    "families/dcap_quote.py": {"Reader.__init__"},
    "families/nvidia.py": {"_manifest"},  # by way of ReferenceManifest.read
    "families/nvidia_report.py": {"_blocks", "_fields"},  # by way of Report.parse
    "families/nvidia_rim.py": {"_parse", "_signed"},  # by way of ReferenceManifest.read
    "families/snp.py": {"_check_signature", "_components", "_text"},  # of a report or certificate that was read
    "families/tpm.py": {"_public_key"},  # of the library
    "forms.py": {"bounded", "pem", "_exactly"},  # sizes, and certificates by way of read_form
    "ocsp.py": {"_read"},  # by way of the two above
    "ra_tls.py": {"_claims_buffer", "_check_public_key_hash", "_padded", "_bounded", "verify_binding"},
    "statement.py": {"Statement.is_bound_by", "same_report_data"},  # comparisons
    "tokens.py": {"_verify", "_current_body", "_signed_body", "_unbundled"},  # by way of verify_token
}
"""What takes bytes and is part of a parser above, or takes nothing apart."""
CASES = [(module, name, target) for module, found in PARSERS.items() for name, target in found.items()]


@functools.cache
def reached(target: str) -> frozenset[tuple[str, str]]:
    """The functions of these packages, by module and name, that this target calls for its kept inputs."""
    found: set[tuple[str, str]] = set()
    names = _names()

    def note(frame: FrameType, event: str, _: object) -> None:
        key = (frame.f_code.co_filename, frame.f_code.co_firstlineno)
        if event == "call" and key in names:
            found.add(names[key])

    run = targets()[target]
    for content in corpus(target):
        sys.setprofile(note)
        try:
            run(content)
        finally:
            sys.setprofile(None)
    return frozenset(found)


@functools.cache
def _names() -> dict[tuple[str, int], tuple[str, str]]:
    """Functions by file and first line, which is that of the first decorator."""
    return {
        (str((ATTEST / module).resolve()), min([node.lineno, *(one.lineno for one in node.decorator_list)])): (
            module,
            name,
        )
        for module, name, node in _functions()
    }


def _functions() -> Iterator[tuple[str, str, ast.FunctionDef]]:
    for path in sorted([*ATTEST.rglob("*.py"), *RECEIPTS.rglob("*.py"), *OTHERS]):
        module = (
            path.relative_to(ATTEST).as_posix() if path.is_relative_to(ATTEST) else f"../{path.parent.name}/{path.name}"
        )
        for node in parsed(path).body:
            if isinstance(node, ast.FunctionDef):
                yield module, node.name, node
            elif isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef):
                        yield module, f"{node.name}.{inner.name}", inner


def _takes_bytes(node: ast.FunctionDef) -> bool:
    first = next((one for one in node.args.args if one.arg not in ("self", "cls")), None)
    return first is not None and first.annotation is not None and "bytes" in ast.unparse(first.annotation).split(" ")[0]


@pytest.mark.parametrize(("module", "name", "target"), CASES, ids=lambda value: value)
def test_a_target_reaches_the_parser(module: str, name: str, target: str) -> None:
    assert (module, name) in reached(target)


def test_every_function_of_a_module_that_takes_bytes_is_listed() -> None:
    """A new one is either a parser, and then a target must reach it, or it says why not."""
    listed = {(module, name) for table in (PARSERS, NO_PARSERS) for module, names in table.items() for name in names}
    takers = {(module, name) for module, name, node in _functions() if _takes_bytes(node)}
    # Bytes that this process made or holds itself: report data, roots, and claims that were verified.
    own = {one for one in takers if one[0].startswith(("reading/", "requirements/", "roots", "simulated"))}
    assert takers - listed - own == set()
    every = {(module, name) for module, name, _ in _functions()}
    assert listed <= every
