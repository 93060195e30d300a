"""`confide setup`: three questions, and what they answer becomes the file that `confide proxy` starts from."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from confide.cli import output
from confide.cli.files import read_file
from confide.cli.options import Json
from confide.disk.files import create_file, replace_file
from confide.disk.home import make_home
from confide.errors import InvalidSettings

_MAX_NAME = 64


def command(
    model: Annotated[
        str | None, typer.Option(help="https:// address of a model in a trusted environment, or a client folder.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Of an address: what its evidence must show, TOML.")] = None,
    server: Annotated[str | None, typer.Option(help="Of a client folder: the layer server's address.")] = None,
    licence_file: Annotated[Path | None, typer.Option(help="Of a client folder: file with the licence key.")] = None,
    name: Annotated[str | None, typer.Option(help="What programs call the model.")] = None,
    json: Json = False,
) -> None:
    """Ask what `confide proxy` needs to know of a model, and add it to its file. Options answer beforehand."""
    model = model or _asked("Where is the model? Its https:// address, or the client folder of its shell")
    place = Path(model).expanduser()
    if model.startswith(("https://", "http://")):
        given = _of_enclave(model, policy, asks=name is None, unfit=(server, licence_file))
    elif place.is_dir():
        given = _of_hybrid(place, server, licence_file, asks=name is None, unfit=(policy,))
    else:
        raise InvalidSettings(f"{model} is neither an https:// address nor a folder; give one of these.")
    given["name"] = name if name is not None else _asked("What shall programs call it?", _suggested(model))
    path = _add(given)
    if json:
        output.result({"file": str(path), "model": given["name"]})
        return
    output.console.print(f"[bold]{path}[/]  has the model now.", soft_wrap=True)
    output.note(
        "Start with `confide proxy`, or `confide proxy --background`; run `confide setup` again for another one."
    )


def _of_enclave(url: str, policy: Path | None, *, asks: bool, unfit: tuple[object, ...]) -> dict[str, Any]:
    if any(unfit):
        raise typer.BadParameter("--server and --licence-file go with a client folder")
    if policy is None and asks:
        said = _asked("What must its evidence show? A policy file; Enter for: genuine, not debugged, up to date", "")
        policy = Path(said).expanduser() if said else None
    if policy is not None:
        _require_policy(policy)
    return {"url": url, "policy": None if policy is None else str(policy.resolve())}


def _require_policy(path: Path) -> None:
    from confide.attest.policy_toml import policy_from_toml

    policy_from_toml(read_file(path).decode(errors="replace"))


def _of_hybrid(
    shell: Path, server: str | None, licence_file: Path | None, *, asks: bool, unfit: tuple[object, ...]
) -> dict[str, Any]:
    from confide.hybrid.client.dial import Dial
    from confide.packages.manifest import PackageKind
    from confide.packages.signing import open_package
    from confide.packages.trusted_owners import trusted_owners

    if any(unfit):
        raise typer.BadParameter("--policy goes with an https:// address")
    open_package(shell, PackageKind.SHELL, trusted_owners())  # its owner is trusted, or said to be not
    server = server or _asked("Where is its layer server? Such as wss://layers.example:8470")
    Dial(server)  # an address that may be used
    given: dict[str, Any] = {"shell": str(shell.resolve()), "server": server}
    if licence_file is None and asks:
        key = typer.prompt("Licence key, which is not shown; Enter for none", default="", hide_input=True, err=True)
        if key.strip():
            licence_file = _kept_licence(key.strip())
    if licence_file is not None:
        given["licence_file"] = str(licence_file.resolve())
    return given


def _kept_licence(key: str) -> Path:
    """A key in a file of its own, which nobody else may read."""
    folder = make_home()
    numbers = (number for number in range(1, 1000) if not (folder / f"licence-{number}").exists())
    path = folder / f"licence-{next(numbers)}"
    create_file(path, key.encode() + b"\n")
    return path


def _add(given: dict[str, Any]) -> Path:
    """Put a model into the file, with those that are there."""
    from confide.proxy.settings import ModelSettings, backends, default_path, read_settings, write_settings

    added = ModelSettings(**given)
    backends([added])  # refuses what goes together with nothing
    path = default_path()
    others = read_settings(path) if path.exists() else []
    if any(other.name == added.name for other in others):
        raise InvalidSettings(f"{path} has a model called {added.name!r}; choose another name, or edit the file.")
    make_home()
    replace_file(path, write_settings([*others, added]), mode=0o600)
    return path


def _suggested(model: str) -> str:
    last = re.split(r"[/\\]", model.rstrip("/\\").removesuffix("/client"))[-1]
    return re.sub(r"[^A-Za-z0-9_.\-]+", "-", last).strip("-")[:_MAX_NAME] or "private"


def _asked(question: str, default: str | None = None) -> str:
    answer: str = typer.prompt(question, default=default, show_default=bool(default), err=True)
    return answer.strip()
