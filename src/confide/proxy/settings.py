"""The proxy's settings as a person writes them: one model by options, several by a TOML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from confide.client.options import HybridOptions
from confide.client.standing import MAX_REPLICAS
from confide.disk.files import read_guarded
from confide.disk.home import home
from confide.disk.secrets import read_secret
from confide.errors import InvalidSettings
from confide.net.http_proxy import HttpProxy
from confide.proxy.backend import Backend
from confide.proxy.shell import ShellAddress, ShellBackend
from confide.proxy.workload import WorkloadAddress, WorkloadBackend
from confide.shallow_toml import require_shallow

PORT: Final = 8790
AGAIN_SECONDS: Final = 600.0
_MAX_BYTES: Final = 64 << 10
_MAX_MODELS: Final = 64
_MAX_MARKS: Final = 4000
_Text = Annotated[str, Meta(min_length=1, max_length=2048)]


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """One [[model]]: `url` for a trusted environment, or `shell` and `server`, or `placement`, for the hybrid mode.

    name: what programs call it. licence_file: holds the licence key, so that this file need not; a model in a trusted
    environment may also be shown a program's own. Paths are taken from the file's own folder. The rest as the options
    of `confide proxy`.
    """

    name: Annotated[str, Meta(max_length=128)] = ""
    url: _Text | None = None
    policy: _Text | None = None
    simulated_root: _Text | None = None
    offline: bool = False
    replicas: Annotated[int, Meta(ge=1, le=MAX_REPLICAS)] | None = None
    shell: _Text | None = None
    server: _Text | None = None
    placement: _Text | None = None
    owner: _Text | None = None
    licence_file: _Text | None = None
    checks: _Text | None = None
    proxy: _Text | None = None
    patience: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    ca: _Text | None = None
    insecure_no_tls: bool = False

    def __repr__(self) -> str:
        """Without the rest: a proxy's address may hold a password."""
        return f"ModelSettings({self.name!r}, <hidden>)"


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    confide_proxy: Annotated[int, Meta(ge=1, le=1)]
    model: Annotated[list[ModelSettings], Meta(min_length=1, max_length=_MAX_MODELS)]


def read_settings(path: Path) -> list[ModelSettings]:
    """The models of a settings file, with paths that hold wherever the proxy runs. InvalidSettings if not."""
    try:
        text = read_guarded(path, _MAX_BYTES).decode()
        require_shallow(text, str(path), InvalidSettings, _MAX_MARKS)
        models = msgspec.toml.decode(text, type=_Document).model
    except OSError as error:
        raise InvalidSettings(f"{path} cannot be read ({error.strerror}); give the file of your models.") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidSettings(f"{path} cannot be understood: {str(error)[:300]}. Correct that place.") from None
    if any(model.insecure_no_tls for model in models):
        raise InvalidSettings(f"{path} has insecure-no-tls, which is only ever a flag; give --insecure-no-tls instead.")
    base = path.resolve().parent
    return [_placed(model, base) for model in models]


def default_path() -> Path:
    """The file that `confide setup` writes, and `confide proxy` reads where it is told nothing else."""
    return home() / "proxy.toml"


def write_settings(models: list[ModelSettings]) -> bytes:
    """A file's content with these models."""
    kept = [
        {name: value for name, value in msgspec.to_builtins(model).items() if value not in (None, False, "")}
        for model in models
    ]
    return msgspec.toml.encode({"confide-proxy": 1, "model": kept})


def _placed(model: ModelSettings, base: Path) -> ModelSettings:
    names = ("policy", "simulated_root", "shell", "placement", "licence_file", "checks", "ca")
    given = {name: value for name in names if (value := getattr(model, name)) is not None}
    return msgspec.structs.replace(model, **{name: str(base / value) for name, value in given.items()})


def backends(models: list[ModelSettings], licence: str = "") -> list[Backend]:
    """What stands behind each of them. licence: of those that name no file. InvalidSettings for what goes together with
    nothing.
    """
    return [_backend(model, licence) for model in models]


def _backend(model: ModelSettings, licence: str) -> Backend:
    of_hybrid = {
        "shell": model.shell,
        "server": model.server,
        "placement": model.placement,
        "owner": model.owner,
        "checks": model.checks,
        "proxy": model.proxy,
        "patience": model.patience is not None,
    }
    of_enclave = {
        "policy": model.policy,
        "simulated-root": model.simulated_root,
        "offline": model.offline,
        "replicas": model.replicas,
    }
    if model.url is not None:
        _require_none(of_hybrid, "a url is a model in a trusted environment")
        address = WorkloadAddress(
            model.url,
            model.policy,
            model.simulated_root,
            ca=model.ca,
            offline=model.offline,
            insecure_no_tls=model.insecure_no_tls,
            replicas=model.replicas or 1,
            licence=_licence(model, licence),
        )
        return WorkloadBackend(model.name, address, AGAIN_SECONDS)
    server = model.server if model.placement is None else Path(model.placement)
    if model.shell is None or server is None or (model.server and model.placement):
        raise InvalidSettings(
            "A model has a url, or a shell and either the address of its layer server (server) or its placement; give "
            "these."
        )
    _require_none(of_enclave, "a shell is verified by its owner's signature")
    options = HybridOptions(ca=model.ca, insecure_no_tls=model.insecure_no_tls, licence=_licence(model, licence))
    if model.proxy is not None:
        HttpProxy.parse(model.proxy)  # an address that may be used
    for name in ("owner", "checks", "proxy", "patience"):
        if (value := getattr(model, name)) is not None:
            options[name] = value
    return ShellBackend(model.name, ShellAddress(Path(model.shell), server, options))


def _require_none(foreign: Mapping[str, object], because: str) -> None:
    given = [name for name, value in foreign.items() if value]
    if given:
        raise InvalidSettings(f"{' and '.join(given)}: {because}; leave that out.")


def _licence(model: ModelSettings, otherwise: str) -> str:
    if model.licence_file is None:
        return otherwise
    return read_secret(Path(model.licence_file))
