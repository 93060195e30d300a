"""The client's audit log: what was verified, refused and answered, as digests and verdicts, and never a text."""
