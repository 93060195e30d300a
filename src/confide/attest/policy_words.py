"""A policy in sentences: what it asks for, what it does without, and what it leaves open."""

from collections.abc import Iterable, Iterator

from confide.attest.policy import AnyPolicy, SimulatedPolicy
from confide.attest.requirements import (
    AnyRequirement,
    Azure,
    ByCertificate,
    Corpus,
    Fresh,
    Model,
    Nvidia,
    ReportData,
    Requirement,
    Sgx,
    Snp,
    Tdx,
    VerifierService,
    all_ways,
    everywhere,
    measures_code,
    name_of,
)


def asked(policy: AnyPolicy) -> Iterator[str]:
    """What the policy asks for, the defaults first."""
    simulated = isinstance(policy, SimulatedPolicy)
    yield "a simulated root, which proves nothing" if simulated else "a root of the hardware's vendor"
    exceptions = policy.exceptions
    if not exceptions.allow_device_alone:
        yield "evidence that speaks for a workload, not that of a GPU or a TPM alone"
    if not exceptions.allow_debug:
        yield "debugging off"
    yield "collateral that is valid at the time of appraisal"
    if exceptions.min_tcb_evaluation:
        yield f"Intel's collateral of evaluation {exceptions.min_tcb_evaluation} or later"
    else:
        yield "Intel's collateral of the newest evaluation that was fetched here"
    yield f"a platform that its vendor calls {' or '.join(('UpToDate', *exceptions.allow_tcb))}"
    if exceptions.revocation == "required":
        yield "revocation lists that name none of the certificates"
    for requirement in policy.requirements:
        yield from requirement.sentences()


def names_code(policy: AnyPolicy) -> bool:
    """Whether every way to satisfy the policy takes measured code that it names."""
    return all_ways(policy.requirements, measures_code)


def left_open(policy: AnyPolicy) -> Iterator[str]:
    """What whoever wrote the policy may not have meant to leave open, with what to write."""
    asks = policy.requirements
    if not names_code(policy):
        yield "any code on such hardware is trusted: name measurements (mrtd, measurement, mrenclave, pcrs)"
    if not all_ways(asks, lambda one: isinstance(one, Fresh | ReportData)):
        yield "evidence of any date is trusted where nobody adds a nonce, as sessions and key brokers do: name fresh"
    if not all_ways(asks, lambda one: isinstance(one, Model | Corpus)):
        yield "any model may be served: name model (or corpus, of a retrieval service)"
    yield from _open_in(asks)
    for rule in (one for one in everywhere(asks) if isinstance(one, ByCertificate)):
        name = name_of(rule)
        yield from (f"{name}, who signed: {hole}" for hole in _open_in(rule.signer))
        real = not isinstance(policy, SimulatedPolicy) and not policy.exceptions.min_tcb_evaluation
        if real and any(isinstance(one, Sgx | Tdx | Azure) for one in everywhere(rule.signer)):
            yield f"{name}: no certificate by Intel's hardware passes until min-tcb-evaluation names a number"


def _open_in(asks: tuple[AnyRequirement, ...]) -> Iterator[str]:
    """In what single requirements ask for."""
    for one in dict.fromkeys(everywhere(asks)):
        match one:
            case Snp():
                yield from _open_in_snp(one)
            case Tdx():
                yield from _open_in_tdx(one)
            case Sgx():
                yield from _open_in_sgx(one)
            case Nvidia(drivers=None) | Nvidia(vbioses=None):
                yield "a GPU with any driver or VBIOS is trusted: name drivers and vbioses"
            case Azure():
                yield from _open_in_azure(one, asks)
            case VerifierService():
                yield f"whatever {one.service} says is believed: nothing of its evidence is verified here"
            case _:
                pass


def _open_in_snp(one: Snp) -> Iterator[str]:
    if one.min_tcb is None or not one.min_tcb.says_enough:
        yield (
            "sev-snp: no platform passes, since AMD publishes no list of current levels: name snp and microcode in "
            "min_tcb, as AMD's bulletins say for the product"
        )
    if one.migration_agent is None and "migrate-ma" not in (one.policy_clear or ()):
        yield 'sev-snp: a migration agent may move the guest: write policy_clear = ["migrate-ma"]'
    if one.vmpl is None:
        yield "sev-snp: software of any privilege level inside the guest may have asked: write vmpl = 0"
    if one.measurement is not None and one.host_data is None and one.id_key_digest is None:
        yield "sev-snp: what the host committed to is open: name host_data, if the guest relies on it"


def _open_in_tdx(one: Tdx) -> Iterator[str]:
    if one.mrtd is not None and one.rtmrs is None:
        yield "tdx: mrtd is the firmware alone, and what it starts is open: name rtmrs"
    if one.td_attributes is None and "migratable" not in (one.attributes_clear or ()):
        yield 'tdx: the machine may be migrated: write attributes_clear = ["migratable"]'


def _open_in_sgx(one: Sgx) -> Iterator[str]:
    if one.mrenclave is None and one.mrsigner is not None and one.isvprodid is None:
        yield "sgx: any enclave of this signer is trusted: name isvprodid and min_isvsvn, or mrenclave"


def _open_in_azure(one: Azure, asks: Iterable[AnyRequirement]) -> Iterator[str]:
    if not all_ways(asks, _measures_machine):
        yield (
            "azure-cvm: any paravisor is trusted, one too that makes up what its virtual TPM signs: name the paravisor "
            "as well, with sev-snp's measurement or tdx's mrtd"
        )
    if one.pcrs is None:
        yield "azure-cvm: what the paravisor starts is open: name pcrs"


def _measures_machine(one: Requirement) -> bool:
    return isinstance(one, Snp | Tdx) and measures_code(one)
