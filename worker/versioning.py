"""Worker Deployment Versioning, for teams that deploy workers side by side; off unless the environment names a version.

Without it every worker takes every run, and code that changes the commands of a workflow stands behind
``workflow.patched``. With it Temporal hands new runs to the version that was made current, and a run that is under way
goes on under it from its next step: behind the same patches, because a run of 90 days outlives any version.
"""

from __future__ import annotations

from collections.abc import Mapping

from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig

from activities.settings import ConfigError

NAME, BUILD = "TEMPORAL_DEPLOYMENT_NAME", "TEMPORAL_WORKER_BUILD_ID"


def deployment(environment: Mapping[str, str]) -> WorkerDeploymentConfig | None:
    """The version of this worker, or None: it is unversioned.

    The behaviour is set for the whole worker, never on a class: a class that names one is refused by the server, task
    after task, where the worker is unversioned.

    Raises:
        ConfigError: only one of the two variables is there.
    """
    name, build = environment.get(NAME), environment.get(BUILD)
    if not name and not build:
        return None
    if not name or not build:
        missing, given = (NAME, BUILD) if build else (BUILD, NAME)
        raise ConfigError(f"{given} is set and {missing} is not. Set both, or neither for an unversioned worker")
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(deployment_name=name, build_id=build),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
    )


def to_make_current(environment: Mapping[str, str]) -> str:
    """The command that lets this version have runs: until somebody gives it, a versioned worker gets none."""
    return (
        "temporal worker deployment set-current-version --yes "
        f"--deployment-name {environment.get(NAME)} --build-id {environment.get(BUILD)}"
    )
