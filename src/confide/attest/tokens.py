"""Attestation results of others: signed tokens of verification services, held against pinned keys.

Intel Trust Authority: https://portal.trustauthority.intel.com/eat_profile.html. Microsoft Azure Attestation:
https://learn.microsoft.com/en-us/azure/attestation/attestation-token-examples and claim-sets beside it. Trustee of
the Confidential Containers project signs EAT Attestation Results: draft-ietf-rats-ear. NVIDIA's Remote Attestation
Service signs a detached EAT bundle (RFC 9711, 5.2), one token for all and one for each GPU: https://docs.nvidia.com/
attestation/advanced-documentation/latest/claims-guide/gpu_claims.html. Nothing is fetched: a `jku` or a `jwk` in a
token's header is never looked at.

A service says less than evidence does. What it leaves out is absent from the claims, and a policy that asks for it
refuses; a TCB status it does not state is Unknown, and a debug flag it does not state counts as set.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from confide.attest.chain import read_certificate
from confide.attest.check import Check, check, skipped
from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.evidence import MAX_EVIDENCE_BYTES, Family
from confide.attest.requirements import VerifierService
from confide.errors import (
    AttestationError,
    InvalidSignature,
    MalformedEvidence,
    OutsideValidity,
    UnknownRoot,
    WrongCollateral,
)
from confide.errors.certificates import PARSE_ERRORS

MAX_TOKEN_BYTES: Final = 1 << 18
_KEY_TYPES: Final = ("RSA", "EC")
_MALFORMED: Final = "This is no attestation token that the service named writes ({}); fetch it again."
_Json = Mapping[str, Any]


def verify_token(token: bytes, services: Iterable[VerifierService], now: datetime) -> Claims:
    """What one of these services says of the attester, by whichever of them signed it."""
    problem: AttestationError = UnknownRoot(
        "The policy takes no verification service's word; name one with verifier-service, or send evidence itself."
    )
    for service in services:
        try:
            return _verify(token, service, now)
        except AttestationError as error:
            problem = error
    raise problem


@dataclass(frozen=True)
class _Format:
    algorithms: tuple[str, ...]
    issuer: Callable[[_Json], object]
    claims: Callable[[_Json], Claims]
    bundle: bool = False


def _verify(token: bytes, service: VerifierService, now: datetime) -> Claims:
    form = _FORMATS.get(service.service)
    if form is None:
        known = ", ".join(_FORMATS)
        raise WrongCollateral(f"There is no verification service {service.service!r}; those known are {known}.")
    body, until = (_bundle if form.bundle else _current_body)(token, service, form, now)
    try:
        claims = form.claims(body)
    except (LookupError, ArithmeticError, ValueError, TypeError, AttributeError) as error:
        raise MalformedEvidence(_MALFORMED.format(f"{type(error).__name__}: {error}")) from None
    return replace(claims, verified_by=service.identity, valid_until=until)


def _current_body(token: bytes, service: VerifierService, form: _Format, now: datetime) -> tuple[_Json, datetime]:
    """The claims in a token that this service signed and that is valid at `now`, and until when it is."""
    body = _signed_body(token, service, form)
    if form.issuer(body) != service.issuer:
        raise UnknownRoot(f"The token is not from {service.issuer}, as the policy asks; fetch one from there.")
    return body, _check_times(body, now)


# -- signature and time ------------------------------------------------------------------------------------------


def _signed_body(token: bytes, service: VerifierService, form: _Format) -> _Json:
    """The claims, once the signature holds under a pinned key and an algorithm of the list, whatever the token says."""
    if len(token) > MAX_TOKEN_BYTES:
        raise MalformedEvidence(f"A token has at most {MAX_TOKEN_BYTES >> 10} KiB; this is none.")
    try:
        text = token.strip().decode("ascii")
        header = jwt.get_unverified_header(text)
        algorithm = header.get("alg")
        if algorithm not in form.algorithms:
            raise InvalidSignature(f"{service.service} does not sign with {algorithm!r}; do not trust this token.")
        decoded: object = jwt.decode(text, _key(header.get("kid"), algorithm, service), [algorithm], _NO_CHECKS)
    except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
        raise InvalidSignature("The signature does not hold; fetch another token, and do not trust this one.") from None
    except (jwt.InvalidTokenError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedEvidence(_MALFORMED.format(error)) from None
    if not isinstance(decoded, dict):
        raise MalformedEvidence(_MALFORMED.format("no object"))
    return decoded


_NO_CHECKS: Final[Any] = {
    "verify_signature": True,
    **dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss", "verify_sub"), False),
    "verify_jti": False,
}
"""Only the signature: the library would hold the times against the wall clock, and `now` is what counts here."""


def _key(kid: object, algorithm: str, service: VerifierService) -> jwt.PyJWK | RSAPublicKey:
    """The one pinned key that the token names and that is for its algorithm; never a symmetric one."""
    try:
        fitting = [
            key
            for key in json.loads(service.keys)["keys"]
            if kid in (None, key.get("kid")) and key.get("alg", algorithm) == algorithm and key["kty"] in _KEY_TYPES
        ]
        if len(fitting) == 1:
            return _public_key(fitting[0], algorithm)
    except (jwt.PyJWTError, MalformedEvidence, LookupError, AttributeError, RecursionError, *PARSE_ERRORS):
        raise WrongCollateral(
            f"The keys of {service.service} in the policy are no JSON Web Key Set; put in the one it publishes."
        ) from None
    raise UnknownRoot(
        f"The token names {f'key {kid!r}' if kid else 'no key'}, which is not one pinned key of {service.service}; "
        "if the service changed its keys, put the new ones into the policy."
    )


def _public_key(key: _Json, algorithm: str) -> jwt.PyJWK | RSAPublicKey:
    """Azure publishes certificates instead of numbers. They are pinned, so nothing else in them counts."""
    if "n" in key or "x" in key:
        return jwt.PyJWK(dict(key), algorithm)
    public = read_certificate(base64.b64decode(key["x5c"][0]), "certificate in x5c").public_key()
    if not isinstance(public, RSAPublicKey):
        raise ValueError("x5c is not for RSA")
    return public


def _check_times(body: _Json, now: datetime) -> datetime:
    if now < max(_time(body, name, now) for name in ("nbf", "iat")):
        raise OutsideValidity("The token is not valid yet; check the time of appraisal.")
    until = _time(body, "exp")
    if now >= until:
        raise OutsideValidity(f"The token expired on {until:%Y-%m-%d %H:%M} UTC; fetch a fresh one.")
    return until


def _time(body: _Json, name: str, default: datetime | None = None) -> datetime:
    value = body.get(name)
    if value is None and default is not None:
        return default
    try:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(name)
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise MalformedEvidence(_MALFORMED.format(f"{name} is no time")) from None


# -- Intel Trust Authority ---------------------------------------------------------------------------------------

_TDX_NAMES: Final = {f"tdx_{name}": name for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mrseam")}
_TDX_NAMES["tdx_mrconfigid"] = "mrconfigid"
_SGX_NAMES: Final = {"sgx_mrenclave": "mrenclave", "sgx_mrsigner": "mrsigner"}


def _intel(body: _Json) -> Claims:
    """Version 1 has the claims of its one attester at the top; version 2 has one object for each."""
    attesters = [body[kind] for kind in ("tdx", "sgx") if isinstance(body.get(kind), dict)] or [body]
    if len(attesters) > 1 or "nvgpu" in body:
        raise ValueError("several attesters in one token")
    return _intel_attester(attesters[0])


def _intel_attester(body: _Json) -> Claims:
    kind = body["attester_type"]
    if kind == "TDX":
        return _intel_claims(body, Family.TDX, _hex(body, _TDX_NAMES), "tdx_")
    if kind == "SGX":
        measurements = _hex(body, _SGX_NAMES) | _number(body, "sgx_isvsvn", "isvsvn")
        return _intel_claims(body, Family.SGX, measurements, "sgx_")
    raise ValueError(f"attester_type {kind!r}")


def _intel_claims(body: _Json, family: Family, measurements: dict[str, bytes], prefix: str) -> Claims:
    return Claims(
        family=family,
        root=RootKind.PRODUCTION,
        speaks=True,
        report_data=bytes.fromhex(body[f"{prefix}report_data"]),
        debug=body.get(f"{prefix}is_debuggable") is not False,
        tcb_status=_status(body.get("attester_tcb_status")),
        measurements=measurements,
        advisories=_advisories(body.get("attester_advisory_ids")),
        tcb_date=_date(body.get("attester_tcb_date")),
    )


# -- Microsoft Azure Attestation ---------------------------------------------------------------------------------


def _azure(body: _Json) -> Claims:
    """A confidential virtual machine has its hardware's claims under x-ms-isolation-tee; others have them on top."""
    tee = body.get("x-ms-isolation-tee", body)
    kind = tee["x-ms-attestation-type"]
    if kind == "sgx":
        measurements = _hex(tee, {"x-ms-sgx-mrenclave": "mrenclave", "x-ms-sgx-mrsigner": "mrsigner"})
        measurements |= _number(tee, "x-ms-sgx-svn", "isvsvn")
        return _azure_claims(tee, Family.SGX, measurements, "x-ms-sgx-report-data", "x-ms-sgx-is-debuggable")
    if kind == "sevsnpvm":
        prefix = "x-ms-sevsnpvm-"
        measurements = _hex(tee, {f"{prefix}launchmeasurement": "measurement", f"{prefix}hostdata": "host_data"})
        versions = {
            ours: int(tee[prefix + theirs]) for theirs, ours in _AZURE_SNP_TCB.items() if prefix + theirs in tee
        }
        claims = _azure_claims(tee, Family.SNP, measurements, f"{prefix}reportdata", f"{prefix}is-debuggable")
        return replace(claims, versions=versions)
    if kind == "tdxvm":
        return _azure_claims(tee, Family.TDX, _hex(tee, _TDX_NAMES), "tdx_report_data", "tdx_td_attributes_debug")
    raise ValueError(f"x-ms-attestation-type {kind!r}")


