"""Machines at Azure and at Google, whose firmware is the vendor's: what asks for one, and the policy for what it runs.

Nothing that the vendor's firmware measures can be computed from files that are at hand. So a policy comes from evidence
of one machine that the owner started from the same image, verified (`confide attest policy from`); what is here holds
it to name the code, and adds the model.
"""

import json
import re
from typing import Final

from confide.attest.families.eventlog import REGISTERS, EventLog
from confide.attest.policy import Policy
from confide.attest.requirements import Tdx
from confide.deploy.deployment import Deployment, azure_code_missing, in_guest, tdx_code_missing
from confide.deploy.predict import events
from confide.deploy.predict.prediction import Prediction
from confide.deploy.service import Service
from confide.deploy.targets import unit
from confide.errors import DeployError, EventLogMismatch

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._\-]{0,79}"
_AZURE_IMAGE: Final = re.compile(
    rf"/subscriptions/[0-9a-f\-]{{36}}/resourceGroups/{_NAME}/providers/Microsoft\.Compute/"
    rf"galleries/{_NAME}/images/{_NAME}/versions/[0-9]+\.[0-9]+\.[0-9]+"
)
_AZURE_SIZE: Final = re.compile(r"Standard_[DE]C[0-9]{1,3}[a-z]*_v[0-9]")
_GOOGLE_IMAGE: Final = re.compile(rf"projects/{_NAME}/global/images/{_NAME}")
_GOOGLE_MACHINE: Final = re.compile(r"c3-standard-[0-9]{1,3}")
_ZONE: Final = re.compile(r"[a-z]+-[a-z]+[0-9]-[a-z]")

_VENDORS: Final = "the vendor's, and no file at hand says it"
_STARTED: Final = "your image's, as the vendor's firmware starts it, and no file at hand says how"
_LOGGED: Final = "The registers are those of the log, which is worth what verified evidence with the same is worth."
_ONE_KIND: Final = "Machines of one kind and size, from the image of the machine that gave the evidence."


def azure(
    service: Service, *, program: str, image: str, size: str, secure_boot: bool, guest: Policy | None
) -> Deployment:
    """A template for a confidential machine of Azure's, and the unit for its image.

    image: a version of an image in a gallery, by its id. size: such as Standard_DC16as_v5; those of TDX can be
    verified, but Confide gets no quote there to serve with. guest: asks for the paravisor and the TPM's PCRs.
    """
    if not _AZURE_IMAGE.fullmatch(image):
        raise DeployError(
            "--image is the id of one version of an image: /subscriptions/.../galleries/.../images/.../versions/1.0.0."
        )
    if not _AZURE_SIZE.fullmatch(size):
        raise DeployError("--size is one of Azure's confidential sizes, such as Standard_DC16as_v5.")
    machine = {
        "type": "Microsoft.Compute/virtualMachines",
        "apiVersion": "2024-07-01",
        "name": "confide",
        "location": "[resourceGroup().location]",
        "properties": {
            "hardwareProfile": {"vmSize": size},
            "storageProfile": {
                "imageReference": {"id": image},
                "osDisk": {
                    "osType": "Linux",
                    "createOption": "FromImage",
                    "deleteOption": "Delete",
                    "managedDisk": {"securityProfile": {"securityEncryptionType": "VMGuestStateOnly"}},
                },
            },
            "securityProfile": {
                "securityType": "ConfidentialVM",
                "uefiSettings": {"secureBootEnabled": secure_boot, "vTpmEnabled": True},
            },
            "networkProfile": {"networkInterfaces": [{"id": "[parameters('networkInterface')]"}]},
            "diagnosticsProfile": {"bootDiagnostics": {"enabled": False}},
        },
    }
    template = {
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "parameters": {
            "networkInterface": {"type": "string", "metadata": {"description": "The id of its network interface."}}
        },
        "resources": [machine],
    }
    files = {"azuredeploy.json": _json(template), "confide.service": unit(service, program)}
    prediction = Prediction({}, {"paravisor": _VENDORS, "pcrs": _STARTED}, (_ONE_KIND,))
    return in_guest("azure", service, files, guest, prediction, azure_code_missing)


def gcp(
    service: Service, *, program: str, image: str, machine: str, zone: str, log: EventLog | None, guest: Policy | None
) -> Deployment:
    """An instance of Google's with TDX, and the unit for its image. DeployError where log and guest do not agree.

    image: projects/PROJECT/global/images/NAME. log: of the machine that gave the evidence of guest, whose events are
    then what other machines' logs are compared with. SEV-SNP is not offered: what it measures there is firmware alone.
    """
    for value, pattern, what in (
        (image, _GOOGLE_IMAGE, "--image is projects/PROJECT/global/images/NAME, and no family, which moves on"),
        (machine, _GOOGLE_MACHINE, "--machine is one that has TDX, such as c3-standard-22"),
        (zone, _ZONE, "--zone is a zone, such as europe-west4-a"),
    ):
        if not pattern.fullmatch(value):
            raise DeployError(f"{what}; correct it.")
    instance = {
        "name": "confide",
        "machineType": f"zones/{zone}/machineTypes/{machine}",
        "confidentialInstanceConfig": {"confidentialInstanceType": "TDX"},
        "scheduling": {"onHostMaintenance": "TERMINATE"},
        "shieldedInstanceConfig": {"enableVtpm": True, "enableIntegrityMonitoring": True},
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": image}}],
        "networkInterfaces": [{"network": "global/networks/default", "nicType": "GVNIC"}],
        "metadata": {
            "items": [
                {"key": "block-project-ssh-keys", "value": "TRUE"},
                {"key": "serial-port-enable", "value": "FALSE"},
            ]
        },
        "serviceAccounts": [],
    }
    files = {"instance.json": _json(instance), "confide.service": unit(service, program)}
    seen = () if log is None else tuple(_logged(log))
    registers = events.registers(seen) if log is not None else {}
    unpredicted = {"mrtd": _VENDORS} | ({} if log is not None else dict.fromkeys(REGISTERS[:3], _STARTED))
    if log is not None and guest is not None:
        _require_same(registers, guest)
    prediction = Prediction(registers, unpredicted, (_ONE_KIND, *(() if log is None else (_LOGGED,))), seen)
    return in_guest("gcp", service, files, guest, prediction, tdx_code_missing)


def _logged(log: EventLog) -> list[events.BootEvent]:
    """A log's events: their digests from their inputs where these are in the log. EventLogMismatch where one is not."""
    found = []
    for event in log.events:
        if event.kind == events.NO_ACTION:
            continue
        vouched = events.from_data(event)
        if vouched not in (None, event.digest):
            raise EventLogMismatch(
                f"An event of the log, {event.name}, has other data than were measured; fetch it again."
            )
        found.append(events.BootEvent(event.name, event.register, event.kind, event.digest, given=vouched is None))
    return found


def _require_same(registers: dict[str, bytes], guest: Policy) -> None:
    asked = [one.rtmrs for one in guest.requirements if isinstance(one, Tdx) and one.rtmrs]
    for rtmrs in asked:
        for name, value in zip(REGISTERS, rtmrs, strict=False):
            if value and registers[name].hex() != value:
                raise DeployError(
                    f"The policy of --guest asks for another {name} than --log leads to; give evidence and log of one "
                    "machine, fetched together."
                )


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
