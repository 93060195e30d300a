"""Gramine manifests, as `gramine-manifest` writes them: TOML (Gramine documentation, Manifest syntax)."""

from collections.abc import Iterator, Mapping
from typing import Final

from confide.deploy.lint import rules
from confide.deploy.lint.commands import in_command, in_variable, mapping, sequence, words_of
from confide.deploy.lint.rules import Finding

_NAMED: Final = {
    "insecure__use_cmdline_argv": rules.HOST_ARGUMENTS,
    "insecure__use_host_env": rules.HOST_ENVIRONMENT,
    "insecure__disable_aslr": rules.ASLR_OFF,
}
_VERBOSE: Final = ("debug", "trace", "all")


def check(manifest: Mapping[str, object]) -> Iterator[Finding]:
    """Faults of a manifest."""
    loader, sgx, fs = (mapping(manifest.get(name)) for name in ("loader", "sgx", "fs"))
    yield from _insecure(manifest, ())
    yield from _sgx(sgx)
    if mapping(manifest.get("libos")).get("check_invalid_pointers") is False:
        yield Finding(rules.UNCHECKED_POINTERS, "libos.check_invalid_pointers")
    mounts = [*sequence(fs.get("mounts")), *sequence(fs.get("mount")), *mapping(fs.get("mount")).values()]
    for index, mount in enumerate(mounts):
        if mapping(mount).get("type") == "untrusted_shm":
            yield Finding(rules.UNTRUSTED_MEMORY, f"fs.mounts[{index}]")
    for name, value in mapping(loader.get("env")).items():
        place = f"loader.env.{name}"
        if mapping(value).get("passthrough"):
            yield Finding(rules.HOST_ENVIRONMENT, place)
        yield from in_variable(name, value, place)
    yield from in_command(words_of(loader.get("argv")), "loader.argv", gramine=True)
    if loader.get("log_level") in _VERBOSE:
        yield Finding(rules.VERBOSE_LOG, "loader.log_level")


def _sgx(sgx: Mapping[str, object]) -> Iterator[Finding]:
    if sgx.get("debug"):
        yield Finding(rules.SGX_DEBUG, "sgx.debug")
    if sgx.get("allowed_files"):
        yield Finding(rules.ALLOWED_FILES, "sgx.allowed_files")
    if sgx.get("file_check_policy", "strict") != "strict":
        yield Finding(rules.FILE_CHECKS_OFF, "sgx.file_check_policy")
    if sgx.get("remote_attestation") != "dcap":
        yield Finding(rules.NO_SGX_EVIDENCE, "sgx.remote_attestation")


def _insecure(table: Mapping[str, object], above: tuple[str, ...]) -> Iterator[Finding]:
    """Every key that Gramine calls insecure and that is not switched off, at any depth."""
    for name, value in table.items():
        if name.startswith("insecure__"):
            if value:
                yield Finding(_NAMED.get(name, rules.GRAMINE_INSECURE), ".".join((*above, name)))
            continue
        for inner in (value, *sequence(value)):
            if isinstance(inner, dict):
                yield from _insecure(mapping(inner), (*above, name))
