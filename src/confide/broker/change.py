"""Binding a key to another policy, with its line in the log before anything is decided under the new one."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from confide.attest.policy import AnyPolicy
from confide.attest.policy_toml import policy_digest
from confide.attest.transition import Transition
from confide.broker.log import AuditLog, Entry, leave_entry
from confide.broker.store import Conditions, KeyStore, StoredKey
from confide.errors import AuditLogInUse


def change_policy(
    folder: Path, store: KeyStore, identity: str, policy: AnyPolicy, simulated_root: bytes | None, now: datetime
) -> tuple[StoredKey, Entry]:
    """The key as it is bound from now on, and the line. folder: that of store and log.

    A broker that runs meanwhile knows it at once. Cut off in the middle, the old policy stands, and the log has a line
    too many. UnknownModelKey, InvalidPolicy, AuditLogUnavailable, AuditLogCorrupted, KeyStoreError.
    """
    old = store.get(identity).conditions
    Conditions(old.model_digest, policy, simulated_root)  # refuses what does not belong together before it is logged
    transition = Transition.read(policy)
    entry = Entry(
        now,
        "changed",
        key=identity,
        model=old.model_digest,
        policy=policy_digest(policy),
        replaced=policy_digest(old.policy),
        simulated=simulated_root is not None,
        until=None if transition is None else transition.until,
    )
    leave_entry(folder, entry)
    stored = store.change(identity, policy, simulated_root)
    with suppress(AuditLogInUse):  # a broker writes it then, before the next key leaves
        AuditLog(folder, now).close()
    return stored, entry
