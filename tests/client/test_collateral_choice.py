"""Two evaluations of Intel's are valid at once: a host that sends the older one gets nothing for it."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from tests.attest.families.forged_snp import snp_case

from confide.attest.collateral import Collateral, Provenance
from confide.attest.collateral_cache import CollateralCache, Response
from confide.attest.collateral_lookup import CollateralSource, SentCollateral, VendorCollateral, find_collateral
from confide.attest.defaults import Exceptions
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import SimulatedPolicy
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import Listing
from confide.attest.verifier import Verifier
from confide.client.relying_party import RelyingParty, Verified
from confide.enclave.workload import Workload
from confide.errors import AttestationRefused, CollateralUnavailable, MalformedEvidence

NONCE = "ab" * 32
NOW = datetime.now(UTC).replace(microsecond=0)
OLD = Listing(NOW - timedelta(days=2), evaluation=20)
NEW = Listing(NOW - timedelta(days=1), evaluation=22)
NEW_AND_WORSE = replace(NEW, status="OutOfDate", newer=NOW - timedelta(hours=12))


class Vendor:
    """Answers as Intel does, for the simulated machine."""

    def __init__(self, tee: SimulatedTee, listing: Listing) -> None:
        self.tee, self.listing, self.asked = tee, listing, 0

    def __call__(self, url: str) -> Response:
        self.asked += 1
        made = json.loads(self.tee.collateral(self.listing).documents["dcap"])
        path = urlsplit(url).path
        if path.endswith("pckcrl"):
            headers = {"sgx-pck-crl-issuer-chain": quote(made["pck_crl_issuer_chain"])}
            return Response(200, bytes.fromhex(made["pck_crl"]), headers)
        if path.endswith("/tcb"):
            return _signed("tcbInfo", made["tcb_info"], made["tcb_info_signature"], "tcb-info-issuer-chain", made)
        if path.endswith("qe/identity"):
            header = "sgx-enclave-identity-issuer-chain"
            return _signed("enclaveIdentity", made["qe_identity"], made["qe_identity_signature"], header, made)
        return Response(200, bytes.fromhex(made["root_ca_crl"]))


def _signed(name: str, text: str, signature: str, header: str, made: dict[str, str]) -> Response:
    body = f'{{"{name}":{text},"signature":"{signature}"}}'.encode()
    return Response(200, body, {header: quote(made["tcb_info_issuer_chain"])})


@pytest.fixture(scope="module")
def tee(tmp_path_factory: pytest.TempPathFactory) -> SimulatedTee:
    return SimulatedTee.create(tmp_path_factory.mktemp("machine") / "tee", NOW - timedelta(days=3))


def vendors(tee: SimulatedTee, cache: CollateralCache, *, offline: bool = False) -> VendorCollateral:
    return VendorCollateral(cache, offline, tee.roots())


Ask = Callable[[CollateralSource], Verified]


@pytest.fixture
def ask(tee: SimulatedTee) -> Ask:
    """A user who asks a workload that sends the older evaluation, in which it is up to date."""

    def ask(source: CollateralSource, exceptions: Exceptions | None = None) -> Verified:
        policy = SimulatedPolicy(exceptions=exceptions or Exceptions())
        party = RelyingParty(Verifier(tee.roots()), policy, source)
        return party.appraise(Workload(tee, lambda: tee.collateral(OLD)).attest(NONCE), NONCE, NOW)

    return ask


def refusal(ask: Ask, source: CollateralSource) -> tuple[str, ...]:
    with pytest.raises(AttestationRefused) as caught:
        ask(source)
    return caught.value.checks


def test_what_the_vendor_says_counts_and_not_what_was_sent(tee: SimulatedTee, ask: Ask, tmp_path: Path) -> None:
    vendor = Vendor(tee, NEW_AND_WORSE)
    source = vendors(tee, CollateralCache(tmp_path, vendor))
    assert refusal(ask, source) == ("tcb-status",)
    assert vendor.asked == 4
    vendor = Vendor(tee, NEW)
    verified = ask(vendors(tee, CollateralCache(tmp_path / "other", vendor)))
    seen = {check.code: check.seen for check in verified.result.checks}
    assert seen["tcb-evaluation"] == "22"
    assert "fetched less than an hour ago" in seen["collateral-valid"]


def test_offline_it_takes_what_was_sent_only_if_it_knows_of_nothing_newer(
    tee: SimulatedTee, ask: Ask, tmp_path: Path
) -> None:
    def offline(folder: str) -> VendorCollateral:
        return vendors(tee, CollateralCache(tmp_path / folder, None), offline=True)

    assert refusal(ask, offline("ignorant")) == ("tcb-evaluation",)
    assert refusal(ask, SentCollateral()) == ("tcb-evaluation",)
    ask(vendors(tee, CollateralCache(tmp_path / "knows 20", Vendor(tee, OLD))))
    verified = ask(offline("knows 20"))
    seen = {check.code: check.seen for check in verified.result.checks}
    assert "2 days old; the workload chose it" in seen["collateral-valid"]
    ask(vendors(tee, CollateralCache(tmp_path / "knows 22", Vendor(tee, NEW))))
    assert refusal(ask, offline("knows 22")) == ("tcb-evaluation",)


def test_it_never_falls_back(tee: SimulatedTee, ask: Ask, tmp_path: Path) -> None:
    cache = CollateralCache(tmp_path, Vendor(tee, NEW))
    ask(vendors(tee, cache))
    for file in tmp_path.iterdir():
        if not file.name.startswith("evaluation-"):
            file.unlink()
    assert refusal(ask, vendors(tee, CollateralCache(tmp_path, Vendor(tee, OLD)))) == ("tcb-evaluation",)


def test_only_what_was_fetched_and_holds_is_learnt(tee: SimulatedTee, ask: Ask, tmp_path: Path) -> None:
    refusal(ask, vendors(tee, CollateralCache(tmp_path, None), offline=True))
    forger = SimulatedTee.create(tmp_path / "forger", NOW - timedelta(days=3))
    refusal(ask, vendors(tee, CollateralCache(tmp_path, Vendor(forger, NEW))))
    assert not list(tmp_path.glob("evaluation-*"))


def test_numbers_only_grow(tmp_path: Path) -> None:
    cache = CollateralCache(tmp_path, None)
    for learnt, newest in ((20, 20), (22, 22), (21, 22)):
        cache.learn_evaluation("tdx 00", learnt)
        assert cache.newest_evaluation("tdx 00") == newest
        assert CollateralCache(tmp_path, None).newest_evaluation("tdx 00") == newest
    assert cache.newest_evaluation("sgx 00") is None
    for file in tmp_path.iterdir():
        file.write_bytes(b"\xff")
    assert cache.newest_evaluation("tdx 00") is None


def test_offline_with_nothing_sent_the_cache_has_to_do(tee: SimulatedTee, tmp_path: Path) -> None:
    evidence = tee.quote(bytes(64))
    with pytest.raises(CollateralUnavailable):
        vendors(tee, CollateralCache(tmp_path, None), offline=True).find(evidence, Collateral())
    vendors(tee, CollateralCache(tmp_path, Vendor(tee, NEW))).find(evidence, Collateral())
    found = vendors(tee, CollateralCache(tmp_path, None), offline=True).find(evidence, Collateral())
    assert found.documents
    assert not found.provenance.sent


def test_what_no_vendor_publishes_comes_with_the_evidence(tee: SimulatedTee, tmp_path: Path) -> None:
    tpm, sent = Evidence(Family.TPM, b"quote"), Collateral({"ak": b"key"})
    cache = CollateralCache(tmp_path, Vendor(tee, NEW))
    assert find_collateral(cache, tpm, sent) == Collateral({"ak": b"key"}, provenance=Provenance(sent=True))
    both = Evidence(Family.COMPOSITE, b"", members=(tee.quote(bytes(64)), tpm))
    found = vendors(tee, cache).find(both, Collateral(members=(Collateral({"dcap": b"the host's"}), sent)))
    assert found.members[0].documents["dcap"] != b"the host's"
    assert found.members[1].documents == {"ak": b"key"}
    assert found.provenance.fetched is not None


def test_damaged_evidence_is_refused_for_what_it_is(tmp_path: Path) -> None:
    source = VendorCollateral(CollateralCache(tmp_path, None))
    with pytest.raises(MalformedEvidence):
        source.find(Evidence(Family.TDX, b"no quote"), Collateral())
    with pytest.raises(CollateralUnavailable):
        source.find(snp_case().evidence, Collateral())


def test_nobody_is_asked_about_a_strangers_quote(tee: SimulatedTee, ask: Ask, tmp_path: Path) -> None:
    vendor = Vendor(tee, NEW)
    assert refusal(ask, VendorCollateral(CollateralCache(tmp_path, vendor))) == ("unknown-root",)
    assert vendor.asked == 0
