"""Targets for policies, which come from strangers inside bundles."""

from confide.attest.policy import Policy
from confide.attest.policy_toml import any_policy_from_toml, to_toml
from confide.attest.policy_words import asked, left_open
from confide.attest.requirements import ScoreAtLeast, Sgx, Snp, SnpTcb, Tdx
from confide.attest.scores import Metric


def _policy(data: bytes) -> None:
    """A policy that is read can be written, read again, and explained."""
    policy = any_policy_from_toml(data.decode("utf-8", "replace"))
    if any_policy_from_toml(to_toml(policy)) != policy:
        raise RuntimeError("another policy was written than was read")
    _ = (list(asked(policy)), list(left_open(policy)), policy.exceptions.sentences())


def _seeds() -> list[bytes]:
    head = 'confide-policy = 1\nkind = "production"\n'
    written = Policy.all_of(
        Tdx(mrtd="ab" * 48, rtmrs=("", "cd" * 48), attributes_clear=("migratable",)),
        Sgx(mrsigner="ab" * 32, isvprodid=1),
        Snp(min_tcb=SnpTcb(snp=24, microcode=219), policy_clear=("smt",), migration_agent="none"),
        version="7",
    )
    scored = Policy.all_of(
        ScoreAtLeast("ab" * 32, Metric.PERPLEXITY, (Tdx(mrtd="cd" * 48),), at_most=60.0, max_age="90d")
    )
    table = to_toml(scored).replace('[[all]]\nrequire = "score-at-least"', "[[score-at-least]]")
    table = table.replace("[[all.signer]]", "[[score-at-least.signer]]")
    exceptions = 'grace = "30d"\nallow-tcb = ["Unknown"]\nrevocation = "if-available"\n'
    return [
        to_toml(written).encode(),
        to_toml(scored).encode(),
        table.encode(),
        (head + exceptions).encode(),
        f"{head}x = '''a''''\na.b.c = 1\n".encode(),
    ]


TARGETS = {"policy": _policy}
SEEDS = {"policy": _seeds}
