"""Policies of strangers: read in time that grows with their size alone, and refused with a typed error."""

import contextlib
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.attest.made_up import NOW, StubVerifier, tdx_claims

from confide.attest.bundle import Bundle, freeze
from confide.attest.collateral import Collateral, Provenance
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import Policy
from confide.attest.policy_toml import MAX_POLICY_BYTES, any_policy_from_toml, policy_from_toml, to_toml
from confide.attest.requirements import VerifierService
from confide.cli import main
from confide.errors import InvalidPolicy

HEAD = 'confide-policy = 1\nkind = "production"\n'
SIZE = 64_000
HOSTILE = {
    "dots": HEAD + ".".join("a" * (SIZE // 2)) + " = 1",
    "dots with spaces": HEAD + " . ".join("a" * (SIZE // 4)) + " = 1",
    "quoted dots": HEAD + ".".join(['"a"'] * (SIZE // 4)) + " = 1",
    "dots of a table": HEAD + "[" + ".".join("a" * (SIZE // 2)) + "]",
    "dots of an array of tables": HEAD + "[[" + ".".join("a" * (SIZE // 2)) + "]]",
    "dots inside braces": HEAD + "x = {" + ".".join("a" * (SIZE // 2)) + " = 1}",
    "dots after a string": HEAD + 'x = """a"""""\n' + ".".join("a" * (SIZE // 2)) + " = 1",
    "dots after a comment": HEAD + '# "\n' + ".".join("a" * (SIZE // 2)) + " = 1",
    "dots after a literal": HEAD + "x = '''a'\\''''\n" + ".".join("a" * (SIZE // 2)) + " = 1",
    "many tables": HEAD + "[a.b.c.d.e.f.g]\n" * (SIZE // 16),
    "tables in tables": HEAD + "[[a.b.c]]\n" * (SIZE // 10),
    "a digit too many": HEAD + "allow-debug = " + "1" * 4301,
    "digits": HEAD + "allow-debug = " + "1" * SIZE,
    "digits apart": HEAD + "allow-debug = " + "1_" * (SIZE // 2) + "1",
    "a float": HEAD + "allow-debug = 0." + "1" * SIZE,
    "brackets": HEAD + "x = " + "[" * SIZE,
    "braces": HEAD + "x = " + "{a=" * (SIZE // 3),
    "quotes": HEAD + "x = " + '"' * SIZE,
    "apostrophes": HEAD + "x = " + "'" * SIZE,
    "backslashes": HEAD + 'x = "' + '\\"' * (SIZE // 2),
    "keys": HEAD + "".join(f"k{index} = 1\n" for index in range(SIZE // 10)),
    "requirements": HEAD + "[[all]]\n" * (SIZE // 8),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_policy_is_refused_at_once(name: str) -> None:
    began = time.process_time()
    for read in (policy_from_toml, any_policy_from_toml):
        with pytest.raises(InvalidPolicy):
            read(HOSTILE[name])
    assert time.process_time() - began < 0.5  # two readings of 64 kB, with room for slow machines


def test_a_long_policy_is_read_quickly() -> None:
    ids = ", ".join(f'"{index:0128x}"' for index in range(SIZE // 140))
    text = HEAD + f'[[all]]\nrequire = "chip-id-in"\nallowed = [{ids}]\n'
    began = time.process_time()
    assert policy_from_toml(text).requirements
    assert time.process_time() - began < 0.25


def test_the_words_about_dots_and_quotes() -> None:
    with pytest.raises(InvalidPolicy, match="parts; write it as tables"):
        policy_from_toml(HOSTILE["dots"])
    with pytest.raises(InvalidPolicy, match="opens a quote on line 3"):
        policy_from_toml(HEAD + "x = 'never closed")


def test_dots_inside_strings_are_no_keys() -> None:
    keys = '{"keys": [' + ", ".join(f'"https://a.b.c.d/{index}"' for index in range(20)) + "]}"
    policy = Policy((VerifierService("trustee", "a.b.c.d.e.f.g.h.i.j.k", keys),))
    assert policy_from_toml(to_toml(policy)) == policy
    several = HEAD + "# a.b.c.d.e.f.g.h.i.j\nversion = '''a.b.c.d.e\n.f.g.h.i.j.k'''\n"
    assert policy_from_toml(several).version.count(".") == 10


@given(st.text(max_size=200) | st.text("\"'\\#.=[]{},\n a1", max_size=60))
def test_whatever_is_read_is_a_policy_or_an_error(text: str) -> None:
    for prefix in ("", HEAD):
        with contextlib.suppress(InvalidPolicy):
            policy_from_toml(prefix + text)


@pytest.mark.parametrize("name", ["dots", "a digit too many"])
def test_a_bundle_with_a_hostile_policy(name: str) -> None:
    verifier = StubVerifier(tdx_claims())
    bundle = freeze(verifier, Evidence(Family.TDX, b"quote"), Collateral(), Policy(), NOW)
    changed = msgspec.structs.replace(bundle, policy=HOSTILE[name])
    with pytest.raises(InvalidPolicy):
        Bundle.read(changed.write()).reverify(verifier)
    larger = msgspec.structs.replace(bundle, policy="#" * (MAX_POLICY_BYTES + 1))
    with pytest.raises(InvalidPolicy, match="KiB"):
        larger.reverify(verifier)


def test_a_bundle_remembers_who_chose_the_collateral() -> None:
    verifier = StubVerifier(tdx_claims(tcb_evaluation=20))
    collateral = Collateral(provenance=Provenance(sent=True, fetched=NOW, newest_evaluation=22))
    bundle = freeze(verifier, Evidence(Family.TDX, b"quote"), collateral, Policy(), NOW)
    again = Bundle.read(bundle.write())
    assert again.provenance == collateral.provenance
    assert [check.code for check in again.reverify(verifier).failures] == ["tcb-evaluation"]


# -- the command line --------------------------------------------------------------------------------------------


def run(*line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["confide", "attest", "policy", *line])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0), capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["any code on such hardware", "any model", "evidence of any date"]),
        ("allow-debug = true\n", ["Exception of the policy: allow-debug"]),
        ('revocation = "if-available"\n', ["Exception of the policy: revocation"]),
        (
            f'[[all]]\nrequire = "sev-snp"\nmeasurement = "{"00" * 48}"\n',
            ["sev-snp with this measurement", "migration agent", "no platform passes", "privilege level"],
        ),
        (f'[[all]]\nrequire = "tdx"\nmrtd = "{"00" * 48}"\n', ["name rtmrs", "migratable"]),
        (f'[[all]]\nrequire = "sgx"\nmrsigner = "{"00" * 32}"\n', ["any enclave of this signer"]),
    ],
)
def test_policy_check_explains_and_warns(
    text: str, says: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(HEAD + text)
    monkeypatch.setenv("COLUMNS", "200")
    code, shown = run("check", str(path), capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0
    assert "debugging off" in shown or "allow-debug" in text
    for words in says:
        assert words in shown
    code, shown = run("check", str(path), "--json", capsys=capsys, monkeypatch=monkeypatch)
    assert set(msgspec.json.decode(shown)) == {"kind", "version", "asks", "exceptions", "open"}


def test_an_alternative_leaves_open_what_one_choice_does_not_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.toml"
    choice = '[[all]]\nrequire = "any-of"\nof = [{{require = "tdx", mrtd = "{}"}}, {{require = "tdx"{}}}]\n'
    for more, is_open in (("", True), (f', mrtd = "{"11" * 48}"', False)):
        path.write_text(HEAD + choice.format("00" * 48, more))
        _, shown = run("check", str(path), "--json", capsys=capsys, monkeypatch=monkeypatch)
        assert any("any code" in sentence for sentence in msgspec.json.decode(shown)["open"]) is is_open


@pytest.mark.parametrize("text", ["", "no TOML", HOSTILE["dots"]])
def test_policy_check_refuses_what_is_no_policy(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    assert run("check", str(path), capsys=capsys, monkeypatch=monkeypatch)[0] == 30


@pytest.mark.parametrize(
    ("files", "at"),
    [
        (("tdx/quote_v5.bin", "tdx/quote_v5.collateral.json"), "2026-02-19"),
        (("tdx/quote_v4.bin", "tdx/quote_v4.collateral.json"), "2025-07-01"),
        (("sgx/quote_v3.bin", "sgx/quote_v3.collateral.json"), "2025-07-01"),
        (("snp/report_v2_milan.bin", "snp/vcek_milan.der", "snp/ask_ark_milan.pem"), "2026-06-01"),
    ],
)
def test_policy_from_writes_what_this_evidence_satisfies(
    files: tuple[str, ...],
    at: str,
    test_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not (test_data / "evidence").is_dir():
        pytest.skip("no real evidence here")
    evidence, *collateral = (str(test_data / "evidence" / name) for name in files)
    more = [part for path in collateral for part in ("--collateral", path)]
    out = tmp_path / "policy.toml"
    line = ("from", evidence, *more, "--at", at, "--out", str(out), "--json")
    code, shown = run(*line, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0
    failed = {check["code"] for check in msgspec.json.decode(shown)["failures"]}
    assert failed == ({"tcb-status"} if "sgx" in files[0] else {"revocation"} if "snp" in files[0] else set())
    policy = policy_from_toml(out.read_text())
    assert to_toml(policy) == msgspec.json.decode(shown)["policy"]
    assert policy.exceptions.sentences() == ()
    assert run(*line, capsys=capsys, monkeypatch=monkeypatch)[0] == 30  # it exists
