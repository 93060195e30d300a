"""A page of models with their verified scores: one HTML file, without scripts and without anything from elsewhere."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from typing import Final

from confide.attest.certificates import Role
from confide.attest.scores import ScoreCertificate
from confide.printable import printable
from confide.receipts.verdict import Verdict

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8886; --dim: #767676; --bad: #b00020; }
@media (prefers-color-scheme: dark) { :root { --dim: #a0a0a0; --bad: #ff8a80; } }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 60rem; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .5rem .75rem .5rem 0; text-align: left; vertical-align: top; }
td:nth-child(5) { white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
small { color: var(--dim); display: block; }
code { font-size: .85em; overflow-wrap: anywhere; }
.simulated { border: 2px solid var(--bad); color: var(--bad); font-weight: 700; padding: .5rem .75rem; }
"""
_STYLE_HASH: Final = b64encode(sha256(_STYLE.encode()).digest()).decode()
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Certified scores</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>Certified scores</h1>
{warning}<p>Each score was measured inside a trusted execution environment whose evidence was verified on {day}, against
a policy with the digest <code>{policy}</code>. This page is not evidence: verify a certificate yourself with
<code>confide certify verify</code>.</p>
<div class="scroll">
<table>
<thead><tr><th scope="col">Model</th><th scope="col">Task</th><th scope="col">Metric</th>
<th scope="col" class="number">Score</th><th scope="col">Measured</th><th scope="col">Certificate</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
</main>
</body>
</html>
"""
_WARNING: Final = '<p class="simulated">SIMULATED: these scores prove nothing about any hardware.</p>\n'
_NONE: Final = '<tr><td colspan="6">No certificate is verified.</td></tr>'


@dataclass(frozen=True)
class Listed:
    """A certificate that was looked at. file: its name, for links and for people."""

    file: str
    certificate: ScoreCertificate
    verdict: Verdict


def page(listed: Iterable[Listed], day: str, policy: str) -> str:
    """The page of those that are verified, by task, the better score first. day: of that. policy: its digest."""
    good = sorted((one for one in listed if one.verdict.verified), key=_place)
    warning = _WARNING if any(one.verdict.simulated for one in good) else ""
    rows = "\n".join(map(_row, good)) or _NONE
    return _PAGE.format(
        style=_STYLE, hash=_STYLE_HASH, warning=warning, day=_text(day), policy=_text(policy), rows=rows
    )


def _place(one: Listed) -> tuple[str, str, str, float, str]:
    predicate = one.certificate.predicate
    better = predicate.score.value if predicate.run.metric.less_is_better else -predicate.score.value
    return predicate.task, predicate.run.dataset, predicate.run.metric.value, better, one.file


def _row(one: Listed) -> str:
    predicate, score = one.certificate.predicate, one.certificate.predicate.score
    run, prepared = predicate.run, predicate.prepared
    kind = "blind run, approved by both owners" if one.certificate.approved_by(Role.DATA) else "dataset in the clear"
    made = (
        ""
        if prepared is None
        else f"<small>{_text(prepared.harness)} {_text(prepared.version)}, {_text(prepared.measure)}</small>"
    )
    cells: Sequence[tuple[str, str]] = (
        ("", f"{_text(one.certificate.name)}<small><code>{_text(run.model)}</code></small>{_adapter(run.adapter)}"),
        ("", f"{_text(predicate.task)}<small><code>{_text(run.dataset)}</code></small><small>{kind}</small>{made}"),
        ("", f"{_text(run.metric.value)}<small>{predicate.counts.scored:,} {_text(predicate.counts.unit)}</small>"),
        (
            ' class="number"',
            f"{score.value:g}<small>{score.low:g} to {score.high:g}</small><small>at {score.confidence:.0%}</small>",
        ),
        ("", f"{predicate.finished:%Y-%m-%d}<small>Confide {_text(run.harness.version)}</small>"),
        ("", f"<code>{_text(one.file)}</code>"),
    )
    return f"<tr>{''.join(f'<td{attributes}>{content}</td>' for attributes, content in cells)}</tr>"


def _adapter(digest: str) -> str:
    return f"<small>under the adapter <code>{_text(digest)}</code></small>" if digest else ""


def _text(words: str) -> str:
    return escape(printable(words), quote=True)
