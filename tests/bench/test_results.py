"""A file of results is what was measured, to the last digit, or it is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rfc8785
from tests.bench.made import AT, quantization_result, tee_result

from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.evidence import Evidence, Family
from confide.attest.statement import Statement
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.bench.machine import Arm
from confide.bench.results import MAX_BYTES, ResultFile, TeeResult, Timing, read_file, read_result, require_arm
from confide.errors import BenchmarkError, InvalidResult


@pytest.mark.parametrize("result", [tee_result(), quantization_result()], ids=["tee", "quantization"])
def test_results_come_back_to_the_last_digit(result: Any, tmp_path: Path) -> None:
    path = ResultFile.make(result).write(tmp_path / "new")
    assert read_file(path).result == result
    said = json.loads(path.read_text())
    # By another road than ours: the digest is over the JSON in the file.
    assert said["digest"] == hashlib.sha256(rfc8785.dumps(said["result"])).hexdigest()
    assert said["digest"][:16] in path.name


def change(*names: str | int, to: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        place: Any = document
        for name in names[:-1]:
            place = place[name]
        place[names[-1]] = to(place[names[-1]])

    return apply


CHANGES = {
    "time": change("result", "cells", 0, "runs", 3, "seconds", to=lambda old: old * 0.9),
    "arm": change("result", "arm", to=lambda _: "tdx"),
    "processor": change("result", "machine", "processor", to=lambda old: old + " 2"),
    "commit": change("result", "software", "commit", to=lambda _: "1d" * 20),
    "warm-ups": change("result", "workload", "warm_ups", to=lambda old: old - 1),
    "date": change("result", "measured", to=lambda _: "2026-11-30T00:00:00Z"),
    "digest": change("digest", to=lambda old: old[::-1]),
    "run left out": change("result", "cells", 0, "runs", to=lambda old: old[1:]),
    "reason": change("result", "not_measured", to=lambda _: []),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_is_changed_is_refused(name: str, tmp_path: Path) -> None:
    path = ResultFile.make(tee_result()).write(tmp_path)
    document = json.loads(path.read_text())
    CHANGES[name](document)
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidResult, match=r"were changed after they were measured"):
        read_file(path)


MALFORMED = {
    "empty": b"",
    "no JSON": b"{",
    "deep": b'{"digest":' + b"[" * 100_000,
    "another kind": b'{"digest":"' + b"0" * 64 + b'","result":{"bench":"other"}}',
    "short digest": b'{"digest":"00","result":{}}',
    "large": b" " * (MAX_BYTES + 1),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_result_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidResult):
        read_result(MALFORMED[name])
    path = tmp_path / "file.json"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(InvalidResult, match=r"file\.json"):
        read_file(path)


WRONG = {
    "time below zero": change("result", "cells", 0, "runs", 0, "first", to=lambda _: -1.0),
    "first token last": change("result", "cells", 0, "runs", 0, "first", to=lambda _: 1e6),
    "no number": change("result", "cells", 0, "runs", 0, "seconds", to=lambda _: None),
    "no runs": change("result", "cells", 0, "runs", to=lambda _: []),
    "a cell twice": change("result", "cells", to=lambda old: [old[0], old[0]]),
    "unknown field": change("result", "machine", to=lambda old: old | {"owner": "me"}),
    "unknown arm": change("result", "arm", to=lambda _: "keystone"),
    "no zone": change("result", "measured", to=lambda _: "2026-11-29T20:30:01"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_even_under_their_own_digest(name: str, tmp_path: Path) -> None:
    document = json.loads(ResultFile.make(tee_result()).write(tmp_path).read_text())
    WRONG[name](document)
    document["digest"] = hashlib.sha256(rfc8785.dumps(document["result"])).hexdigest()
    with pytest.raises(InvalidResult, match="This is no file of results"):
        read_result(json.dumps(document).encode())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidResult, match=r"absent\.json cannot be read"):
        read_file(tmp_path / "absent.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchmarkError, match="choose another --out"):
        ResultFile.make(tee_result()).write(tmp_path / "file")


def proven(result: TeeResult, nonce: str) -> ResultFile[TeeResult]:
    return ResultFile.make(result, Attested.make(Evidence(Family.TDX, b"quote"), Statement(nonce)))


def verified(nonce: str, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Verification by a vendor's root that holds, of a quote over a statement of this nonce; the times it was asked."""
    asked: list[object] = []
    digest = Statement(nonce).digest()
    claims = Claims(
        Family.TDX, RootKind.PRODUCTION, digest, False, TcbStatus.UP_TO_DATE, tcb_evaluation=17, speaks=True
    )

    def verify(_: Verifier, evidence: Evidence, collateral: object, now: object) -> Claims:
        asked.append(now)
        return claims

    monkeypatch.setattr(Verifier, "verify", verify)
    return asked


def test_a_trusted_environment_is_believed_on_its_evidence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    result = tee_result(Arm.TDX)
    digest = ResultFile.make(result).digest
    asked = verified(digest, monkeypatch)
    require_arm(proven(result, digest))
    assert asked == [AT]
    with pytest.raises(InvalidResult, match="have no evidence"):
        require_arm(ResultFile.make(result))


def test_evidence_over_other_results_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ResultFile.make(tee_result(Arm.TDX, slower=2.0)).digest
    verified(other, monkeypatch)
    with pytest.raises(InvalidResult, match=r"call their machine tdx.*nonce"):
        require_arm(proven(tee_result(Arm.TDX), other))


def test_evidence_of_another_kind_of_machine_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    result = tee_result(Arm.SGX)
    digest = ResultFile.make(result).digest
    verified(digest, monkeypatch)
    with pytest.raises(InvalidResult, match="call their machine sgx, and their evidence is of tdx"):
        require_arm(proven(result, digest))


def test_a_gpu_in_confidential_mode_needs_evidence_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = msgspec.structs.replace(tee_result().workload, device="cuda")
    result = msgspec.structs.replace(tee_result(Arm.GPU_CC), workload=workload)
    digest = ResultFile.make(result).digest
    verified(digest, monkeypatch)
    with pytest.raises(InvalidResult, match="GPU"):
        require_arm(proven(result, digest))


@pytest.mark.parametrize("arm", [Arm.BARE, Arm.VM, Arm.SIMULATED])
def test_what_proves_nothing_is_not_asked_to(arm: Arm) -> None:
    require_arm(ResultFile.make(tee_result(arm)))
    require_arm(ResultFile.make(quantization_result()))


def test_a_quantization_is_of_no_arm() -> None:
    assert not hasattr(quantization_result(), "arm")
    with pytest.raises(ValueError, match="before the last"):
        Timing(1.0, 1.0, 8)
    assert Timing(1.0, 5.0, 9).seconds_per_token == 0.5
    assert Timing(1.0, 5.0, 10).tokens_per_second == 2.0