_AZURE_SNP_TCB: Final = {
    "bootloader-svn": "bootloader",
    "tee-svn": "tee",
    "snpfw-svn": "snp",
    "microcode-svn": "microcode",
}


def _azure_claims(
    tee: _Json, family: Family, measurements: dict[str, bytes], report_data: str, debuggable: str
) -> Claims:
    return Claims(
        family=family,
        root=RootKind.PRODUCTION,
        speaks=True,
        report_data=bytes.fromhex(tee.get(report_data, "")),
        debug=tee.get(debuggable) is not False,
        tcb_status=_status(tee.get("attester_tcb_status")),
        measurements=measurements,
        advisories=_advisories(tee.get("attester_advisory_ids")),
        tcb_date=_date(tee.get("attester_tcb_date")),
    )


# -- Trustee: EAT Attestation Results ----------------------------------------------------------------------------


def _ear_issuer(body: _Json) -> object:
    verifier = body.get("ear.verifier-id")
    return body.get("iss", verifier.get("developer") if isinstance(verifier, dict) else None)


def _ear(body: _Json) -> Claims:
    """One member for each submodule, the CPU first; every one of them must be affirmed by the service."""
    submods = sorted(body["submods"].items())
    members = sorted((_ear_member(appraisal) for _, appraisal in submods), key=lambda one: not one.speaks)
    if not members:
        raise ValueError("no submods")
    return replace(members[0], members=tuple(members[1:]))


