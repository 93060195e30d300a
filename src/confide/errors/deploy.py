"""Errors about what a deployment is made from."""

from confide.errors.base import ConfideError


class DeployError(ConfideError):
    """A deployment cannot be written, or something that it needs is not there."""

    code = "deploy"


class RolloutStopped(DeployError):
    """A rollout does not go on. What it did stays so, and the same command goes on from there."""

    code = "rollout-stopped"


class ClusterUnavailable(DeployError):
    """There is no Ray cluster, or a server does not start in it."""

    code = "cluster-unavailable"


class InvalidImage(DeployError):
    """A firmware, a kernel or another file that would be measured is damaged or not what it should be."""

    code = "invalid-image"


class InvalidManifest(DeployError):
    """A manifest that is to be checked cannot be read, so nothing can be said of it."""

    code = "invalid-manifest"
    exit_code = 20
