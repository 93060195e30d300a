"""The linter's verdict on files that are good, on files with one fault each, and on what tries to break its parsers."""

import base64
import gzip
import time
import tomllib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.deploy.lint import containers, gramine, reading
from confide.deploy.lint.linter import lint, sarif
from confide.deploy.lint.rules import RULES, Severity
from confide.errors import ConfideError, InvalidManifest

MANIFESTS = Path(__file__).parent / "manifests"
GOOD = sorted(path.name for path in (MANIFESTS / "good").iterdir())
VERDICTS: dict[str, str] = tomllib.loads((MANIFESTS / "verdicts.toml").read_text())


def found(name: str, content: bytes | str) -> list[str]:
    """The rules that were broken, errors only."""
    report = lint(name, content.encode() if isinstance(content, str) else content)
    return [finding.rule.id for finding in report.findings if finding.rule.severity is Severity.ERROR]


def test_there_are_twenty_of_each() -> None:
    assert len(GOOD) >= 20
    assert len(VERDICTS) >= 20
    assert sorted(VERDICTS) == sorted(path.name for path in (MANIFESTS / "bad").iterdir())


@pytest.mark.parametrize("name", GOOD)
def test_good_files_pass(name: str) -> None:
    report = lint(name, (MANIFESTS / "good" / name).read_bytes())
    assert found(name, (MANIFESTS / "good" / name).read_bytes()) == []
    assert not report.refused


@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_a_fault_is_found_and_nothing_else(name: str) -> None:
    assert found(name, (MANIFESTS / "bad" / name).read_bytes()) == [VERDICTS[name]]
    assert lint(name, (MANIFESTS / "bad" / name).read_bytes()).refused


def test_a_published_manifest_has_eight_faults() -> None:
    assert sorted(found("published.manifest", (MANIFESTS / "published.manifest").read_bytes())) == [
        "allowed-files",
        "aslr-off",
        "host-arguments",
        "host-environment",
        "ld-preload",
        "sgx-debug",
        "unchecked-pointers",
        "untrusted-memory",
    ]


def test_a_published_domain_has_five_faults() -> None:
    assert sorted(found("published.xml", (MANIFESTS / "published.xml").read_bytes())) == [
        "mutable-disk",
        "no-config-id",
        "password",
        "ssh",
        "unmeasured-acpi",
    ]


DOMAIN = (MANIFESTS / "good/tdx.xml").read_text()
SNP = (MANIFESTS / "good/snp.xml").read_text()
POD = (MANIFESTS / "good/pod.yaml").read_text()
COMPOSE = (MANIFESTS / "good/compose.yaml").read_text()
UNIT = (MANIFESTS / "good/confide.service").read_text()
MANIFEST = (MANIFESTS / "good/service.manifest").read_text()
REGO = (MANIFESTS / "good/agent.rego").read_text()


POLICY = f"io.katacontainers.config.agent.policy: {base64.b64encode(REGO.encode()).decode()}"


AZURE = (MANIFESTS / "good/azuredeploy.json").read_text()
GOOGLE = (MANIFESTS / "good/instance.json").read_text()
APP = (MANIFESTS / "good/app-compose.json").read_text()
ENCLAVE = (MANIFESTS / "good/enclave.json").read_text()
NITRO = (MANIFESTS / "good/policy.toml").read_text()


ANY_OF = '[[all]]\nrequire = "any-of"\n[[all.of]]\nrequire = "aws-nitro"\n'
"""Of which one alternative names nothing."""


def qemu(*words: str) -> str:
    arguments = "".join(f"<q:arg value='{word}'/>" for word in words)
    space = "http://libvirt.org/schemas/domain/qemu/1.0"
    return f"<q:commandline xmlns:q='{space}'>{arguments}</q:commandline></domain>"