def _ear_member(appraisal: _Json) -> Claims:
    if appraisal["ear.status"] != "affirming":
        raise InvalidSignature(f"The service itself does not affirm the attester: {appraisal['ear.status']!r}.")
    evidence = appraisal["ear.veraison.annotated-evidence"]
    for name, claims in _EAR_FAMILIES.items():
        if name in evidence:
            found = claims(evidence[name])
            if not found.speaks:  # a GPU's nonce is the service's business
                return found
            return replace(found, report_data=bytes.fromhex(evidence["report_data"]))
    raise ValueError(f"attester {', '.join(evidence)}")


def _ear_tdx(tee: _Json) -> Claims:
    names = {"mr_td": "mrtd", "mr_seam": "mrseam", "mr_config_id": "mrconfigid"}
    names |= {f"rtmr_{index}": f"rtmr{index}" for index in range(4)}
    return _ear_claims(tee, Family.TDX, _hex(tee["quote"]["body"], names), tee.get("td_attributes", {}).get("debug"))


def _ear_sgx(tee: _Json) -> Claims:
    body = tee.get("quote", tee)["body"]
    measurements = _hex(body, {"mr_enclave": "mrenclave", "mr_signer": "mrsigner"})
    debug = bool(bytes.fromhex(body["attributes.flags"])[0] & 2) if "attributes.flags" in body else None
    return _ear_claims(tee, Family.SGX, measurements, debug)


