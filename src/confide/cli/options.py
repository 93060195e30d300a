"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from confide.disk.secrets import HTTP_PROXY_PASSWORD, LICENCE, find_secret, read_secret, variable

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Shell = Annotated[Path, typer.Argument(help="The client folder that `confide split` wrote.", metavar="SHELL")]
OwnerFile = Annotated[
    Path | None, typer.Option("--owner", help="The owner's private key file; owner.key in your Confide folder if not.")
]
TrustedOwner = Annotated[
    str | None,
    typer.Option("--owner", help="Public key that must have signed the shell; any of `confide owner list` without."),
]
Ca = Annotated[
    Path | None, typer.Option(help="PEM file of the authorities to trust at a wss:// address; the system's without.")
]


def _without_password(proxy: str | None) -> str | None:
    before = (proxy or "").rpartition("@")[0]
    if ":" in (before.partition("//")[2] or before):
        raise typer.BadParameter(
            f"a password here can be read by others; give http://user@host:port, and the password in "
            f"{variable(HTTP_PROXY_PASSWORD)} or as the credential {HTTP_PROXY_PASSWORD}"
        )
    return proxy


Proxy = Annotated[
    str | None,
    typer.Option(
        help="HTTP proxy to reach the layer server through, http://[user@]host:port; what the environment names as "
        "one is not used.",
        callback=_without_password,
    ),
]
Patience = Annotated[
    float, typer.Option(help="Seconds to wait for a server that goes away meanwhile, before giving up.", min=0)
]
PlacementFile = Annotated[
    Path | None,
    typer.Option(
        "--placement",
        help="Instead, the file that `confide plan --machines` wrote: which servers have which layer groups.",
    ),
]
Checks = Annotated[Path | None, typer.Option(help="Check vectors of the model; SHELL/checks.msgpack by default.")]
Endpoint = Annotated[
    str | None,
    typer.Option(help="With s3://: the address of storage that speaks S3 elsewhere than at Amazon.", metavar="URL"),
]
InsecureNoTls = Annotated[
    bool, typer.Option("--insecure-no-tls", help="Allow a plain connection beyond this machine. Not for production.")
]
LicenceFile = Annotated[
    Path | None,
    typer.Option(help="File with your licence key for the model; CONFIDE_LICENCE or the credential `licence` without."),
]
UserPolicy = Annotated[
    Path | None, typer.Option(help="TOML: what evidence must show; without: genuine, not debugged, up to date.")
]
Replicas = Annotated[
    int | None,
    typer.Option(
        help="Workloads that a balancer at each address may hand requests to; 1 without. Each is verified.",
        min=1,
        max=16,
    ),
]
SimulatedRoot = Annotated[
    Path | None, typer.Option(help="Root of simulated hardware, to try things out: it protects nothing.")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Ask no vendor: take the workload's collateral, and show how old it is.")
]
ServerPlace = Annotated[
    str,
    typer.Argument(
        help="The layer server's package folder, or its --state folder, or its --ledger database.", metavar="SERVER"
    ),
]


def licence_key(file: Path | None) -> str:
    """The licence key of a file that the user names, else the one that is found; empty where there is none."""
    if file is not None:
        return read_secret(file)
    found = find_secret(LICENCE)
    return found.text if found else ""


def require_text(text: str, what: str) -> None:
    """Wrong usage for bytes of the command line that are no UTF-8, which Python keeps as halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter(f"{what} is not UTF-8 text; convert it, with `iconv` for example") from None


Protect = Annotated[
    str,
    typer.Option(help="all, attention, mlp, lm_head, several with commas, or a regular expression of layer names."),
]
WeightBits = Annotated[
    list[str] | None,
    typer.Option(help="Bits of the weights, 2 to 8: 4, or mlp=4 for layers that a pattern finds; repeatable."),
]
ActivationBits = Annotated[
    list[str] | None, typer.Option(help="The most bits of the activations, 8 to 15, in the same way; repeatable.")
]
Calibrate = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="A text file by which layers of few weight bits are rounded."),
]
