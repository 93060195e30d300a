"""The client's half of the hybrid mode. Knows nothing of the server's."""