def _ear_snp(tee: _Json) -> Claims:
    """Of late nested under `evidence`, before that flat."""
    report = tee.get("evidence", tee)
    tcb = report.get("reported_tcb") or {
        name.removeprefix("reported_tcb_"): value for name, value in report.items() if name.startswith("reported_tcb_")
    }
    measurements = _hex(report, {"measurement": "measurement", "host_data": "host_data"})
    versions = {name: int(value) for name, value in tcb.items() if value is not None}
    debug = report.get("policy", {}).get("debug_allowed", report.get("policy_debug_allowed"))
    return replace(_ear_claims(tee, Family.SNP, measurements, debug), versions=versions)


def _ear_claims(tee: _Json, family: Family, measurements: dict[str, bytes], debug: object) -> Claims:
    return Claims(
        family=family,
        root=RootKind.PRODUCTION,
        speaks=True,
        report_data=b"",
        debug=debug is not False,
        tcb_status=_status(tee.get("tcb_status")),
        measurements=measurements,
        advisories=_advisories(tee.get("advisory_ids")),
        tcb_date=_date(tee.get("tcb_date")),
    )


def _ear_gpu(gpu: _Json) -> Claims:
    """Trustee's own verifier writes measurements by SPDM's index; of late it has the versions beside `config`."""
    said = {**gpu.get("config", {}), **gpu}
    names = {"driver_version": "driver_version", "vbios_version": "vbios_version", "uuid": "uuid", "ueid": "ueid"}
    return Claims(
        family=Family.NVIDIA,
        root=RootKind.PRODUCTION,
        report_data=b"",
        debug=False,
        tcb_status=TcbStatus.UNKNOWN,
        measurements={f"block{int(at)}": bytes.fromhex(value) for at, value in gpu.get("measurements", {}).items()},
        identity={ours: str(said[theirs]).encode() for ours, theirs in names.items() if said.get(theirs)},
        speaks=False,
    )


_EAR_FAMILIES: Final[dict[str, Callable[[_Json], Claims]]] = {
    "tdx": _ear_tdx,
    "sgx": _ear_sgx,
    "snp": _ear_snp,
    "nvidia": _ear_gpu,
}


# -- NVIDIA Remote Attestation Service ---------------------------------------------------------------------------

MAX_BUNDLE_GPUS: Final = 32
_DIGESTS: Final = ("SHA-256", "SHA256")
"""NVIDIA's service and its SDK write the name differently."""

_RIM_CHAINS: Final = ("attestation-report", "driver-rim", "vbios-rim")


def _bundle(bundle: bytes, service: VerifierService, form: _Format, now: datetime) -> tuple[_Json, datetime]:
    """The claims of the token for all, with those of each GPU's token in the place of its digest.

    [["JWT", token], {"GPU-0": token, ...}]; the first has submods {"GPU-0": ["DIGEST", ["SHA-256", hexadecimal]], ...}.
    """
    overall, tokens = _unbundled(bundle)
    body, until = _current_body(overall.encode(), service, form, now)
    digests = body.get("submods")
    if not isinstance(digests, dict) or digests.keys() != tokens.keys():
        raise InvalidSignature("The service's token is not about exactly the GPUs of the bundle; fetch it again.")
    gpus: dict[str, _Json] = {}
    for name, token in tokens.items():
        if not _is_digest(digests[name], token):
            raise InvalidSignature(f"The service's token has another digest of {ascii(name)[:40]}; fetch it again.")
        gpus[name], end = _current_body(token.encode(), service, form, now)
        until = min(until, end)
    return {**body, "submods": gpus}, until


def _unbundled(bundle: bytes) -> tuple[str, dict[str, str]]:
    if len(bundle) > MAX_EVIDENCE_BYTES or not bundle.isascii():
        raise MalformedEvidence(_MALFORMED.format("no bundle of tokens"))
    try:
        (kind, overall), tokens = msgspec.json.decode(bundle, type=tuple[tuple[str, str], dict[str, str]])
        _ = [text.encode() for text in (overall, *tokens.values())]  # an escaped half of a surrogate pair is no text
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedEvidence(_MALFORMED.format("no bundle of tokens")) from None
    if kind != "JWT" or not 1 <= len(tokens) <= MAX_BUNDLE_GPUS:
        raise MalformedEvidence(_MALFORMED.format(f"a bundle of something else, or of not 1 to {MAX_BUNDLE_GPUS} GPUs"))
    return overall, tokens


