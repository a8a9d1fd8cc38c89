"""Which stages there are: the settings, as a fact that a run records once at its start."""

from __future__ import annotations

from pydantic import Field
from temporalio import activity

from activities.errors import lasting
from activities.settings import Settings
from activities.stage import Facts, PublicKey, Stage


class Signers(Facts):
    """Who can sign an approval: public keys by approver."""

    keys: dict[str, PublicKey] = Field(default_factory=dict)


class Stages:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @activity.defn(name="stages.resolve")
    def resolve(self, name: str) -> Stage:
        """The stage of that name as the settings of this worker have it now.

        Raises:
            UnknownStage: no such stage; the message lists the ones there are.
            WrongRegion: this worker's AWS clients look into another region than the stage is in.
        """
        stage = self._settings.stages.get(name)
        if stage is None:
            names = ", ".join(sorted(self._settings.stages)) or "none"
            raise lasting(
                f"there is no stage {name!r}. Stages in the worker's settings: {names}. "
                "Start the run again with one of them, or add the stage to the settings",
                type="UnknownStage",
            )
        if stage.region != self._settings.aws.region:
            raise lasting(
                f"stage {name!r} is in {stage.region}, this worker's AWS clients are in {self._settings.aws.region}. "
                "Run a worker for that region on a task queue of its own",
                type="WrongRegion",
            )
        known = {"ui_url": self._settings.ui.url, "migrations_queue": self._settings.migrations_queue}
        return stage.model_copy(update=known)

    @activity.defn(name="stages.signers")
    def signers(self) -> Signers:
        """The registered keys as the settings of this worker have them now, which may be weeks after the run began."""
        return Signers(keys=self._settings.approvers)
