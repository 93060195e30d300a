"""Azure's evidence by nobody's paravisor: a forged processor's report over runtime data, and a quote by its key."""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from confide.attest.evidence import Evidence, Family
from confide.attest.simulated import SimulatedTee

from . import forged_snp, forged_tpm
from .authorities import rsa_key
from .cases import Case

AK = rsa_key("HCLAkPub")


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk(key: rsa.RSAPrivateKey, name: str = "HCLAkPub", **changes: Any) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    whole = {
        "kid": name,
        "key_ops": ["sign"],
        "kty": "RSA",
        "e": base64url(numbers.e.to_bytes(3)),
        "n": base64url(numbers.n.to_bytes(256)),
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


def runtime_data(*keys: dict[str, Any], **changes: Any) -> bytes:
    whole = {
        "keys": list(keys or (jwk(AK), jwk(rsa_key("EK"), "HCLEkPub"))),
        "vm-configuration": {"console-enabled": False, "secure-boot": True, "vmUniqueId": "1234"},
        "user-data": "00" * 64,
    }
    return json.dumps(whole | changes).encode()


@dataclass(frozen=True)
class Hcl:
    """An HCL report's fields. bound: the runtime data that the processor signs, the same unless told."""

    runtime: bytes = runtime_data()
    bound: bytes | None = None
    kind: int = 2
    hash_kind: int = 1
    magic: bytes = b"HCLA"
    size: int | None = None

    @property
    def report_data(self) -> bytes:
        return hashlib.sha256(self.runtime if self.bound is None else self.bound).digest().ljust(64, b"\0")

    def around(self, hardware: bytes) -> bytes:
        size = len(self.runtime) if self.size is None else self.size
        numbers = (len(self.runtime) + 20, 1, self.kind, self.hash_kind, size)
        head = self.magic + b"".join(number.to_bytes(4, "little") for number in (2, 2436, 2, 0, 0, 0, 0))
        middle = b"".join(number.to_bytes(4, "little") for number in numbers)
        return head + hardware.ljust(1184, b"\0") + middle + self.runtime + bytes(100)


def quoted(key: rsa.RSAPrivateKey = AK) -> dict[str, bytes]:
    message = forged_tpm.quote()
    return {"quote": message, "signature": forged_tpm.signature(message, key), "pcrs": forged_tpm.PCRS}


def azure_case(hcl: Hcl | None = None, key: rsa.RSAPrivateKey = AK, vmpl: int = 0, policy: int = 0x30000) -> Case:
    """A machine of SEV-SNP, Genoa, that verifies under the simulated root."""
    hcl = hcl or Hcl()
    fields = forged_snp.Fields.of(forged_snp.GENOA, report_data=hcl.report_data, vmpl=vmpl, policy=policy)
    case = forged_snp.snp_case(fields, of=forged_snp.GENOA)
    return Case(Evidence(Family.AZURE, hcl.around(case.evidence.raw), quoted(key)), case.collateral, case.roots)


def azure_tdx(tee: SimulatedTee, hcl: Hcl | None = None, key: rsa.RSAPrivateKey = AK) -> Evidence:
    """The evidence of a machine of TDX, whose own report counts for nothing, and a TD quote."""
    hcl = hcl or Hcl(kind=4)
    return Evidence(Family.AZURE, hcl.around(bytes(1024)), quoted(key) | {"td_quote": tee.quote(hcl.report_data).raw})
