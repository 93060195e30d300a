"""Receipts for answers: what a workload signs about each one, and how anybody checks that later, offline.

The documents are those of Attested Confidential Inference, version aci/1 (https://github.com/Dstack-TEE/
private-ai-gateway, spec/aci.md), with events of our own. Nothing in here knows a server, an engine or torch.
"""