@pytest.mark.parametrize(
    ("name", "text", "old", "new", "rule"),
    [
        ("a.xml", DOMAIN, "0x10000000", "0x10000001", "guest-debug"),
        ("a.xml", SNP, "0x30000", "0xb0000", "guest-debug"),
        ("a.xml", SNP, "0x30000", "80000", "guest-debug"),
        ("a.xml", DOMAIN, "type='tdx'", "type='sev'", "no-tee"),
        ("a.xml", DOMAIN, "roothash=", "x=", "unmeasured-root"),
        ("a.xml", DOMAIN, "<kernel>/srv/confide/vmlinuz</kernel>", "", "unmeasured-kernel"),
        ("a.xml", DOMAIN, "panic=-1", "nokaslr", "debugging-kernel"),
        ("a.xml", DOMAIN, "panic=-1", "systemd.debug-shell=1", "debugging-kernel"),
        ("a.xml", DOMAIN, "panic=-1", '"init=/bin/sh"', "debugging-kernel"),
        ("a.xml", DOMAIN, "panic=-1", 'init="/bin/sh"', "debugging-kernel"),
        ("a.xml", DOMAIN, "panic=-1", "emergency", "debugging-kernel"),
        ("a.xml", DOMAIN, "panic=-1", "systemd.run=/bin/sh", "debugging-kernel"),
        ("a.xml", DOMAIN, "roothash=", 'x="a roothash=', "unmeasured-root"),
        ("a.xml", DOMAIN, "panic=-1", "systemd.set_credential=a:b", "unmeasured-environment"),
        ("a.xml", DOMAIN, "<devices>", "<sysinfo type='fwcfg'/><devices>", "unmeasured-environment"),
        ("a.xml", DOMAIN, "<devices>", "<devices><filesystem/>", "host-files"),
        ("a.xml", DOMAIN, "<devices>", "<devices><graphics type='vnc' passwd='x'/>", "password"),
        ("a.xml", DOMAIN, "panic=-1", "--insecure-skip-self-test", "insecure-option"),
        ("a.xml", DOMAIN, "AAEC", "!!!!", "no-config-id"),
        ("a.xml", DOMAIN, base64.b64encode(bytes(range(48))).decode(), "A" * 64, "no-config-id"),
        ("a.yaml", COMPOSE, "5c" * 32, "5c" * 31, "image-by-tag"),
        ("a.manifest", MANIFEST, 'HOME = "/tmp"', 'LD_AUDIT = "/x.so"', "ld-preload"),
        ("a.manifest", MANIFEST, 'HOME = "/tmp"', 'MODEL_KEY = "x"', "secret-in-file"),
        ("a.manifest", MANIFEST, '"dcap"', '"none"', "no-sgx-evidence"),
        ("a.manifest", MANIFEST, "sgx.debug = false", 'sgx.file_check_policy = "allow_all_but_log"', "file-checks-off"),
        ("a.manifest", MANIFEST, "sgx.debug = false", "libos.check_invalid_pointers = false", "unchecked-pointers"),
        ("a.manifest", MANIFEST, "--insecure-open-egress", "--insecure-skip-self-test", "insecure-option"),
        ("a.yaml", POD, "kata-qemu-tdx", "kata-qemu", "not-confidential"),
        ("a.yaml", POD, "allowPrivilegeEscalation: false", "privileged: true", "privileged"),
        ("a.yaml", POD, "  containers:", "  volumes: [{name: a, hostPath: {path: /}}]\n  containers:", "privileged"),
        ("a.yaml", POD, "  containers:", "  hostPID: true\n  containers:", "privileged"),
        ("a.yaml", POD, "httpGet: {path: /health, port: 8470}", "exec: {command: [ls]}", "exec-allowed"),
        ("a.yaml", POD, "      env:", "      envFrom: [{secretRef: {name: a}}]\n      env:", "unmeasured-environment"),
        ("a.yaml", POD, "OMP_NUM_THREADS", "API_TOKEN", "secret-in-file"),
        ("a.yaml", POD, "  annotations:", "  annotations:\n    io.katacontainers.config.hypervisor.kernel_params: a",
         "guest-overridden"),
        ("a.yaml", COMPOSE, "read_only: true", "privileged: true\n    read_only: true", "privileged"),
        ("a.yaml", COMPOSE, "tmpfs:", 'volumes: ["/:/host"]\n    tmpfs:', "privileged"),
        ("a.yaml", COMPOSE, "8470:8470", "2222:22", "ssh"),
        ("a.yaml", COMPOSE, "read_only: true", "env_file: .env\n    read_only: true", "unmeasured-environment"),
        ("a.yaml", COMPOSE, "serve, /package", "/usr/sbin/sshd, /package", "ssh"),
        ("a.json", ENCLAVE, '"debug_mode": false', '"debug_mode": "false"', "enclave-debug"),
        ("a.toml", NITRO, '"production"', '"simulated"', "simulated-policy"),
        ("a.toml", NITRO, "pcrs = ", "# ", "policy-without-code"),
        ("a.toml", NITRO, f'"0" = "{"01" * 48}", "1"', '"4"', "policy-without-code"),
        ("a.toml", NITRO, "[[all]]", f"{ANY_OF}[[all.of]]", "policy-without-code"),
        ("a.json", ENCLAVE, '"debug_mode": false', '"attach_console": true', "enclave-debug"),
        ("a.service", UNIT, "ExecStart=", "ExecStart=sh -c 'nitro-cli run-enclave --attach-console' ", "enclave-debug"),
        ("a.yaml", COMPOSE, "tmpfs:", "post_start: [{command: nitro-cli --debug-mode}]\n    tmpfs:", "enclave-debug"),
        ("a.service", UNIT, "DynamicUser=yes", "User=root", "root-user"),
        ("a.service", UNIT, "LimitCORE=0", "LimitCORE=infinity", "core-dumps"),
        ("a.service", UNIT, "NoNewPrivileges=yes", "NoNewPrivileges=no", "unhardened"),
        ("a.service", UNIT, "ProtectSystem=strict", "ProtectSystem=full", "unhardened"),
        ("a.service", UNIT, "DynamicUser=yes", "DynamicUser=yes\nPassEnvironment=HOME", "unmeasured-environment"),
        ("a.json", AZURE, "ConfidentialVM", "TrustedLaunch", "no-confidential-machine"),
        ("a.json", AZURE, '"vTpmEnabled": true', '"vTpmEnabled": "yes"', "no-confidential-machine"),
        ("a.json", AZURE, '"hardwareProfile"', '"osProfile": {"adminPassword": "x"}, "hardwareProfile"', "password"),
        ("a.json", AZURE, '"hardwareProfile"', '"osProfile": {"customData": "x"}, "hardwareProfile"',
         "unmeasured-environment"),
        ("a.json", AZURE, '"hardwareProfile"', '"userData": "x", "hardwareProfile"', "unmeasured-environment"),
        ("a.json", AZURE, '"hardwareProfile"',
         '"osProfile": {"linuxConfiguration": {"ssh": {"publicKeys": []}}}, "hardwareProfile"', "ssh"),
        ("a.json", AZURE, '"name": "confide"', '"name": "confide", "resources": '
         '[{"type": "Microsoft.Compute/virtualMachines/extensions"}]', "unmeasured-environment"),
        ("a.json", AZURE, '"name": "confide"', '"name": "confide", "resources": [{"type": "Extensions"}]',
         "unmeasured-environment"),
        ("a.json", AZURE, '"name": "confide"', '"name": "confide", "resources": [{"type": "runCommands"}]',
         "unmeasured-environment"),
        ("a.json", AZURE, '"resources": [', '"resources": [{"type": "a", "properties": {"template": '
         '{"resources": {"a": {"type": "microsoft.compute/VirtualMachines"}}}}},', "no-confidential-machine"),
        ("a.json", AZURE, '"hardwareProfile"', '"OSProfile": {"ADMINpassword": "x"}, "hardwareProfile"', "password"),
        ("a.json", AZURE, '"resources": [', '"resources": [{"type": "Microsoft.Compute/virtualMachineScaleSets"},',
         "no-confidential-machine"),
        ("a.json", GOOGLE, '"TDX"', '"SEV"', "no-confidential-machine"),
        ("a.json", GOOGLE, '"items": [', '"items": [{"key": "ssh-keys", "value": "a"},', "ssh"),
        ("a.json", GOOGLE, '"items": [', '"items": [{"key": "Startup-Script", "value": "a"},',
         "unmeasured-environment"),
        ("a.json", GOOGLE, '"items": [', '"items": [{"key": "api-key", "value": "a"},', "secret-in-file"),
        ("a.json", APP, '"allowed_envs":[]', '"allowed_envs":["A"]', "unmeasured-environment"),
        ("a.json", APP, "read_only: true", "privileged: true", "privileged"),
        ("a.xml", DOMAIN, "</domain>", qemu("--acpitable"), "unmeasured-acpi"),
        ("a.xml", DOMAIN, "</domain>", qemu("-append", "ro init=/bin/sh"), "debugging-kernel"),
        ("a.xml", DOMAIN, "</domain>", qemu("-virtfs"), "host-files"),
        ("a.xml", DOMAIN, "</domain>", qemu("-s"), "guest-debug"),
        ("a.xml", DOMAIN, "</domain>", qemu("-readconfig"), "unmeasured-environment"),
        ("a.manifest", MANIFEST, "sgx.debug = false", "sgx.debug = false\na = [{ b = [{ insecure__c = true }] }]",
         "gramine-insecure"),
        ("a.yaml", POD, "kind: Pod", "kind: PodList\nitems: [{kind: Pod, metadata: {annotations: {" + POLICY + "}}}]",
         "not-confidential"),
        ("a.yaml", COMPOSE, "serve, /package", "$COMMAND, /package", "unmeasured-environment"),
        ("a.yaml", COMPOSE, "tmpfs:", 'volumes: ["${HOME}:/a"]\n    tmpfs:', "unmeasured-environment"),
        ("a.yaml", COMPOSE, "no-new-privileges:true", "seccomp:unconfined", "privileged"),
        ("a.yaml", COMPOSE, "tmpfs:", "cgroup: host\n    tmpfs:", "privileged"),
        ("a.yaml", COMPOSE, "OMP_NUM_THREADS", "A: --insecure-no-tls\n      B", "insecure-option"),
        ("a.yaml", COMPOSE, "serve, /package", "sh, -c, 'a;confide serve --insecure-no-tls'", "insecure-option"),
        ("a.yaml", COMPOSE, "serve, /package", "sh, -c, 'exec /usr/sbin/sshd -D'", "ssh"),
        ("a.yaml", COMPOSE, "tmpfs:", "entrypoint: confide serve '\"--insecure-no-tls\"'\n    tmpfs:",
         "insecure-option"),
        ("a.yaml", COMPOSE, "serve, /package", "serve, --simulated-tee, /package", "insecure-option"),
        ("a.yaml", COMPOSE, '"8470:8470"', "22:22", "ssh"),
        ("a.yaml", COMPOSE, '"8470:8470"', '"20-25:20-25"', "ssh"),
        ("a.yaml", COMPOSE, "tmpfs:", "build: .\n    tmpfs:", "image-by-tag"),
        ("a.yaml", COMPOSE, "tmpfs:", "use_api_socket: true\n    tmpfs:", "privileged"),
        ("a.yaml", COMPOSE, "tmpfs:", "volumes: [{type: bind, source: etc, target: /a}]\n    tmpfs:", "privileged"),
        ("a.yaml", COMPOSE, "tmpfs:", "post_start: [{command: /usr/sbin/sshd}]\n    tmpfs:", "ssh"),
        ("a.yaml", COMPOSE, "services:", "volumes: {a: {driver_opts: {device: /, o: bind}}}\nservices:",
         "privileged"),
        ("a.yaml", COMPOSE, "services:", "configs: {a: {content: '${A}'}}\nservices:", "unmeasured-environment"),
        ("a.yaml", COMPOSE, "services:", "secrets: {a: {environment: A}}\nservices:", "unmeasured-environment"),
        ("a.service", UNIT, "ExecStart=", "ExecStart=-+", "root-user"),
        ("a.service", UNIT, "DynamicUser=yes", "DynamicUser=yes\nUser=root", "root-user"),
        ("a.service", UNIT, "DynamicUser=yes", "DynamicUser=yes\nEnvironment=A=--insecure-no-tls", "insecure-option"),
        ("a.service", UNIT, "DynamicUser=yes", "DynamicUser=yes\nExecStartPre=sh -c 'exec sshd'", "ssh"),
        ("a.json", GOOGLE, '"items": [', '"items": [{"key": "gce-container-declaration", "value": "a"},',
         "unmeasured-environment"),
        ("a.yaml", POD, "  containers:", "  ephemeralContainers: [{image: a}]\n  containers:", "image-by-tag"),
        ("a.service", UNIT, "LimitCORE=0", "LimitCORE=0\nExecStopPost=/usr/sbin/sshd", "ssh"),
        ("a.rego", REGO, "default SetPolicyRequest := false", "SetPolicyRequest := false { input.a } else := true",
         "policy-replaceable"),
        ("a.rego", REGO, "default CopyFileRequest := false", "default CopyFileRequest := true", "host-copies"),
        ("a.rego", REGO, "default AllowRequestsFailingPolicy := false", "AllowRequestsFailingPolicy { a }",
         "permissive-policy"),
        ("a.rego", REGO, "default SetPolicyRequest := false", "SetPolicyRequest := input.x", "policy-replaceable"),
        ("a.rego", REGO, "default SetPolicyRequest := false", 'a := "#"; SetPolicyRequest { true }',
         "policy-replaceable"),
        ("a.rego", REGO, "default SetPolicyRequest", "default\n  ExecProcessRequest = true\ndefault SetPolicyRequest",
         "exec-allowed"),
    ],
)  # fmt: skip
def test_each_rule(name: str, text: str, old: str, new: str, rule: str) -> None:
    assert old in text
    assert found(name, text) == []
    assert found(name, text.replace(old, new, 1)) == [rule]


