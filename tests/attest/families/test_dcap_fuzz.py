"""Whatever comes in, verification gives claims or one of the typed errors, and no other exception."""

from contextlib import suppress
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.attest.families.conftest import Case

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families import sgx, tdx
from confide.attest.families.dcap_quote import Quote
from confide.attest.families.dcap_signature import parse
from confide.errors import AttestationError

fuzz = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
header = st.sampled_from([b"\x03\0\x02\0\0\0\0\0", b"\x04\0\x02\0\x81\0\0\0", b"\x05\0\x02\0\x81\0\0\0"])


@fuzz
@given(start=header | st.just(b""), rest=st.binary(max_size=3000))
def test_any_bytes(simulated: Case, start: bytes, rest: bytes) -> None:
    for module, family in ((sgx, Family.SGX), (tdx, Family.TDX)):
        with suppress(AttestationError):
            module.verify(Evidence(family, start + rest), simulated.collateral, simulated.roots, simulated.now)
            raise AssertionError("random bytes were believed")
    with suppress(AttestationError):
        parse(start + rest)
        raise AssertionError("random bytes were believed")


@fuzz
@given(at=st.integers(0, 10_000), new=st.binary(max_size=40), cut=st.integers(0, 40))
def test_any_change(simulated: Case, at: int, new: bytes, cut: int) -> None:
    raw = simulated.evidence.raw
    at %= len(raw)
    changed = simulated.with_raw(raw[:at] + new + raw[at + cut :])
    with suppress(AttestationError):
        assert changed.verify() == simulated.verify()
    with suppress(AttestationError):
        assert parse(changed.evidence.raw, simulated.roots) == parse(raw, simulated.roots)


@fuzz
@given(at=st.integers(0, 100_000), new=st.binary(max_size=20), cut=st.integers(0, 20))
def test_any_change_of_the_collateral(simulated: Case, at: int, new: bytes, cut: int) -> None:
    document = simulated.collateral.documents["dcap"]
    at %= len(document)
    changed = Collateral({"dcap": document[:at] + new + document[at + cut :]})
    with suppress(AttestationError):
        assert replace(simulated, collateral=changed).verify() == simulated.verify()


def test_every_byte_of_what_is_signed(simulated: Case) -> None:
    raw = simulated.evidence.raw
    quote = Quote.parse(raw)
    for at in [*range(len(quote.signed)), *range(len(quote.signed), raw.index(quote.chain), 3)]:
        changed = raw[:at] + bytes([raw[at] ^ 0x80]) + raw[at + 1 :]
        with suppress(AttestationError):
            simulated.with_raw(changed).verify()
            raise AssertionError(f"byte {at} was changed, and the quote believed")
