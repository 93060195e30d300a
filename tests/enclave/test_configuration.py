"""What a process says of itself: its own files, and the variables that change what libraries do."""

import hashlib
import subprocess
from pathlib import Path

import msgspec
import pytest

import confide
from confide.attest.configuration import Configuration, Egress
from confide.attest.statement import Statement
from confide.enclave.configuration import behaviour, build, own_configuration
from confide.errors import ConfideError


def test_the_digest_of_confide_is_what_the_documentation_says() -> None:
    command = "find . -type f -not -path '*/__pycache__/*' | cut -c 3- | LC_ALL=C sort | xargs -d '\\n' sha256sum"
    page = (Path(__file__).parents[2] / "docs" / "attestation.md").read_text()
    assert command in page
    folder = Path(confide.__file__).parent
    printed = subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=True).stdout  # noqa: S602
    assert build().digest == hashlib.sha256(printed).hexdigest()
    assert build().version == confide.__version__


@pytest.mark.parametrize(
    "name",
    [
        "OMP_NUM_THREADS",
        "GOMP_SPINCOUNT",
        "MKL_CBWR",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "PYTORCH_CUDA_ALLOC_CONF",
        "ATEN_CPU_CAPABILITY",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "TOKENIZERS_PARALLELISM",
        "GGML_CUDA_DISABLE_GRAPHS",
        "LLAMA_ARG_CTX_SIZE",
        "CUDA_VISIBLE_DEVICES",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "GLIBC_TUNABLES",
        "SSLKEYLOGFILE",
        "SSL_CERT_FILE",
        "CONFIDE_GEMM",
        "CONFIDE_HOME",
        "XDG_CONFIG_HOME",
    ],
)
def test_variables_that_change_behaviour_are_stated(name: str) -> None:
    assert behaviour({name: "a value", "LANG": "C", "TERM": "dumb"}) == {name: "a value"}


@pytest.mark.parametrize(
    "name", ["CONFIDE_KEYS_PASSPHRASE", "CONFIDE_OWNER_PASSPHRASE", "CONFIDE_LICENCE", "HF_TOKEN", "LLAMA_API_KEY"]
)
def test_secret_ones_by_their_names_alone(name: str) -> None:
    assert behaviour({name: "a secret"}) == {name: "set, and secret"}


def test_a_value_of_any_bytes_and_length_has_a_place_in_a_statement() -> None:
    odd = {"PYTHONPATH": b"/caf\xe9\xff".decode("utf-8", "surrogateescape"), "LD_LIBRARY_PATH": "a" * 5000}
    stated = behaviour(odd)
    assert stated["LD_LIBRARY_PATH"].startswith("sha256:")
    statement = Statement("aa", configuration=msgspec.structs.replace(own_configuration(), environment=stated))
    assert Statement.decode(msgspec.json.encode(statement)).digest() == statement.digest()
    with pytest.raises(ConfideError, match="unset"):
        behaviour({f"OMP_{number}": "" for number in range(200)})


def test_a_process_that_has_loaded_nothing_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    configuration = own_configuration({"ra-tls": "true"})
    assert configuration.environment["OMP_NUM_THREADS"] == "3"
    bare = Configuration(build(), options={"ra-tls": "true"}, environment=configuration.environment)
    assert configuration == bare
    assert configuration.egress is Egress.OPEN
    assert configuration.self_test.outcome == "not-run"
