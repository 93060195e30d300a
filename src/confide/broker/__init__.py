"""Key release: the owner keeps a model's key, and gives it to workloads whose evidence satisfies the key's policy.

At the owner's side `app` listens, `broker` decides, `store` keeps the keys and `log` what was decided; `remote` is the
workload's side.
"""
