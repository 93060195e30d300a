"""Attestation: given evidence, collateral, a policy and a time, whether to trust, and why. Opens no socket."""
