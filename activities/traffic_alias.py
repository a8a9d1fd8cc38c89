"""Splitting traffic by a weighted Lambda alias. Every change is guarded by the alias's ``RevisionId``."""

from __future__ import annotations

from activities.errors import lasting
from activities.functions import Functions, Routing
from activities.stage import Stage
from activities.traffic_models import AliasShare, Restore, Split, TrafficRouting

_ROUND = 6
"""Digits after which two weights count as the same: AWS keeps them as binary fractions."""


class AliasTraffic:
    def __init__(self, functions: Functions) -> None:
        self._functions = functions

    def found(self, stage: Stage) -> TrafficRouting:
        share = self.share(stage)
        return TrafficRouting(
            summary=f"alias {stage.alias}: {share.described()}", version=share.version, alias=share, gateway=None
        )

    def share(self, stage: Stage) -> AliasShare:
        now = self._routing(stage)
        return AliasShare(version=now.version, weights=now.weights)

    def shift(self, order: Split) -> bool:
        weights = {order.target: order.percent / 100}
        return self.point(order, AliasShare(version=order.before.version, weights=weights))

    def promote(self, order: Split) -> bool:
        return self.point(order, AliasShare(version=order.target))

    def restore(self, order: Restore) -> tuple[bool, str]:
        """Where somebody moved the alias meanwhile it stays there; only the share that was given is taken away."""
        now, back = self._routing(order.stage), order.before.alias
        if now.version in (back.version, order.target):
            wanted, note = back, ""
        else:
            kept = {version: share for version, share in now.weights.items() if version != order.target}
            wanted, note = AliasShare(version=now.version, weights=kept), ", where somebody pointed it meanwhile"
        changed = self._set(order.stage, now, wanted)
        return changed, f"alias {order.stage.alias}: {wanted.described()}{note}"

    def point(self, order: Split, wanted: AliasShare) -> bool:
        """Set the alias to ``wanted``; whether that changed anything.

        Raises:
            RoutingMoved: somebody else changed it since the start.
            AliasBusy: somebody changed it just now; retryable.
        """
        now, known = self._routing(order.stage), {order.before.version, order.target}
        if not {now.version, *now.weights} <= known:
            raise lasting(
                f"alias {order.stage.alias} is at {now.described()}: somebody changed it since this began, "
                f"at {order.before.alias.described()}. Look who deployed, and start again",
                type="RoutingMoved",
            )
        return self._set(order.stage, now, wanted)

    def _set(self, stage: Stage, now: Routing, wanted: AliasShare) -> bool:
        if now.version == wanted.version and _same(now.weights, wanted.weights):
            return False
        self._functions.point(stage, now.model_copy(update=wanted.model_dump()))
        return True

    def _routing(self, stage: Stage) -> Routing:
        routing = self._functions.routing(stage)
        if routing is None:
            raise lasting(
                f"{stage.function} has no alias {stage.alias!r}, so its traffic cannot be split. "
                "Correct the stage's 'alias', or use QuickRollback with strategy 'redeploy'",
                type="NoAlias",
            )
        return routing


def _same(one: dict[str, float], other: dict[str, float]) -> bool:
    def rounded(weights: dict[str, float]) -> dict[str, float]:
        return {version: round(share, _ROUND) for version, share in weights.items() if share}

    return rounded(one) == rounded(other)
