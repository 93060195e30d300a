"""A linter for what a machine is deployed with: refuses what would give its secrets away.

It reads what a file says and never runs or asks anything. That nothing is found does not say that a deployment is safe:
only that it has none of these faults.
"""
