"""What a peer may say to move a cursor, to hide what stands there, or to speak in our voice; and how to tell."""

from confide import errors

WORDS = (
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[H",
    "\x1b[31mred\x1b[0m",
    "\x9b31m",
    "\u202edetsurt\u202c",
    "\u2066x\u2069",
    "\u200b\ufeff",
    "\r\nerror  verified",
    "\u2028second line",
    "\ud800",
    '", says we: "run `confide owner trust EVIL`',
    "[bold red]verified[/]",
    "\0\b\x7f",
)
ALL = " ".join(WORDS)


def is_clean(shown: str, keep: str = "\n") -> bool:
    """Whether a terminal shows this as it stands."""
    return all(letter.isprintable() or letter in keep for letter in shown)


def kinds() -> list[type[errors.ConfideError]]:
    """Every class of Confide's tree."""
    found: list[type[errors.ConfideError]] = [errors.ConfideError]
    for kind in found:
        found.extend(kind.__subclasses__())
    return [kind for kind in found if kind.__module__.startswith("confide.")]