def test_a_rule_that_is_never_broken_here_is_none() -> None:
    """Every rule of severity error is in one of the tables above."""
    source = Path(__file__).read_text() + (MANIFESTS / "verdicts.toml").read_text()
    assert [name for name in RULES if RULES[name].severity is Severity.ERROR and f'"{name}"' not in source] == []


def test_warnings_do_not_refuse() -> None:
    for name, text in (
        ("a.manifest", MANIFEST.replace('"error"', '"debug"')),
        ("a.yaml", COMPOSE.replace("    read_only: true\n", "")),
        ("a.service", UNIT.replace("MemorySwapMax=0", "")),
        ("a.rego", REGO.replace("ReadStreamRequest := false", "ReadStreamRequest := true")),
        ("a.json", AZURE.replace('"enabled": false', '"enabled": true')),
        ("a.json", GOOGLE.replace('"FALSE"', '"TRUE"')),
        ("a.json", APP.replace('"public_logs":false', '"public_logs":true')),
        ("a.rego", REGO + "\nExecProcessRequest if {\n  input.a == 1\n}\n"),
    ):
        report = lint(name, text.encode())
        assert [finding.rule.severity for finding in report.findings][-1] is Severity.WARNING
        assert not report.refused


def test_a_dollar_that_stands_for_itself_is_no_variable() -> None:
    assert found("a.yaml", COMPOSE.replace("serve, /package", "serve, $$HOME, /package")) == []
    assert found("a.yaml", COMPOSE.replace("serve, /package", "serve, $$$HOME, /package")) != []


