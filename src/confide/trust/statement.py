"""What every protection can say of itself: who can see what, and on which assumption that rests."""

from dataclasses import dataclass

from confide.printable import printable


@dataclass(frozen=True)
class Exposure:
    """One thing worth protecting: who can see it, who cannot, and what the latter rests on."""

    seen_by: tuple[str, ...]
    hidden_from: tuple[str, ...]
    assumption: str


@dataclass(frozen=True)
class TrustStatement:
    """Who can see prompt, weights and output of a session.

    protection: by which means, such as `hybrid`; `none` where everything is in one place. leaks: what is seen all the
    same, by whoever the rest is hidden from.
    """

    protection: str
    prompt: Exposure
    weights: Exposure
    output: Exposure
    leaks: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"protection: {self.protection}"]
        for name in ("prompt", "weights", "output"):
            exposure: Exposure = getattr(self, name)
            hidden = f"; hidden from {_listed(exposure.hidden_from)}" if exposure.hidden_from else ""
            lines.append(f"{name}: seen by {_listed(exposure.seen_by)}{hidden} ({exposure.assumption})")
        return "\n".join(map(printable, [*lines, *(f"not hidden: {leak}" for leak in self.leaks)]))


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(names)
