"""Encrypted attention: GPT-2's attention block on ciphertexts alone, and the studies around it. Knows no network."""
