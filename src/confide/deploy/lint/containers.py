"""Pods and their agent policies (Confidential Containers), initdata, and compose files."""

import base64
import binascii
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from confide.deploy.lint import rules
from confide.deploy.lint.commands import in_command, in_image, in_variable, mapping, sequence, words_of
from confide.deploy.lint.reading import MAX_BYTES, read_toml, text_of
from confide.deploy.lint.rules import Finding
from confide.errors import InvalidManifest

# -- agent policies ----------------------------------------------------------------------------------------------------

_REQUESTS: Final = {
    "ExecProcessRequest": rules.EXEC_ALLOWED,
    "SetPolicyRequest": rules.POLICY_REPLACEABLE,
    "AllowRequestsFailingPolicy": rules.PERMISSIVE_POLICY,
    "CopyFileRequest": rules.HOST_COPIES,
    "ReadStreamRequest": rules.OUTPUT_READABLE,
}
_HEAD: Final = re.compile(rf"(?<![\w.])(default\s+)?({'|'.join(_REQUESTS)})\b")
_NO_CODE: Final = re.compile(r"""(?P<text>"(?:[^"\\\n]|\\.)*+"?|`[^`]*+`?)|\#[^\n]*""")
"""Texts, also such as nothing closes, so that none is read twice; and comments."""
_FALSE: Final = re.compile(r":?= ?false\b")
_ELSE: Final = re.compile(r"\belse\b")
"""What a rule is otherwise: only a default can have none."""
_ALWAYS: Final = re.compile(r"(?::?=|if true\b|(?:if )?\{ ?true ?\})")
_CONDITIONS: Final = {
    "ExecProcessRequest": rules.EXEC_CONDITIONAL,
    "SetPolicyRequest": rules.POLICY_REPLACEABLE,
    "AllowRequestsFailingPolicy": rules.PERMISSIVE_POLICY,
}
"""What conditions are worth where they cannot be computed: genpolicy writes some for each request but the last two."""


def check_policy(text: str) -> Iterator[Finding]:
    """Faults of an agent policy: rego text.

    What conditions let through is not computed here; of those that allow commands a warning says so.
    """
    if not re.search(r"^[ \t]*package[ \t]+agent_policy\b", text, re.M):
        raise InvalidManifest("The policy is not of `package agent_policy`; give the agent's policy.")
    code = _NO_CODE.sub(lambda found: '""' if found["text"] else "", text)
    heads = list(_HEAD.finditer(code))
    ends = [*(head.start() for head in heads[1:]), len(code)]
    for head, end in zip(heads, ends, strict=False):  # no head: the end alone
        default, name = head.groups()
        words = code[head.end() : end].split(maxsplit=4)[:4]
        body = " ".join(words)
        if _FALSE.match(body) and (default or not _ELSE.search(code, head.end(), end)):
            continue
        if default or _ALWAYS.match(body) or not body:
            yield Finding(_REQUESTS[name], name)
        elif name in _CONDITIONS:
            yield Finding(_CONDITIONS[name], name)


def check_initdata(document: Mapping[str, object]) -> Iterator[Finding]:
    """Faults of initdata, whose digest the hardware reports."""
    policy = mapping(document.get("data")).get("policy.rego")
    if not isinstance(policy, str):
        yield Finding(rules.NO_AGENT_POLICY, "data.policy.rego")
        return
    yield from check_policy(policy)


# -- pods --------------------------------------------------------------------------------------------------------------

_CONFIDENTIAL: Final = re.compile(r"kata-(?:cc|qemu-(?:coco|tdx|snp|se|nvidia-gpu-(?:tdx|snp))|remote)")
_INITDATA: Final = "io.katacontainers.config.hypervisor.cc_init_data"
_POLICY: Final = "io.katacontainers.config.agent.policy"
_OVERRIDES: Final = ("io.katacontainers.config.hypervisor.", "io.katacontainers.config.agent.")
_HARMLESS: Final = frozenset(
    (_INITDATA, _POLICY, *(f"{_OVERRIDES[0]}{name}" for name in ("default_vcpus", "default_memory")))
)
_TEMPLATES: Final = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job")
_PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")


def check_object(document: object) -> Iterator[Finding]:
    """Faults of a Kubernetes object that runs pods; others are passed over.

    InvalidManifest for containers in an object of a kind that is not known.
    """
    object_ = mapping(document)
    spec = mapping(object_.get("spec"))
    if object_.get("kind") == "Pod":
        yield from _pod(object_)
    elif object_.get("kind") in _TEMPLATES:
        yield from _pod(mapping(spec.get("template")))
    elif object_.get("kind") == "CronJob":
        yield from _pod(mapping(mapping(mapping(spec.get("jobTemplate")).get("spec")).get("template")))
    elif object_.get("kind") == "PodTemplate":
        yield from _pod(mapping(object_.get("template")))
    elif str(object_.get("kind")).endswith("List"):
        for item in sequence(object_.get("items")):
            yield from check_object(item)
    elif _has_containers(object_):
        raise InvalidManifest("An object of an unknown kind has containers; give the pods that are made of it.")


