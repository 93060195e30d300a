"""A transformer's attention block evaluated on CKKS ciphertexts alone, without round trips."""
