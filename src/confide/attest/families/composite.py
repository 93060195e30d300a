"""A confidential virtual machine with its GPUs: each verified on its own, and bound to one another.

Binding: the nonce of each GPU's report is the SHA-256 of the virtual machine's raw evidence (its quote or report,
without the parts beside it; of Azure's, whose report is as old as its start, the virtual TPM's quote). So each GPU
reported after that very quote was made, and answers to its measurements and its client's nonce. It does not prove by
itself that the GPU is plugged into that machine: anyone who has the quote can ask a GPU elsewhere. The measured guest
vouches for that, because its driver opens the SPDM session and the software in it asks; so a policy for composites
must name the guest's measurements.

The evidence's members are the virtual machine (SGX has no devices, so TDX, SEV-SNP, Azure or TPM) and then at least one
GPU; its own raw bytes and parts are empty. The collateral's members are theirs, in the same order.
"""

import hmac
from datetime import datetime
from hashlib import sha256
from typing import Final

from confide.attest.check import check
from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import Roots
from confide.attest.verifier import Verifier
from confide.errors import MalformedEvidence, WrongBinding, WrongCollateral

MAX_GPUS: Final = 16

_MACHINES: Final = (Family.TDX, Family.SNP, Family.AZURE, Family.TPM)


def gpu_nonce(machine: Evidence) -> bytes:
    """The nonce with which a virtual machine asks its GPUs for their reports: 32 bytes."""
    return sha256(machine.parts.get("quote", b"") if machine.family is Family.AZURE else machine.raw).digest()


def verify(evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims:
    """The claims of the machine and of each GPU, as members; their weakest, as the composite's own.

    report_data is the machine's. Measurements and identities stay with the members.
    """
    _check_members(evidence)
    if len(collateral.members) != len(evidence.members):
        raise WrongCollateral("A composite needs one collateral for each member, in the same order; give all of them.")
    verifier = Verifier(roots)
    claims = tuple(
        verifier.verify(one, its, now) for one, its in zip(evidence.members, collateral.members, strict=True)
    )
    expected = gpu_nonce(evidence.members[0])
    if not all(hmac.compare_digest(gpu.report_data, expected) for gpu in claims[1:]):
        raise WrongBinding(
            "A GPU's report was not made for this virtual machine's quote; ask it with the quote's SHA-256 as nonce."
        )
    _refuse_repeated(claims[1:])
    return _weakest(claims)


def _check_members(evidence: Evidence) -> None:
    machine, gpus = evidence.members[:1], evidence.members[1:]
    if (
        not machine
        or machine[0].family not in _MACHINES
        or not 1 <= len(gpus) <= MAX_GPUS
        or any(gpu.family is not Family.NVIDIA for gpu in gpus)
    ):
        raise MalformedEvidence(
            f"A composite is one virtual machine and then 1 to {MAX_GPUS} GPUs; send the members in that order."
        )


def _refuse_repeated(gpus: tuple[Claims, ...]) -> None:
    """One GPU must not stand for two, not even with two reports."""
    if len({gpu.identity["device_key"] for gpu in gpus}) != len(gpus):
        raise MalformedEvidence("One GPU's reports stand for several GPUs; send one report of each.")


def _weakest(claims: tuple[Claims, ...]) -> Claims:
    order = list(TcbStatus)
    return Claims(
        family=Family.COMPOSITE,
        root=RootKind.SIMULATED if any(one.root is RootKind.SIMULATED for one in claims) else RootKind.PRODUCTION,
        report_data=claims[0].report_data,
        speaks=claims[0].speaks,
        debug=any(one.debug for one in claims),
        tcb_status=max((one.tcb_status for one in claims), key=order.index),
        advisories=tuple(sorted({advisory for one in claims for advisory in one.advisories})),
        tcb_date=min((one.tcb_date for one in claims if one.tcb_date), default=None),
        valid_until=min((one.valid_until for one in claims if one.valid_until), default=None),
        members=claims,
        checks=(check("binding", "each GPU's report for this machine's quote", "so", ok=True, clause="RFC 9334, 3.3"),),
    )
