"""Retrieval: documents become chunks, chunks a sealed corpus, and questions are answered with the chunks that fit them.

Knows no network, no TEE and no language model.
"""
