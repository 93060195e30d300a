"""The configuration of this process, for its statement: which Confide, which engine, and what else decides answers.

What it cannot know of itself: whether the files it hashes are those that were loaded. A measured, read-only image says
that; the digest says which Confide is in it.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from confide.attest.configuration import (
    Build,
    Configuration,
    Egress,
    EngineUsed,
    SamplingDefaults,
    Settings,
    WeightsHeld,
)
from confide.enclave.api.limits import Limits
from confide.enclave.engines.engine import Engine, Sampling
from confide.errors import ConfideError
from confide.version import VERSION

_BEHAVIOUR: Final = re.compile(
    r"(ATEN|BLIS|CONFIDE|CUBLAS|CUDA|CUDNN|DNNL|GGML|GOMP|GOTO|HF|HIP|HUGGINGFACE|HUGGING_FACE|KMP|LD|LLAMA|LLAMA_ARG|"
    r"MALLOC|MKL|NCCL|NPY|NUMEXPR|NVIDIA|OMP|ONEDNN|OPENBLAS|OPENSSL|PYTHON|PYTORCH|ROCM|SAFETENSORS|SSL|TOKENIZERS|"
    r"TORCH|TORCHINDUCTOR|TRANSFORMERS|TRITON|UV|XLLAMACPP)_?[A-Z0-9_]*|SSLKEYLOGFILE|GLIBC_TUNABLES|XDG_CONFIG_HOME"
)
"""Variables that Confide or a library it runs on reads. LD_PRELOAD and PYTHONPATH change the most of all."""
_SECRET: Final = re.compile(r".*(TOKEN|KEY|PASSPHRASE|PASSWORD|SECRET|LICENCE|CREDENTIALS?)")
_SET: Final = "set, and secret"
_LONGEST: Final = 1024
_MOST: Final = 128


@cache
def build() -> Build:
    """This Confide. digest: SHA-256 over a line `SHA-256  path` for each file of the package, in order of their paths.

    As `sha256sum` prints them, so that whoever has the source or the wheel can compute it. Compiled files do not count.
    """
    root = Path(__file__).resolve().parent.parent
    lines = []
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if path.is_file() and "__pycache__" not in name.parts:
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name.as_posix()}\n")
    return Build(VERSION, hashlib.sha256("".join(lines).encode()).hexdigest())


def behaviour(environment: Mapping[str, str]) -> Settings:
    """The variables that change what libraries do, in order. Secret ones by name alone, long ones by their SHA-256.

    Raises ConfideError for more of them than a statement holds.
    """
    found = {name: value for name, value in sorted(environment.items()) if _BEHAVIOUR.fullmatch(name)}
    if len(found) > _MOST:
        raise ConfideError(
            f"{len(found)} environment variables change how libraries behave, and a statement holds {_MOST}; unset "
            "those that are not needed."
        )
    return {name: _SET if _SECRET.fullmatch(name) else _printable(value) for name, value in found.items()}


def _printable(value: str) -> str:
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text if len(text) <= _LONGEST else f"sha256:{hashlib.sha256(os.fsencode(value)).hexdigest()}"


def own_configuration(options: Mapping[str, str] | None = None) -> Configuration:
    """Of a process that has loaded nothing yet. options: those of its command that change behaviour."""
    return Configuration(build(), options=dict(options or {}), environment=behaviour(os.environ))


def configuration_with(
    before: Configuration, engine: Engine, egress: Egress, answer_tokens: int = Limits.answer_tokens
) -> Configuration:
    """With what an engine has loaded, which it is asked for: its weights are read once more, in memory."""
    facts, digest = engine.facts, engine.weights_digest()
    return msgspec.structs.replace(
        before,
        engine=EngineUsed(facts.engine, facts.version, dict(facts.settings)),
        weights=WeightsHeld(digest, facts.quantization, facts.dtype) if digest else None,
        context=facts.context,
        adapters=facts.adapters,
        template=hashlib.sha256(facts.template.encode()).hexdigest() if facts.template else "",
        sampling=SamplingDefaults(Sampling.temperature, Sampling.top_p, Sampling.top_k, answer_tokens),
        egress=egress,
    )
