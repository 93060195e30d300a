"""What attestation and encryption cost a served model: the question, its server and its clients."""
