"""Retrieval: documents become chunks, chunks a sealed corpus, and questions are answered with the chunks that fit them.

Knows no network and no TEE, and models only as what reads a question: see `confide.models.encoders`.
"""
