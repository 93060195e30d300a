"""The public names: what they are, that each is there, and that examples and documentation get by with them."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tools.api_reference import PACKAGES, PAGE, ROOT, reference
from tools.api_reference import public_names as documented

from confide.lazy import public_names

CONFIDE = [
    "ConfideError",
    "EnclaveSession",
    "HybridModel",
    "HybridSession",
    "OwnerKey",
    "OwnerPublicKey",
    "Padding",
    "Session",
    "TrustStatement",
    "connect",
    "licence_book",
    "open_model",
    "read_record",
    "split",
    "uniformity_p_value",
]
RLWE = [
    "Ahead",
    "AnswerCheck",
    "GroupMatrix",
    "HintMaker",
    "HintTile",
    "Norms",
    "Parameters",
    "Profile",
    "PublicSeed",
    "TokenSecrets",
    "check_vector",
    "fresh_key",
    "mask",
    "open_pads",
    "require_noise_fits",
    "secret_vector",
    "unmask",
]
ATTEST = [
    "AllOf",
    "AnyOf",
    "AttestationResult",
    "Azure",
    "Check",
    "ChipIdIn",
    "CollateralValid",
    "ConfideVersion",
    "ContextAtLeast",
    "Corpus",
    "Engine",
    "Environment",
    "Exceptions",
    "FmspcIn",
    "Fresh",
    "Graph",
    "Metric",
    "Model",
    "Nitro",
    "NoAdapters",
    "NoAdvisory",
    "NoEgress",
    "NoUpstream",
    "NotAfter",
    "NotDebug",
    "NotTrainedOn",
    "Nvidia",
    "Options",
    "Outcome",
    "Policy",
    "PolicyVersion",
    "PpidIn",
    "ProductionRoot",
    "Quantization",
    "ReportData",
    "ScoreAtLeast",
    "SelfTest",
    "Sgx",
    "SignedRelease",
    "SimulatedPolicy",
    "Snp",
    "SnpTcb",
    "TcbAtLeast",
    "Tdx",
    "Template",
    "Tpm",
    "TrainedOn",
    "VerifierService",
    "Weights",
    "all_of",
    "any_of",
    "any_policy_from_toml",
]
FROZEN = {
    "confide": CONFIDE,
    "confide.rlwe": RLWE,
    "confide.attest": ATTEST,
    "confide.attention": ["AttentionServer", "EncryptedAttentionGPT2"],
}


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_change_on_purpose_only(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == FROZEN[package]
    for name, defined in documented(package).items():
        assert getattr(module, name) is getattr(importlib.import_module(defined), name)


def test_a_name_that_is_not_there_is_said_to_be_missing() -> None:
    get = public_names("confide.rlwe", {"mask": "pads"})
    with pytest.raises(AttributeError, match="has no attribute 'masks'"):
        get("masks")


def test_importing_confide_waits_for_no_tensor_library() -> None:
    code = (
        f"import sys; import {', '.join(PACKAGES)}; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_reference_is_that_of_the_source() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run python tools/api_reference.py"


def code() -> Iterator[tuple[str, str]]:
    """Where, and what Python is shown there."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M):
            if path != PAGE:
                yield path.name, block


def imported(text: str) -> Iterator[tuple[str, str]]:
    """Modules of ours and the names that are taken out of them."""
    # Blocks of documentation may begin indented, inside of what was said before.
    for line in re.findall(r"^\s*((?:from|import) confide[^(\n]*(?:\([^)]*\))?)", text, re.M):
        for node in ast.walk(ast.parse(line)):
            if isinstance(node, ast.ImportFrom):
                yield from ((str(node.module), alias.name) for alias in node.names)
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)


def test_examples_and_documentation_use_public_names_only() -> None:
    seen = [(where, *found) for where, text in code() for found in imported(text)]
    assert len({where for where, *_ in seen}) > 6
    assert [entry for entry in seen if entry[2] and entry[2] not in FROZEN.get(entry[1], [])] == []
    assert {module for _, module, name in seen if not name} <= set(FROZEN)
