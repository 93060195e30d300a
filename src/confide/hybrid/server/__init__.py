"""The layer server. Knows nothing of the client's half."""
