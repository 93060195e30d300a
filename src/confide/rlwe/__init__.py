"""Exact homomorphic linear algebra on integers. Knows no language model, no network and no file."""