def _is_digest(claim: object, token: str) -> bool:
    match claim:
        case ["DIGEST", [str(name), str(digest)]] if name in _DIGESTS:
            return hmac.compare_digest(digest.lower().encode(), hashlib.sha256(token.encode()).hexdigest().encode())
    return False


def _nvidia(body: _Json) -> Claims:
    """The GPUs, of which the service must vouch for each and for all, and which answered to one nonce."""
    if body["x-nvidia-overall-att-result"] is not True:
        raise InvalidSignature("The service itself does not vouch for the GPUs; find out why before you trust them.")
    gpus = [_nvidia_gpu(gpu, body["eat_nonce"]) for _, gpu in sorted(body["submods"].items())]
    return replace(gpus[0], members=tuple(gpus[1:]))


def _nvidia_gpu(gpu: _Json, nonce: str) -> Claims:
    if str(gpu["measres"]).lower() != "success":
        raise InvalidSignature("The service did not find NVIDIA's measurements in a GPU; do not trust it.")
    if gpu["eat_nonce"] != nonce:
        raise InvalidSignature("The tokens of the bundle are for several nonces; fetch it again.")
    names = {"driver_version": "x-nvidia-gpu-driver-version", "vbios_version": "x-nvidia-gpu-vbios-version"}
    names |= {"device": "hwmodel", "ueid": "ueid"}
    match = gpu.get("x-nvidia-gpu-attestation-report-cert-chain-fwid-match")
    return Claims(
        family=Family.NVIDIA,
        root=RootKind.PRODUCTION,
        report_data=bytes.fromhex(nonce),
        debug=gpu.get("dbgstat") != "disabled",
        tcb_status=TcbStatus.UNKNOWN,
        identity={ours: str(gpu[theirs]).encode() for ours, theirs in names.items() if gpu.get(theirs)},
        checks=(
            _said("nvidia-measurements", "those of NVIDIA's manifests for this driver and VBIOS", True, "success"),
            _said("nvidia-firmware", "the firmware that the GPU's certificate was made for", match, f"match: {match}"),
            _nvidia_revocation(gpu),
        ),
        speaks=False,
    )


def _nvidia_revocation(gpu: _Json) -> Check:
    chains = [gpu.get(f"x-nvidia-gpu-{name}-cert-chain") for name in _RIM_CHAINS]
    statuses = [one.get("x-nvidia-cert-ocsp-status") if isinstance(one, dict) else None for one in chains]
    good = None if None in statuses else all(status == "good" for status in statuses)
    seen = ", ".join(f"{name}: {status}" for name, status in zip(_RIM_CHAINS, statuses, strict=True))
    return _said("revocation", "no certificate of the GPU and its manifests revoked", good, seen)


def _said(code: str, expected: str, verdict: object, seen: str) -> Check:
    """A check that the service made; one that it does not mention is skipped."""
    if verdict is None:
        return skipped(code, expected, "the service does not say", _NVIDIA_CLAIMS)
    return check(code, expected, f"the service says: {seen}", verdict is True, _NVIDIA_CLAIMS)


_NVIDIA_CLAIMS: Final = "NVIDIA Remote Attestation Service, claims about one GPU (x-nvidia-gpu-*)"


_FORMATS: Final = {
    "intel-trust-authority": _Format(("PS384", "RS256"), lambda body: body.get("iss"), _intel),
    "azure-attestation": _Format(("RS256",), lambda body: body.get("iss"), _azure),
    "trustee": _Format(("ES256", "ES384", "PS256", "PS384", "RS256"), _ear_issuer, _ear),
    "nvidia-nras": _Format(("ES384",), lambda body: body.get("iss"), _nvidia, bundle=True),
}


# -- values ------------------------------------------------------------------------------------------------------


def _hex(body: _Json, names: Mapping[str, str]) -> dict[str, bytes]:
    return {ours: bytes.fromhex(body[theirs]) for theirs, ours in names.items() if theirs in body}


def _number(body: _Json, theirs: str, ours: str) -> dict[str, bytes]:
    return {ours: int(body[theirs]).to_bytes(2, "little")} if theirs in body else {}


def _status(text: object) -> TcbStatus:
    return next((status for status in TcbStatus if status.value == text), TcbStatus.UNKNOWN)


def _advisories(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("advisories are no list of names")
    return tuple(name.strip() for name in names if name.strip())


def _date(text: object) -> datetime | None:
    if text is None:
        return None
    date = datetime.fromisoformat(str(text))
    return date if date.tzinfo else date.replace(tzinfo=UTC)
