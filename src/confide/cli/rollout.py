"""`confide deploy rollout`: a new version takes the place of an old one, step by step."""

import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.cli import output
from confide.cli.keys import Folder, KeyIdArgument, key_folder, key_store, read_policy
from confide.cli.options import InsecureNoTls, Json

if TYPE_CHECKING:
    from confide.rollout import KeyPolicies, Step


def command(
    key: KeyIdArgument,
    policy: Annotated[Path, typer.Option(help="TOML: what the new version's evidence must show.")],
    new: Annotated[
        list[str] | None, typer.Option(help="Address of the new version itself; may be repeated, for its replicas.")
    ] = None,
    public: Annotated[str | None, typer.Option(help="The address that users have, where a balancer answers.")] = None,
    allow_for: Annotated[
        str, typer.Option("--for", help="How long both versions are allowed: 7d, 36h or 90m.")
    ] = "24h",
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Only allow both versions from now on; without it, go on from there.")
    ] = False,
    user_policy: Annotated[
        Path | None, typer.Option(help="File to write, for users: the policy by which both versions are accepted.")
    ] = None,
    old: Annotated[
        list[str] | None,
        typer.Option(help="Address of the old version itself, for the last receipts; may be repeated."),
    ] = None,
    nginx: Annotated[
        Path | None,
        typer.Option(help="Folder to write confide.servers and confide.replicas to, which nginx includes."),
    ] = None,
    check: Annotated[str, typer.Option(help="Command that checks the balancer's configuration: 'nginx -t'.")] = "",
    reload: Annotated[str, typer.Option(help="Command that has it take effect: 'nginx -s reload'.")] = "",
    old_metrics: Annotated[
        list[str] | None,
        typer.Option(help="Address of the old version's --metrics-port, to wait for its answers; may be repeated."),
    ] = None,
    drain: Annotated[int, typer.Option(help="Seconds to wait for the old version's answers.", min=3, max=86_400)] = 600,
    attestation_key: Annotated[
        list[str] | None,
        typer.Option(help="SHA-256 of a TPM's attestation key (DER) that you enrolled; may be repeated."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no vendor: take the machines' collateral.")] = False,
    ca: Annotated[Path | None, typer.Option(help="PEM file of the authorities to trust; the system's without.")] = None,
    folder: Folder = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Have a new version take the place of the old one: allow both for a time, appraise, switch, drain, retire.

    It can be cut off anywhere; the same command goes on. With --json each step is a line.
    """
    from confide.attest.requirements.base import period
    from confide.client.relying_party import RelyingParty
    from confide.rollout import AskedMachines, KeyPolicies, Rollout, Traffic

    if not prepare and (not new or public is None):
        raise typer.BadParameter("give --new and --public, or --prepare")
    if (nginx is not None or check) and not reload:
        raise typer.BadParameter("--nginx and --check go with --reload, the command that has it take effect")
    length = period(allow_for)
    commands = [_words(check), _words(reload)]
    policies = KeyPolicies(key_folder(folder), key_store(folder), key, read_policy(policy))
    wanted = policies.new_version  # refuses a policy of another kind before anything is changed

    def show(step: "Step") -> None:
        if step.name == "allow" and user_policy is not None:
            _write_policy(user_policy, policies)
        if json:
            output.result({"step": step.name, "state": step.state, **step.facts})
        else:
            output.console.print(_sentence(step), soft_wrap=True)

    if prepare or public is None:
        show(policies.allow(length, datetime.now(UTC)))
        return
    new = new or []
    party = RelyingParty.under(policies.current.simulated_root, wanted, attestation_key or [], offline=offline)
    with AskedMachines(party, [*new, *(old or []), public], ca, insecure_no_tls=insecure_no_tls) as machines:
        rollout = Rollout(
            policies,
            machines,
            Traffic(public, nginx, *commands),
            new,
            old or [],
            old_metrics or [],
            length,
            drain,
            lambda: datetime.now(UTC),
            time.sleep,
        )
        for step in rollout.steps():
            show(step)


def _write_policy(path: Path, policies: "KeyPolicies") -> None:
    from confide.attest.policy_toml import to_toml
    from confide.broker.appraisal import of_the_model
    from confide.disk.files import replace_file

    try:
        replace_file(path, to_toml(of_the_model(policies.current)).encode())
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written ({error.strerror})") from None


def _sentence(step: "Step") -> Text:
    facts = step.facts
    match step.name, step.state:
        case "allow", _ if facts["until"] is None:
            said = "The new version alone is allowed already."
        case "allow", _:
            said = f"Both versions are allowed until {facts['until']}."
        case "appraise", _:
            said = "\n".join(
                f"{one['url']} is the new version: {one['family']}, key {one['key'][:16]}"
                + (", SIMULATED: this protects nothing" if one["simulated"] else "")
                for one in facts["replicas"]
            )
        case "switch", "already":
            said = f"{facts['public']} was answered by the new version already."
        case "switch", _:
            said = f"{facts['public']} is answered by the new version now."
        case "drain", "skipped":
            said = (
                "The old version was not asked (--old-metrics); give it the time that its answers take, then stop it."
            )
        case "drain", _:
            gone = f" Nothing listens at {', '.join(facts['gone'])}." if facts["gone"] else ""
            said = f"The old version makes no more answers, and may be stopped.{gone}"
        case _, "waiting":
            said = (
                f"The old version is allowed until {facts['until']}, and not from then on; the same command tidies up."
            )
        case _:
            said = "The new version alone is allowed."
    return Text.assemble((f"{step.name:<10}", "bold"), said)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        raise typer.BadParameter(f"{command!r} has a quotation mark without its other one") from None