def test_names_in_texts_comments_and_references_are_no_rules() -> None:
    further = """
    # SetPolicyRequest := true
    CreateContainerRequest if {
        print("SetPolicyRequest := true", `ExecProcessRequest { true }`)
        policy_data.request_defaults.ExecProcessRequest.allowed
    }
    """
    assert found("a.rego", REGO + further) == []


def test_texts_that_nothing_closes_are_read_once() -> None:
    start = time.process_time()
    lint("a.rego", b'package agent_policy\na := "' + b'\\"' * 100_000)
    assert time.process_time() - start < 5


def test_a_policy_that_says_nothing_allows_nothing() -> None:
    assert lint("a.rego", b"package agent_policy").findings == ()


def test_no_value_is_shown() -> None:
    words = "hunter2-of-the-test"
    for name, text in (
        ("a.service", UNIT.replace("OMP_NUM_THREADS=16", f"API_TOKEN={words}")),
        ("a.manifest", MANIFEST.replace('HOME = "/tmp"', f'PASSWORD = "{words}"')),
        ("a.yaml", POD.replace("OMP_NUM_THREADS", "PASSWORD").replace('"16"', words)),
        ("a.xml", DOMAIN.replace("<devices>", f"<devices><graphics passwd='{words}'/>")),
    ):
        report = lint(name, text.encode())
        assert report.refused
        assert words not in str(sarif([report]))
    for name, text in (
        ("a.yaml", f"password: {words}\n  a: ["),
        ("a.yaml", f"{words}: a: b"),
        ("a.toml", f'a = "{words}"\nb'),
        ("a.json", f'{{"a": "{words}" b'),
    ):
        with pytest.raises(InvalidManifest) as refused:
            lint(name, text.encode())
        assert words not in str(refused.value)


