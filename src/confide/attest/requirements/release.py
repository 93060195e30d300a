"""Requirements on what was released: measurements that a build service signed."""

from collections.abc import Iterator
from typing import Final

import msgspec

from confide.attest.check import Check, Outcome, check
from confide.attest.claims import Claims
from confide.attest.release import Release, Signer, read_trusted_root, verify_release
from confide.attest.requirements.base import ABSENT, Requirement, Subject, day, families_of, period
from confide.errors import AttestationError, InvalidPolicy

_CLAUSE: Final = "in-toto Attestation Framework 1.0; Sigstore Client Spec 4"
_BEFORE_WILDCARD: Final = ("/", "@")


class SignedRelease(Requirement, frozen=True, tag="signed-release"):
    """The measurements are those of a release that this identity signed, not longer ago than max_age, such as 90d.

    identity: as Sigstore's certificate names it, such as https://github.com/OWNER/REPOSITORY/.github/workflows/
    release.yml@refs/tags/v1.0; a `*` may stand at its end, after a `/` or an `@`. issuer: who vouches for it, such as
    https://token.actions.githubusercontent.com. trusted_root: the text of Sigstore's trusted_root.json; it is never
    fetched. The release itself comes with the evidence, as the document `release`.
    """

    identity: str
    issuer: str
    max_age: str
    trusted_root: str

    def __post_init__(self) -> None:
        name, wildcard, rest = self.identity.partition("*")
        if not self.issuer or not name or rest or (wildcard and not name.endswith(_BEFORE_WILDCARD)):
            raise InvalidPolicy(
                "signed-release takes an issuer and an identity, which may end in `*` after a `/` or an `@`; name both."
            )
        period(self.max_age)
        try:
            read_trusted_root(self.trusted_root)
        except (ValueError, msgspec.MsgspecError, RecursionError):
            raise InvalidPolicy(
                "trusted_root holds no trusted root of Sigstore; put in the text of its trusted_root.json."
            ) from None

    @property
    def signer(self) -> Signer:
        """Whose signature counts."""
        return Signer(self.identity, self.issuer, self.trusted_root)

    def sentences(self) -> Iterator[str]:
        yield f"the measurements of a release that {self.identity} of {self.issuer} signed at most {self.max_age} ago"

    def checks(self, subject: Subject) -> Iterator[Check]:
        expected = f"signed by {self.identity} of {self.issuer}"
        if subject.release is None:
            yield check("signed-release", expected, "no release came with the evidence", ok=False, clause=_CLAUSE)
            return
        try:
            release = verify_release(subject.release, self.signer, subject.now)
        except AttestationError as error:
            yield Check("signed-release", expected, f"{error.code}: {error}", Outcome.FAIL, _CLAUSE)
            return
        yield check("signed-release", expected, f"{release.identity}, {day(release.signed)}", ok=True, clause=_CLAUSE)
        fresh = subject.now - release.signed <= period(self.max_age)
        yield check("release-age", f"signed at most {self.max_age} ago", f"signed {day(release.signed)}", fresh)
        yield self._measured(release, subject)

    def _measured(self, release: Release, subject: Subject) -> Check:
        """The speaker's, and those of every other part of whose family the release knows any."""
        expected = "the measurements of the release"
        speaker = subject.speaker
        if not release.of(speaker.family):
            listed = ", ".join(dict.fromkeys(one.family.value for one in release.measurements))
            seen = f"a release for {listed}, and this is {families_of(subject.claims)}"
            return check("release-measurements", expected, seen, ok=False)
        known = [claims for claims in subject.claims.everyone() if claims is speaker or release.of(claims.family)]
        others = [one for one in known if not any(allowed.fits(one) for allowed in release.of(one.family))]
        differing = "; ".join(f"{one.family}: {_differing(release, one)}" for one in others)
        return check("release-measurements", expected, differing or "the same", not others)


def _differing(release: Release, claims: Claims) -> str:
    """Which measurements are others than in the alternative that fits best."""
    misses = [
        [name for name, value in one.values.items() if claims.measurements.get(name, b"").hex() != value]
        for one in release.of(claims.family)
    ]
    fewest = min(misses, key=len)
    return ", ".join(f"{name} {'differs' if name in claims.measurements else ABSENT}" for name in fewest)