def _has_containers(value: object) -> bool:
    inner = (*mapping(value).values(), *sequence(value))
    return bool(sequence(mapping(value).get("containers"))) or any(map(_has_containers, inner))


def _pod(pod: Mapping[str, object]) -> Iterator[Finding]:
    spec, annotations = mapping(pod.get("spec")), mapping(mapping(pod.get("metadata")).get("annotations"))
    runtime = spec.get("runtimeClassName")
    if not (isinstance(runtime, str) and _CONFIDENTIAL.fullmatch(runtime)):
        yield Finding(rules.NOT_CONFIDENTIAL, "spec.runtimeClassName")
    if any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield Finding(rules.PRIVILEGED, "spec")
    for volume in sequence(spec.get("volumes")):
        if "hostPath" in mapping(volume):
            yield Finding(rules.PRIVILEGED, f"spec.volumes {mapping(volume).get('name', '')} hostPath")
    for name in annotations:
        if name.startswith(_OVERRIDES) and name not in _HARMLESS:
            yield Finding(rules.GUEST_OVERRIDDEN, f"metadata.annotations {name}")
    yield from _agent_policy(annotations)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(sequence(spec.get(kind))):
            yield from _container(mapping(container), f"spec.{kind}[{index}]")


def _agent_policy(annotations: Mapping[str, object]) -> Iterator[Finding]:
    if _INITDATA in annotations:
        yield from check_initdata(read_toml(text_of(_inflated(_decoded(annotations[_INITDATA])))))
    if _POLICY in annotations:
        yield from check_policy(text_of(_decoded(annotations[_POLICY])))
    if _INITDATA not in annotations and _POLICY not in annotations:
        yield Finding(rules.NO_AGENT_POLICY, f"metadata.annotations {_INITDATA}")


def _container(container: Mapping[str, object], place: str) -> Iterator[Finding]:
    yield from in_image(container.get("image"), f"{place}.image")
    yield from in_command([*words_of(container.get("command")), *words_of(container.get("args"))], place)
    if sequence(container.get("envFrom")):
        yield Finding(rules.UNMEASURED_ENVIRONMENT, f"{place}.envFrom")
    for variable in map(mapping, sequence(container.get("env"))):
        name = str(variable.get("name", ""))
        if "valueFrom" in variable:
            yield Finding(rules.UNMEASURED_ENVIRONMENT, f"{place}.env {name}")
        yield from in_variable(name, variable.get("value"), f"{place}.env {name}")
    security = mapping(container.get("securityContext"))
    added = sequence(mapping(security.get("capabilities")).get("add"))
    if security.get("privileged") or security.get("allowPrivilegeEscalation") or added:
        yield Finding(rules.PRIVILEGED, f"{place}.securityContext")
    if security.get("readOnlyRootFilesystem") is not True:
        yield Finding(rules.WRITABLE_ROOT, f"{place}.securityContext")
    hooks = mapping(container.get("lifecycle"))
    for name, probe in [*((name, container.get(name)) for name in _PROBES), *hooks.items()]:
        if "exec" in mapping(probe):
            yield Finding(rules.EXEC_ALLOWED, f"{place}.{name}.exec")


