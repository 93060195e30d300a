"""Train an adapter where nobody can look, have its perplexity certified before and after, and verify it all.

python examples/certified_training.py [TEXT]    # a text in UTF-8; this project's documentation without

In one process, with simulated hardware, which proves nothing: `confide train` and `confide certify` do the same with
key services, and close every way out first.
"""

import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from confide import OwnerKey
from confide.attest import Metric, SimulatedPolicy, Tdx
from confide.attest.collateral_lookup import SentCollateral
from confide.attest.simulated import SimulatedTee
from confide.attest.training import Lora
from confide.attest.verifier import Verifier
from confide.certify.dataset_checks import Duplicates, PersonalData
from confide.certify.runs import attester, fresh_nonce
from confide.certify.score import dataset_digest, describe, score
from confide.certify.train import Recipe, describe_training, train
from confide.certify.verify import verify_certificate
from confide.enclave.tee import Tee
from confide.packages.sealed.adapter import SealedAdapter
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.package import SealedPackage
from confide.packages.sealed.write import seal_model

RECIPE = Recipe(1, 7, Lora(rank=8, epochs=1, batch=4, context=256, learning_rate=2e-3), (Duplicates(), PersonalData()))
documents = [Path(name) for name in sys.argv[1:]] or [Path(__file__).parents[1] / "docs" / "attestation.md"]
text = "\n".join(document.read_text() for document in documents)
cut = text.rindex("\n", 0, len(text) * 4 // 5)  # four fifths to learn from, the rest to be measured on
corpus = "\n".join(map(json.dumps, ({"confide-corpus": 1, "name": "a text"}, {"text": text[:cut]}))).encode()
header = {"confide-task": 1, "name": "the rest of it", "metric": "perplexity", "context": 256}
task = "\n".join(map(json.dumps, (header, {"text": text[cut:]}))).encode()

with tempfile.TemporaryDirectory() as folder:
    model_key, adapter_key, place = ModelKey.generate(), ModelKey.generate(), Path(folder)
    keys = {key.id: key for key in (model_key, adapter_key)}
    model = seal_model(contents_of("demo"), place / "base", key=model_key, owner=OwnerKey.generate()).model_digest
    base, tee = SealedPackage.open(place / "base"), SimulatedTee.create(place / "tee")
    here = attester(Tee("simulated", tee, tee.collateral), SentCollateral())
    run = describe_training(here, model, dataset_digest(corpus), adapter_key.id, RECIPE, fresh_nonce())
    trained = train(here, base, corpus, run, lambda identity, _: keys[identity])
    trained.seal(place / "adapter")
    certificates = [trained.certificate]
    for adapter in (None, SealedAdapter.open(place / "adapter")):
        over = adapter.manifest.adapter if adapter else ""
        order = describe(here, model, dataset_digest(task), Metric.PERPLEXITY, fresh_nonce(), adapter=over)
        certificates.append(score(here, base, task, order, lambda identity, _: keys[identity], adapter=adapter))
        found = certificates[-1].predicate.score
        print(f"perplexity {found.value:g} ({found.low:g} to {found.high:g}) under {over[:16] or 'no adapter'}")
    policy, now = SimulatedPolicy((Tdx(mrtd=run.measurement["tdx mrtd"]),)), datetime.now(UTC)
    verdicts = [verify_certificate(one, Verifier(tee.roots()), policy, now) for one in certificates]
    print(f"all three certificates are verified: {all(verdict.verified for verdict in verdicts)}")
