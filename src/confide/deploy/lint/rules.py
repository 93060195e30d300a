"""The faults that are looked for. Each has a name that stays, a sentence with the reason, and where it is written."""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from confide.printable import printable


class Severity(StrEnum):
    """ERROR: whoever runs the machine can read secrets, or change what runs. WARNING: a layer of defence is missing."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Rule:
    """A fault. id: stable, for machines. sentence: why it is one, and what to do. source: where that is from."""

    id: str
    severity: Severity
    sentence: str
    source: str


@dataclass(frozen=True)
class Finding:
    """A fault in a file. place: a key, an element or a setting in it, printable; values are never shown."""

    rule: Rule
    place: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", printable(self.place)[:200])


_GRAMINE: Final = "Gramine documentation, Manifest syntax"
_LIBVIRT: Final = "libvirt, Domain XML format"
_KATA: Final = "Kata Containers, How to use the agent's policy"
_COCO: Final = "Confidential Containers documentation, Initdata"
_SYSTEMD: Final = "systemd.exec(5)"
_COMPOSE: Final = "Compose Specification"
_PODS: Final = "Kubernetes, Pod Security Standards"
_THREATS: Final = "Confide, docs/threat-model.md, The enclave mode"


def _error(id: str, sentence: str, source: str) -> Rule:
    return Rule(id, Severity.ERROR, sentence, source)


def _warning(id: str, sentence: str, source: str) -> Rule:
    return Rule(id, Severity.WARNING, sentence, source)


# -- of every format ---------------------------------------------------------------------------------------------------

INSECURE_OPTION: Final = _error(
    "insecure-option", "Confide is started with an option that gives a protection up; leave it out.", _THREATS
)
OPEN_EGRESS: Final = _warning(
    "open-egress",
    "The process keeps its ways out, since Gramine has no seccomp; whoever gets into it can send prompts anywhere.",
    "Confide, docs/serving.md, No way out",
)
SECRET_IN_FILE: Final = _error(
    "secret-in-file", "A secret stands in the file, which the host reads; have the broker release it.", _THREATS
)
SSH: Final = _error(
    "ssh", "Whoever has a login can read memory and change the program; leave remote login out of the image.", _THREATS
)
LD_PRELOAD: Final = _error(
    "ld-preload", "A library is put before all others and sees everything; link what is needed instead.", "ld.so(8)"
)
IMAGE_BY_TAG: Final = _error(
    "image-by-tag",
    "A tag names another image tomorrow, and whoever has the registry chooses it; name the image by @sha256:.",
    "OCI Distribution Specification 1.1, Pulling manifests",
)
UNMEASURED_ENVIRONMENT: Final = _error(
    "unmeasured-environment",
    "Environment that is set after the measurement is the host's to choose; write the values into what is measured.",
    _THREATS,
)
PRIVILEGED: Final = _error(
    "privileged", "The container has its host's privileges, namespaces or files; take them away.", _PODS
)

# -- Gramine -----------------------------------------------------------------------------------------------------------

SGX_DEBUG: Final = _error(
    "sgx-debug", "A debug enclave's memory is open to its host; set sgx.debug = false.", f"{_GRAMINE}, sgx.debug"
)
HOST_ARGUMENTS: Final = _error(
    "host-arguments",
    "The host chooses the arguments; set loader.argv, which is measured.",
    f"{_GRAMINE}, loader.insecure__use_cmdline_argv",
)
HOST_ENVIRONMENT: Final = _error(
    "host-environment",
    "The host chooses environment variables, and with them what is loaded; set loader.env to values.",
    f"{_GRAMINE}, loader.insecure__use_host_env",
)
GRAMINE_INSECURE: Final = _error(
    "gramine-insecure", "Gramine itself calls this setting insecure; leave it out.", f"{_GRAMINE}, insecure__"
)
ALLOWED_FILES: Final = _error(
    "allowed-files",
    "Files are used that nobody measures, so the host chooses their content; make them trusted or encrypted.",
    f"{_GRAMINE}, sgx.allowed_files",
)
FILE_CHECKS_OFF: Final = _error(
    "file-checks-off",
    "Unknown files are let through; set sgx.file_check_policy = 'strict'.",
    f"{_GRAMINE}, sgx.file_check_policy",
)
UNTRUSTED_MEMORY: Final = _error(
    "untrusted-memory",
    "Memory is shared with the host, which reads and changes it; take the mount away.",
    f"{_GRAMINE}, fs.mounts, untrusted_shm",
)
ASLR_OFF: Final = _error(
    "aslr-off", "Addresses are the same in every run, which makes faults easy to use; leave it on.", f"{_GRAMINE}, ASLR"
)
UNCHECKED_POINTERS: Final = _error(
    "unchecked-pointers",
    "Pointers in system calls are not checked; leave libos.check_invalid_pointers on.",
    f"{_GRAMINE}, libos.check_invalid_pointers",
)
NO_SGX_EVIDENCE: Final = _error(
    "no-sgx-evidence",
    "Nobody can verify the enclave; set sgx.remote_attestation = 'dcap'.",
    f"{_GRAMINE}, sgx.remote_attestation",
)
VERBOSE_LOG: Final = _warning(
    "verbose-log",
    "The log tells the host what the program does; set loader.log_level = 'error'.",
    f"{_GRAMINE}, log level",
)

# -- virtual machines --------------------------------------------------------------------------------------------------

NO_TEE: Final = _error(
    "no-tee",
    "Nothing protects the machine from its host; add launchSecurity of type tdx or sev-snp.",
    f"{_LIBVIRT}, Launch Security",
)
GUEST_DEBUG: Final = _error(
    "guest-debug",
    "The guest's policy lets the host debug it and read everything; clear that bit.",
    f"{_LIBVIRT}, Launch Security, policy",
)
MUTABLE_DISK: Final = _error(
    "mutable-disk",
    "A disk can be written, so what runs is not what was measured; make it read-only and name its root hash.",
    "Linux, Documentation/admin-guide/device-mapper/verity",
)
UNMEASURED_ROOT: Final = _error(
    "unmeasured-root",
    "There is a disk, and no dm-verity root hash on the measured command line; add roothash=.",
    "Linux, Documentation/admin-guide/device-mapper/verity",
)
NO_CONFIG_ID: Final = _error(
    "no-config-id",
    "Nothing ties the machine to its deployment; set mrConfigId, and ask for it in the policy.",
    f"{_LIBVIRT}, Launch Security, TDX",
)
UNMEASURED_KERNEL: Final = _error(
    "unmeasured-kernel",
    "Kernel, RAM disk or command line are outside the measurement; boot them directly, with kernelHashes='yes' on AMD.",
    f"{_LIBVIRT}, Launch Security, SEV-SNP",
)
UNMEASURED_ACPI: Final = _error(
    "unmeasured-acpi",
    "ACPI tables from the host are code that the kernel runs, outside the measurement; take them away.",
    "Linux, Documentation/arch/x86/tdx and security/snp-tdx-threat-model",
)
DEBUGGING_KERNEL: Final = _error(
    "debugging-kernel",
    "The command line opens a shell or takes a defence of the kernel away; remove that argument.",
    "Linux, Documentation/admin-guide/kernel-parameters; systemd-debug-generator(8)",
)
PASSWORD: Final = _error(
    "password",
    "A password that stands in a file or is known to everybody opens the machine; leave logins out.",
    _THREATS,
)
HOST_FILES: Final = _error(
    "host-files",
    "A folder or memory of the host is mounted, which it changes at will; bake files into the image.",
    _THREATS,
)

# -- machines at vendors -----------------------------------------------------------------------------------------------

NO_CONFIDENTIAL_MACHINE: Final = _error(
    "no-confidential-machine",
    "The vendor reads the machine's memory; ask for ConfidentialVM with vTpmEnabled, or for TDX or SEV_SNP.",
    "Azure Resource Manager, virtualMachines, securityProfile; Compute Engine API, confidentialInstanceConfig",
)
SERIAL_CONSOLE: Final = _warning(
    "serial-console",
    "The vendor, or anybody, reads what the machine prints, and may type at a console; switch it off.",
    "Azure Resource Manager, bootDiagnostics; Compute Engine, serial-port-enable; dstack, public_logs",
)

ENCLAVE_DEBUG: Final = _error(
    "enclave-debug",
    "A debug enclave's parent reads its console, and zeros are measured in place of its image; leave both out.",
    "AWS, Nitro Enclaves User Guide, Cryptographic attestation",
)

# -- policies ----------------------------------------------------------------------------------------------------------

_POLICIES: Final = "Confide, docs/attestation.md"
POLICY_WITHOUT_CODE: Final = _error(
    "policy-without-code",
    "One way to satisfy the policy names no code, so that it takes any on such hardware; name what is measured of it.",
    _POLICIES,
)
SIMULATED_POLICY: Final = _error(
    "simulated-policy", "Anybody can make what satisfies this policy; write one for production.", _POLICIES
)
DEBUG_ALLOWED: Final = _error(
    "debug-allowed", "Whoever runs the machine may read everything with a debugger; leave allow-debug out.", _POLICIES
)

# -- Confidential Containers -------------------------------------------------------------------------------------------

EXEC_ALLOWED: Final = _error(
    "exec-allowed",
    "The host may run commands in the container; set ExecProcessRequest to false.",
    f"{_KATA}, ExecProcessRequest",
)
EXEC_CONDITIONAL: Final = _warning(
    "exec-conditional",
    "The host may run commands under conditions, which are not computed here; see that none is a shell.",
    f"{_KATA}, ExecProcessRequest",
)
POLICY_REPLACEABLE: Final = _error(
    "policy-replaceable",
    "The host may replace the policy; set SetPolicyRequest to false.",
    f"{_KATA}, SetPolicyRequest",
)
PERMISSIVE_POLICY: Final = _error(
    "permissive-policy",
    "What the policy forbids is done nevertheless; set AllowRequestsFailingPolicy to false.",
    f"{_KATA}, AllowRequestsFailingPolicy",
)
HOST_COPIES: Final = _error(
    "host-copies", "The host may write files into the guest; set CopyFileRequest to false.", f"{_KATA}, CopyFileRequest"
)
OUTPUT_READABLE: Final = _warning(
    "output-readable",
    "The host reads what the container prints; set ReadStreamRequest to false.",
    f"{_KATA}, ReadStreamRequest",
)
NO_AGENT_POLICY: Final = _error(
    "no-agent-policy",
    "Nothing measured says what the host may ask of the guest; give it a policy as initdata.",
    f"{_COCO}",
)
NOT_CONFIDENTIAL: Final = _error(
    "not-confidential", "The pod runs outside a TEE; set runtimeClassName to a confidential one.", f"{_COCO}"
)
GUEST_OVERRIDDEN: Final = _error(
    "guest-overridden",
    "An annotation changes the guest's kernel, its arguments or its debugging, outside the measurement; remove it.",
    "Kata Containers, How to set sandbox configurations with annotations",
)

# -- containers and units ----------------------------------------------------------------------------------------------

WRITABLE_ROOT: Final = _warning(
    "writable-root", "The container can change its own program; set read_only.", f"{_COMPOSE}, read_only"
)
ROOT_USER: Final = _error("root-user", "The service runs as root; set DynamicUser=yes or User=.", f"{_SYSTEMD}, User=")
CORE_DUMPS: Final = _error(
    "core-dumps", "A crash writes memory, with its secrets, to disk; set LimitCORE=0.", f"{_SYSTEMD}, LimitCORE="
)
UNHARDENED: Final = _error(
    "unhardened",
    "The service could change the system or gain privileges; set NoNewPrivileges=yes and ProtectSystem=strict.",
    f"{_SYSTEMD}, Sandboxing",
)
SWAP: Final = _warning(
    "swap", "Memory with secrets may be written to swap; set MemorySwapMax=0.", "systemd.resource-control(5)"
)

RULES: Final = MappingProxyType({rule.id: rule for rule in list(vars().values()) if isinstance(rule, Rule)})
"""All of them by id."""
