"""Graphs to test with: guard, model and retrieval, of two owners of three and a key to recover with."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.graph.history import History, Proposal, Signature
from confide.graph.manifest import Draft, Version
from confide.packages.owner import OwnerKey

NOW = datetime(2026, 2, 19, 12, tzinfo=UTC)
OWNERS = [OwnerKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in range(1, 7)]
ALICE, BOB, CAROL, SPARE, MALLORY, DAVE = OWNERS
POLICY = 'confide-policy = 1\nkind = "simulated"\n'
MEASURED = 'confide-policy = 1\nkind = "production"\n[[all]]\nrequire = "tdx"\nmrtd = "' + "ab" * 48 + '"\n'
DIGESTS = {"guard": "11" * 32, "model": "22" * 32, "retrieval": "33" * 32}

DRAFT = f"""
confide-graph = 1
name = "desk"
entry = "guard"
quorum = 2
owners = {[str(one.public) for one in (ALICE, BOB, CAROL)]}
recovery-quorum = 1
recovery = ["{SPARE.public}"]

[services.guard]
digest = "{DIGESTS["guard"]}"
policy = "policy.toml"
asks = ["model"]

[services.model]
digest = "{DIGESTS["model"]}"
policy = "policy.toml"
asks = ["retrieval"]

[services.retrieval]
digest = "{DIGESTS["retrieval"]}"
policy = "policy.toml"
"""


def version(draft: str = DRAFT, before: Version | None = None, policy: str = POLICY) -> Version:
    read = Draft.parse(draft)
    return read.version(dict.fromkeys(read.files(), policy), before)


def with_digests(digests: Mapping[str, str], draft: str = DRAFT) -> str:
    for name, digest in digests.items():
        draft = draft.replace(DIGESTS[name], digest)
    return draft


def signed(made: Version, by: Sequence[OwnerKey] = (ALICE, BOB), **kind: Any) -> Proposal:
    return Proposal(1, made.manifest, tuple(Signature.make(made.manifest, owner, **kind) for owner in by))


def begun(draft: str = DRAFT) -> History:
    return History.begin(signed(version(draft)), NOW)
