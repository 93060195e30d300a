"""What is known of a model behind the proxy, as JSON for people and programs: what was verified, and what others saw.

A workload and a server chose some of the words; each is one printable line here. Nothing of a conversation is in it.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from confide.attest.configuration import Configuration
from confide.attest.explain import verdict
from confide.attest.policy import AnyPolicy
from confide.attest.policy_words import asked, left_open
from confide.client.standing import Standing
from confide.printable import printable
from confide.rlwe.parameters import ANSWER_BITS
from confide.trust.enclave import ENCRYPTED, enclave_trust, replicas_trust, root_of

if TYPE_CHECKING:
    from confide.hybrid.model import HybridModel


def enclave_facts(standing: Standing, policy: AnyPolicy) -> dict[str, Any]:
    """Of a workload that was appraised under a policy, the last one of several. age_seconds: since then, by this
    machine's clock. replicas: those that are relied on, who answered last at the end, and why others are not.
    """
    verified = standing.last
    result, statement = verified.result, verified.statement
    met = standing.replicas or (verified,)
    each = [enclave_trust(one.result, ENCRYPTED, one.statement.configuration) for one in met]
    members = result.claims.everyone() if result.claims else ()
    return {
        "family": result.family.value,
        "simulated": result.simulated,
        "verdict": verdict(result),
        "root": printable(root_of(result)),
        "verified_at": result.at.astimezone(UTC).isoformat(timespec="seconds"),
        "age_seconds": round((datetime.now(UTC) - result.at).total_seconds()),
        "measurements": {
            f"{claims.family.value} {printable(name)}": value.hex()
            for claims in members
            for name, value in claims.measurements.items()
        },
        "model_digest": printable(statement.model_digest),
        "channel_key": verified.key.id.hex(),
        "checks": [
            {
                "code": check.code,
                "outcome": check.outcome.value,
                "expected": check.expected,
                "seen": check.seen,
                "clause": check.clause,
            }
            for check in result.checks
        ],
        "policy": {
            "asks": [printable(sentence) for sentence in asked(policy)],
            "leaves_open": [printable(sentence) for sentence in left_open(policy)],
            "exceptions": [printable(sentence) for sentence in result.exceptions],
        },
        "trust": str(replicas_trust(each, standing.limit)),
        "replicas": {
            "at_most": standing.limit,
            "verified": [
                {
                    "channel_key": one.key.id.hex(),
                    "family": one.result.family.value,
                    "verified_at": one.result.at.astimezone(UTC).isoformat(timespec="seconds"),
                    "model_digest": printable(one.statement.model_digest),
                }
                for one in standing.replicas
            ],
            "refused": [printable(str(error)) for error in standing.problems],
        },
        "runs": _runs(statement.configuration),
    }


def _runs(configuration: Configuration | None) -> dict[str, Any] | None:
    """What a workload states of what runs in it; None where it does not say."""
    if configuration is None:
        return None
    engine, weights = configuration.engine, configuration.weights
    return {
        "confide": printable(configuration.confide.version),
        "engine": printable(f"{engine.name} {engine.version}") if engine else "",
        "quantization": printable(weights.quantization) if weights else "",
        "dtype": printable(weights.dtype) if weights else "",
        "weights_digest": weights.digest if weights else "",
        "context": configuration.context,
        "adapters": [printable(name) for name in configuration.adapters],
        "egress": configuration.egress.value,
        "upstream": printable(configuration.upstream.name) if configuration.upstream else "",
        "self_test": configuration.self_test.outcome,
    }


def hybrid_facts(hybrid: "HybridModel") -> dict[str, Any]:
    """Of an open shell.

    last_sent: the beginning of the last message, as the layer server got it, in hexadecimal. lengths: of the last
    answer, in tokens. disclosed: of what solves the weights of the most disclosed layers, the share that the licence
    had seen by the server's word when it connected; None without a connection. bits_per_token: the most that answers
    disclose of the weights for each token.
    """
    product = hybrid.product
    traffic, lengths = product.traffic, hybrid.lengths
    return {
        "trust": str(hybrid.trust),
        "bytes_up": traffic.bytes_up,
        "bytes_ahead": traffic.bytes_ahead,
        "bytes_down": traffic.bytes_down,
        "round_trips": traffic.round_trips,
        "last_sent": traffic.last_sent.hex(),
        "lengths": None
        if lengths is None
        else {
            "prompt": lengths.prompt,
            "visible_prompt": lengths.visible_prompt,
            "answer": lengths.answer,
            "visible_answer": lengths.visible_answer,
        },
        "tokens_ready": product.tokens_ready,
        "layer_groups": len(product.groups),
        "bits_per_token": ANSWER_BITS * sum(checked.parameters.rows for checked in product.groups),
        "disclosed": product.disclosed,
    }
