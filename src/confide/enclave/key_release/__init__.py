"""The owner of a model releases its key to workloads that satisfy a policy, and to nobody else."""
