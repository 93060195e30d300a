"""The trust statement of a workload in a trusted execution environment, from what was checked of it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from confide.attest.configuration import Configuration, CorpusServed, Egress
from confide.attest.evidence import Family
from confide.attest.result import AttestationResult
from confide.trust.statement import Exposure, TrustStatement

SIMULATED: Final = "SIMULATED EVIDENCE: NOTHING IS PROTECTED"
ENCRYPTED: Final = "X25519 with ML-KEM-768, and AES-256-GCM, to the attested key"
TLS: Final = "TLS to the attested key"
_YOU: Final = "you"
_WORKLOAD: Final = "the attested workload"
_HOST: Final = "whoever runs its machine"
_NETWORK: Final = "networks and gateways"
_VENDORS: Final[Mapping[Family, str]] = MappingProxyType(
    {
        Family.SGX: "Intel",
        Family.TDX: "Intel",
        Family.SNP: "AMD",
        Family.NVIDIA: "NVIDIA",
        Family.AZURE: "Microsoft, for the virtual TPM",
        Family.NITRO: "AWS",
    }
)
_OF_CODE: Final = re.compile(r"mrenclave|mrsigner|mrtd|rtmr[0-3]|measurement|pcr[0-9]+")
"""Checks that hold the code against something, by their codes."""
_OF_MODEL: Final = re.compile(r"model|corpus")


def enclave_trust(
    result: AttestationResult, channel: str = ENCRYPTED, configuration: Configuration | None = None
) -> TrustStatement:
    """Of a workload with this verdict, which passed. channel: what encrypts prompts and answers on their way.

    configuration: what runs, of the statement that the verdict is about; None where the workload does not say.
    """
    if result.simulated:
        return _simulated()
    hardware = f"{result.family.value} hardware and its root, {root_of(result)}"
    code = "the measured code" if _checked(result, _OF_CODE) else "code that nobody measured"
    readers = (_YOU, _WORKLOAD, *(["the program that it asks"] if configuration and configuration.upstream else []))
    mine = Exposure(readers, (_HOST, _NETWORK), f"{hardware}; {code}; {channel}")
    corpus = configuration is not None and isinstance(configuration.corpus, CorpusServed)
    weights = Exposure(
        ("the owner", _WORKLOAD, *([_YOU] if corpus else [])),  # a corpus is read by asking it
        () if corpus else (_YOU,),
        "hidden from the machine's owner as well if they were sealed for this workload, which evidence does not say",
    )
    return TrustStatement("enclave", mine, weights, mine, (*_leaks(result), *_of_what_runs(configuration)))


def replicas_trust(each: Sequence[TrustStatement], limit: int) -> TrustStatement:
    """Of a model with up to `limit` replicas, any of which may answer. each: of those that were verified, at least one.

    Who can see something of any of them can see it, and all that they rest on has to hold.
    """
    if limit == 1:
        return each[0]
    who = (
        f"which of up to {limit} replicas answers, which networks and balancers pick; {len(each)} were verified so "
        "far, each by itself, and nothing is encrypted to any other"
    )
    leaks = dict.fromkeys(leak for one in each for leak in one.leaks)
    return TrustStatement(
        each[0].protection,
        _of_any([one.prompt for one in each]),
        _of_any([one.weights for one in each]),
        _of_any([one.output for one in each]),
        (*leaks, who),
    )


def _of_any(each: Sequence[Exposure]) -> Exposure:
    readers = dict.fromkeys(name for one in each for name in one.seen_by)
    hidden = [name for name in each[0].hidden_from if all(name in one.hidden_from for one in each)]
    assumptions = dict.fromkeys(one.assumption for one in each)
    return Exposure(tuple(readers), tuple(hidden), "; and ".join(assumptions))


def root_of(result: AttestationResult) -> str:
    """By whose word evidence that passed is genuine: a vendor's, a verification service's, or a simulated root's."""
    if result.simulated:
        return "a simulated root"
    claims = result.claims
    if claims is not None and claims.verified_by:
        return claims.verified_by
    members = claims.everyone() if claims else ()
    vendors = dict.fromkeys(_VENDORS[one.family] for one in members if one.family in _VENDORS)
    return " and ".join(vendors) or "an attestation key that you enrolled"


def _leaks(result: AttestationResult) -> list[str]:
    leaks = ["the network and the machine see when you ask, and how long prompts and answers are"]
    if not _checked(result, _OF_CODE):
        leaks.append("the policy names no measurement, so any code on such hardware passes; name those that you trust")
    if not _checked(result, _OF_MODEL):
        leaks.append("the policy names no model, so the workload may serve any; name its digest")
    leaks.extend(f"the policy makes an exception, {sentence}" for sentence in result.exceptions)
    return leaks


def _of_what_runs(configuration: Configuration | None) -> Iterator[str]:
    if configuration is None:
        yield "the workload does not say what runs in it; use one that does"
        return
    if configuration.upstream is not None:
        yield "another program there makes the answers; evidence does not say which, or what it sends where"
    if configuration.egress is Egress.OPEN:
        yield "the workload can open connections to anywhere; ask for no-egress in the policy"
    elif "ledger" in configuration.egress.value:
        yield "the workload can write to a database of its operator, for licences and tokens; no-egress refuses that"
    if configuration.self_test.outcome != "passed" and not isinstance(configuration.corpus, CorpusServed):
        yield f"whether it computes the model rightly is not known (self-test: {configuration.self_test.outcome})"


def _checked(result: AttestationResult, what: re.Pattern[str]) -> bool:
    return any(what.fullmatch(check.code) for check in result.checks)


def _simulated() -> TrustStatement:
    anybody = (_WORKLOAD, _HOST, "whoever has the simulated root")
    mine, weights = (Exposure((first, *anybody), (), SIMULATED) for first in (_YOU, "the owner"))
    return TrustStatement(f"none ({SIMULATED})", mine, weights, mine, (SIMULATED,))