def test_places_are_printable() -> None:
    text = MANIFEST + '"\\u001b[2J\\u202e" = { insecure__x = true }\n'
    (finding,) = [one for one in lint("a.manifest", text.encode()).findings if one.rule.id == "gramine-insecure"]
    assert finding.place.isprintable()


# -- parsers -----------------------------------------------------------------------------------------------------------


def laughs() -> str:
    entities = "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 10))
    return f"<?xml version='1.0'?><!DOCTYPE domain [<!ENTITY l0 'lol'>{entities}]><domain><name>&l9;</name></domain>"


INITDATA = "io.katacontainers.config.hypervisor.cc_init_data: "


def packed(content: bytes) -> str:
    return POD[: POD.index(INITDATA)] + INITDATA + base64.b64encode(content).decode() + POD[POD.index("\nspec:") :]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.xml", laughs()),
        ("a.xml", "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>"),
        ("a.xml", "<domain>" + "<a>" * 5000),
        ("a.xml", "<domain>" + "<a/>" * 20_000 + "</domain>"),
        ("a.xml", "<network/>"),
        ("a.xml", DOMAIN.replace("0x10000000", "many")),
        ("a.yaml", "a: &a [x]\nb: *a"),
        ("a.yaml", "a: 1\na: 2"),
        ("a.yaml", "services: {a: {image: x}}\n<<: {b: 1}"),
        ("a.yaml", "[" * 5_000),
        ("a.yaml", "- " * 60_000),
        ("a.yaml", "!!python/object/apply:os.system [id]"),
        ("a.yaml", "---\n" * 100),
        ("a.yaml", "key: value"),
        ("a.yaml", ""),
        ("a.yaml", packed(b"no gzip")),
        ("a.yaml", packed(gzip.compress(bytes(1 << 26)))),
        ("a.yaml", packed(gzip.compress(b"a = 1")[:-4])),
        ("a.yaml", POD.replace(INITDATA, INITDATA + "!")),
        ("a.toml", "a" + ".a" * 100_000 + " = 1"),
        ("a.toml", "a = " + "[" * 100_000),
        ("a.toml", "a = 1"),
        ("a.manifest", 'loader.argv = ["{{ execdir }}/python"]'),
        ("a.service", "[Unit]\nDescription=a"),
        ("a.service", "ExecStart=/bin/true"),
        ("a.service", "[Service]\nEnvironment='"),
        ("a.rego", "package other"),
        ("a.conf", "x"),
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", '{"a": 1, "a": 2}'),
        ("a.json", '{"a":' * 100_000),
        ("a.json", '{"machineType": 1}'),
        ("a.json", AZURE.replace('"hardwareProfile"', '"OSprofile": {}, "osProfile": {}, "hardwareProfile"')),
        ("a.json", AZURE.replace('"resources": [', '"resources": [{"properties": {"templateLink": {"uri": "a"}}},')),
        ("a.json", AZURE.replace('"hardwareProfile"', '"osProfile": "[variables(\'a\')]", "hardwareProfile"')),
        ("a.json", AZURE.replace("Microsoft.Compute/virtualMachines", "Microsoft.Network/networkInterfaces")),
        ("a.yaml", "apiVersion: a/v1\nkind: Rollout\nspec: {template: {spec: {containers: [{image: a}]}}}"),
        ("a.json", '{"docker_compose_file": "a: 1"}'),
        ("a.json", '{"docker_compose_file": "a: [*b]"}'),
        ("a.yaml", COMPOSE + "include: [other.yaml]"),
        ("a.yaml", COMPOSE.replace("read_only: true", "read_only: true\n    extends: {file: other.yaml}")),
        ("a.xml", "\0"),
        ("a.toml", "x" * (reading.MAX_BYTES + 1)),
    ],
    ids=range(44),
)
def test_what_cannot_be_read_is_one_error(name: str, text: str) -> None:
    start = time.process_time()
    with pytest.raises(InvalidManifest):
        lint(name, text.encode())
    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.xml", "<!DOCTYPE domain [<!ENTITY a 'b'>]>" + DOMAIN.replace("qemu'", "&a;'", 1), "document type"),
        ("a.yaml", COMPOSE.replace("read_only: true", "read_only: &a true\n    tty: *a"), "alias"),
        ("a.yaml", COMPOSE.replace("read_only: true", "read_only: true\n    read_only: false"), "twice"),
        ("a.yaml", COMPOSE.replace("read_only: true", "<<: {privileged: true}"), "twice"),
        ("a.json", GOOGLE.replace('"disks"', '"metadata": {}, "disks"'), "twice"),
        ("a.yaml", POD + "services: {a: {image: x}}\n", "more than one kind"),
        ("a.json", APP.replace("{", '{"$schema": "deploymentTemplate.json#", ', 1), "more than one kind"),
        ("a.json", GOOGLE.replace("{", '{"$schema": "deploymentTemplate.json#", ', 1), "more than one kind"),
        ("a.json", APP.replace("{", '{"machineType": "a", "disks": [], ', 1), "more than one kind"),
        ("a.manifest", 'algorithm = "sha384"\n' + MANIFEST + "[data]\n", "more than one kind"),
        ("a.service", UNIT.replace("NoNewPrivileges=yes", "# \u2028NoNewPrivileges=yes"), "space"),
        ("a.service", UNIT.replace("NoNewPrivileges=yes", "# \x0cNoNewPrivileges=yes"), "space"),
        ("a.service", UNIT.replace("NoNewPrivileges", "\u00a0NoNewPrivileges"), "space"),
        ("a.service", UNIT.replace("NoNewPrivileges", "UMask=1\\\n\rNoNewPrivileges"), "space"),
        ("a.service", UNIT.replace("serve ", r"serve \x2d-insecure-no-tls "), "escape"),
        ("a.xml", DOMAIN.replace("panic=-1", "a\u3020init=/bin/sh"), "ASCII"),
        ("a.xml", DOMAIN.replace("panic=-1", "<a>init=/bin/sh</a>"), "text beside elements"),
        ("a.xml", DOMAIN.replace("0x10000000", "0x1000000<a>1</a>"), "text beside elements"),
    ],
    ids=range(18),
)
def test_what_one_reader_would_see_and_another_not(name: str, text: str, reason: str) -> None:
    with pytest.raises(InvalidManifest, match=reason):
        lint(name, text.encode())


