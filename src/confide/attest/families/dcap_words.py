"""The words of DCAP reports: their fields by the names that policies use."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

NAMES: Final[Mapping[str, str]] = {
    "mr_enclave": "mrenclave",
    "mr_signer": "mrsigner",
    "isv_prod_id": "isvprodid",
    "isv_svn": "isvsvn",
    "misc_select": "miscselect",
    "attributes": "attributes",
    "mr_td": "mrtd",
    "rt_mr0": "rtmr0",
    "rt_mr1": "rtmr1",
    "rt_mr2": "rtmr2",
    "rt_mr3": "rtmr3",
    "mr_seam": "mrseam",
    "mr_signer_seam": "mrsignerseam",
    "seam_attributes": "seam_attributes",
    "mr_config_id": "mrconfigid",
    "mr_owner": "mrowner",
    "mr_owner_config": "mrownerconfig",
    "mr_service_td": "mrservicetd",
    "tee_tcb_svn": "tee_tcb_svn",
    "tee_tcb_svn2": "tee_tcb_svn2",
    "td_attributes": "td_attributes",
    "xfam": "xfam",
}
"""Fields of the reports, and what policies call them."""

_INSIDE: Final[Mapping[str, tuple[str, slice]]] = {
    "isvextprodid": ("reserved1", slice(12, 28)),
    "configid": ("reserved3", slice(32, 96)),
    "configsvn": ("reserved4", slice(0, 2)),
    "isvfamilyid": ("reserved4", slice(44, 60)),
}
"""Fields that key separation and sharing (KSS) put into reserved ones. Source: Intel SDM 3D, "REPORT"."""

_SGX_DEBUG: Final = 0x02
"""SGX ATTRIBUTES.DEBUG, bit 1 of the first byte. Source: Intel SDM volume 3D, section 34.7.1."""


def measurements(report: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """What was measured, as it stands in the report: hashes of 32 or 48 bytes, numbers of 2 bytes little-endian."""
    found = {name: report[field] for field, name in NAMES.items() if field in report}
    inside = {name: report[field][part] for name, (field, part) in _INSIDE.items() if field in report}
    return MappingProxyType(found | inside)


def in_debug(report: Mapping[str, bytes]) -> bool:
    """Whether the software can be read from outside.

    TDX: any bit of TUD, the first byte of the attributes, makes a TD untrusted; bit 0 is DEBUG. Source: Intel TDX
    Module Base Architecture Specification, "ATTRIBUTES".
    """
    if "td_attributes" in report:
        return report["td_attributes"][0] != 0
    return bool(report["attributes"][0] & _SGX_DEBUG)
