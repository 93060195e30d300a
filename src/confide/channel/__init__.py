"""End-to-end encryption of requests and answers, to a key that attestation speaks for."""