def _decoded(value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else b"!", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidManifest("An annotation of the pod is not base64; write it anew.") from None


def _inflated(content: bytes) -> bytes:
    """gzip, as far as a file may be long."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(content, MAX_BYTES + 1)
    except zlib.error:
        raise InvalidManifest("The pod's initdata is not gzip; write it anew.") from None
    if not unpacker.eof and len(found) <= MAX_BYTES:
        raise InvalidManifest("The pod's initdata is cut off; write it anew.")
    return found


# -- compose -----------------------------------------------------------------------------------------------------------

_SOCKETS: Final = ("/var/run/dstack.sock", "/run/dstack.sock", "/sys/kernel/config")
"""What a workload needs of its own guest to get evidence."""
_NAMESPACES: Final = ("network_mode", "pid", "ipc", "userns_mode", "uts", "cgroup")
_PRIVILEGES: Final = ("privileged", "cap_add", "devices", "device_cgroup_rules", "use_api_socket")
_HOOKS: Final = ("post_start", "pre_stop")
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_INTERPOLATED: Final = re.compile(r"(?<!\$)(?:\$\$)*\$(?:\{|[A-Za-z_])")
"""A variable that whoever starts it fills in (Compose Specification, Interpolation); $$ is a dollar."""
_ELSEWHERE: Final = "A part of it stands in another file; give what `docker compose config` prints."


def check_compose(document: Mapping[str, object]) -> Iterator[Finding]:
    """Faults of a compose file. InvalidManifest where a part of it stands in another file."""
    if "include" in document:
        raise InvalidManifest(_ELSEWHERE)
    for name, value in mapping(document.get("services")).items():
        yield from _service(mapping(value), f"services.{name}")
    for key, value in document.items():
        if key != "services" and any(map(_INTERPOLATED.search, _texts(value))):
            yield Finding(rules.UNMEASURED_ENVIRONMENT, key)
    for name, value in mapping(document.get("volumes")).items():
        if mapping(mapping(value).get("driver_opts")).get("device", "tmpfs") != "tmpfs":
            yield Finding(rules.PRIVILEGED, f"volumes.{name}.driver_opts")
    for kind in ("configs", "secrets"):
        for name, value in mapping(document.get(kind)).items():
            for key, rule in (("environment", rules.UNMEASURED_ENVIRONMENT), ("file", rules.PRIVILEGED)):
                if key in mapping(value):
                    yield Finding(rule, f"{kind}.{name}.{key}")


def _service(service: Mapping[str, object], place: str) -> Iterator[Finding]:
    if "extends" in service:
        raise InvalidManifest(_ELSEWHERE)
    for key, value in service.items():
        if any(map(_INTERPOLATED.search, _texts(value))):
            yield Finding(rules.UNMEASURED_ENVIRONMENT, f"{place}.{key}")
    yield from in_image(service.get("image"), f"{place}.image")
    if "build" in service:  # made anew here, whatever `image` says
        yield Finding(rules.IMAGE_BY_TAG, f"{place}.build")
    if service.get("env_file"):
        yield Finding(rules.UNMEASURED_ENVIRONMENT, f"{place}.env_file")
    yield from _command(service, place)
    yield from in_command(words_of(mapping(service.get("healthcheck")).get("test")), f"{place}.healthcheck")
    for kind in _HOOKS:
        for hook in map(mapping, sequence(service.get(kind))):
            yield from _command(hook, f"{place}.{kind}")
            if hook.get("privileged"):
                yield Finding(rules.PRIVILEGED, f"{place}.{kind}")
    shared = [name for name in _NAMESPACES if service.get(name) == "host"]
    unconfined = [
        one for one in sequence(service.get("security_opt")) if re.search("[:=](?:unconfined|disable)", str(one))
    ]
    if any(map(service.get, _PRIVILEGES)) or shared or unconfined:
        yield Finding(rules.PRIVILEGED, place)
    for volume in sequence(service.get("volumes")):
        source = str(mapping(volume).get("source", "")) if isinstance(volume, dict) else str(volume).partition(":")[0]
        bound = mapping(volume).get("type") == "bind" or source.startswith(("/", ".", "~"))
        if bound and source not in _SOCKETS:
            yield Finding(rules.PRIVILEGED, f"{place}.volumes")
    for port in sequence(service.get("ports")):
        target = (
            mapping(port).get("target") if isinstance(port, dict) else str(port).rpartition(":")[2].partition("/")[0]
        )
        ports = _PORTS.fullmatch(str(target))
        if ports and int(ports[1]) <= 22 <= int(ports[2] or ports[1]):
            yield Finding(rules.SSH, f"{place}.ports")
    if service.get("read_only") is not True:
        yield Finding(rules.WRITABLE_ROOT, f"{place}.read_only")


def _command(table: Mapping[str, object], place: str) -> Iterator[Finding]:
    """Faults of what is run, and of its environment."""
    words = [*words_of(table.get("entrypoint")), *words_of(table.get("command"))]
    yield from in_command(words, f"{place}.command")
    for name, variable in _variables(table.get("environment")):
        if variable is None:
            yield Finding(rules.UNMEASURED_ENVIRONMENT, f"{place}.environment {name}")
        yield from in_variable(name, variable, f"{place}.environment {name}")


def _texts(value: object) -> Iterator[str]:
    """All texts in a value, and the keys of its tables."""
    if isinstance(value, str):
        yield value
    for one in (*mapping(value), *mapping(value).values(), *sequence(value)):
        yield from _texts(one)


def _variables(environment: object) -> Iterator[tuple[str, object]]:
    """Names and values; None where the host's value is taken."""
    yield from mapping(environment).items()
    for entry in sequence(environment):
        name, equals, value = str(entry).partition("=")
        yield name, value if equals else None