def test_initdata_is_unpacked_no_further_than_a_file_may_be_long() -> None:
    content = packed(gzip.compress(bytes(1 << 26))).encode()
    with pytest.raises(InvalidManifest):
        lint("a.yaml", content)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidManifest):
            lint("a.yaml", content)
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(InvalidManifest):
        lint("a.toml", b"\xff\xfe")


NAMES = ("a.xml", "a.yaml", "a.toml", "a.service", "a.rego", "a.json")
SEEDS: tuple[Callable[[], str], ...] = (
    *(lambda: DOMAIN, lambda: POD, lambda: COMPOSE, lambda: MANIFEST, lambda: UNIT),
    *(lambda: AZURE, lambda: GOOGLE, lambda: APP),
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES), st.sampled_from(SEEDS), st.integers(0, 1500), st.binary(max_size=40), st.integers(0, 200)
)
def test_any_file_is_judged_or_refused(name: str, seed: Callable[[], str], at: int, data: bytes, cut: int) -> None:
    content = seed().encode()
    try:
        report = lint(name, content[:at] + data + content[at + cut :])
    except ConfideError:
        return
    assert all(finding.place.isprintable() for finding in report.findings)


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.sampled_from(["", "a", "--insecure-a"])),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["env", "argv", "mounts", "debug", "type", "insecure__a"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["loader", "sgx", "fs", "libos"]), VALUES)
def test_values_of_any_type(table: str, value: object) -> None:
    """A key may hold anything: checks look only where they expect something."""
    list(gramine.check({table: value}))
    list(containers.check_compose({"services": {"a": value, "b": {"environment": value, "ports": value}}}))
    list(containers.check_object({"kind": "Pod", "spec": {"containers": [value, {"env": value}], "volumes": value}}))


# -- the report --------------------------------------------------------------------------------------------------------


def test_sarif() -> None:
    reports = [lint(name, (MANIFESTS / "bad" / name).read_bytes()) for name in sorted(VERDICTS)]
    log = sarif(reports)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    described = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in described] == sorted(RULES)
    assert len(run["results"]) >= len(VERDICTS)
    for result in run["results"]:
        assert described[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning")
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]


def test_every_rule_says_why_and_where_from() -> None:
    for name, rule in RULES.items():
        assert rule.id == name
        assert rule.sentence.endswith(".")
        assert rule.source
