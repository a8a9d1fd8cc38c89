"""Which version of the function gets how much of the traffic: one port, two ways to split.

``alias``: a weighted Lambda alias. ``gateway``: a canary of an API Gateway stage. The stage's settings choose. Every
change is absolute, so an attempt that died half-way is simply made again, and guarded against other people's changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from temporalio import activity

from activities.errors import classified, lasting
from activities.functions import Functions
from activities.stage import Stage
from activities.traffic_alias import AliasTraffic
from activities.traffic_gateway import GatewayTraffic
from activities.traffic_models import Restore, Shifted, Split, TrafficRouting

if TYPE_CHECKING:
    from mypy_boto3_apigateway import APIGatewayClient
    from mypy_boto3_lambda import LambdaClient


class Splitter(Protocol):
    """One way to split traffic. The changes return whether anything was changed."""

    def found(self, stage: Stage) -> TrafficRouting: ...

    def shift(self, order: Split) -> bool: ...

    def promote(self, order: Split) -> bool: ...

    def restore(self, order: Restore) -> tuple[bool, str]: ...


class Traffic:
    def __init__(self, functions: LambdaClient, gateway: APIGatewayClient) -> None:
        self._functions = Functions(functions)
        self._ways: dict[str, Splitter] = {
            "alias": AliasTraffic(self._functions),
            "gateway": GatewayTraffic(gateway, functions),
        }

    @activity.defn(name="traffic.routing")
    @classified("look where the traffic goes")
    def routing(self, stage: Stage) -> TrafficRouting:
        """Where the traffic goes now, on every layer that can split it.

        Raises:
            NoAlias, NoApi, NoStageVariable, RoutingUnclear: it cannot be split; the message says what to change.
        """
        return self._ways[stage.traffic].found(stage)

    @activity.defn(name="traffic.shift")
    @classified("shift traffic")
    def shift(self, order: Split) -> Shifted:
        """Give the target exactly this share, below 100 %, and the version that had the traffic the rest.

        Raises:
            NoVersion, AlteredVersion: the target is gone, or runs other code than it did at the start.
            RoutingMoved: somebody changed the routing since the start.
            AliasBusy: somebody changed it just now; retryable.
        """
        if order.percent >= 100:
            raise lasting("all of the traffic is given by a promotion, not by a share", type="BadShare")
        self._require(order)
        changed = self._ways[order.stage.traffic].shift(order)
        return Shifted(
            summary=f"{order.percent} % to version {order.target}, the rest to version {order.before.version}"
            + ("" if changed else " already"),
            changed=changed,
            percent=order.percent,
        )

    @activity.defn(name="traffic.promote")
    @classified("promote a version")
    def promote(self, order: Split) -> Shifted:
        """Make the target what serves, with nothing left of the split. Raises as :meth:`shift` does."""
        self._require(order)
        changed = self._ways[order.stage.traffic].promote(order)
        return Shifted(
            summary=f"version {order.target} serves everything" + ("" if changed else " already"),
            changed=changed,
            percent=100,
        )

    @activity.defn(name="traffic.restore")
    @classified("restore the routing")
    def restore(self, order: Restore) -> Shifted:
        """Put back the routing that was found, whatever of the shifts had been made. What others changed stays."""
        changed, said = self._ways[order.stage.traffic].restore(order)
        return Shifted(summary=said if changed else f"{said} already", changed=changed, percent=0)

    def _require(self, order: Split) -> None:
        found = self._functions.version(order.stage, order.target)
        if found is None:
            raise lasting(
                f"version {order.target} of {order.stage.function} is gone: somebody deleted it. "
                "Use QuickRollback with strategy 'redeploy'",
                type="NoVersion",
            )
        if order.target_code and found.code_sha256 != order.target_code:
            raise lasting(
                f"version {order.target} of {order.stage.function} runs other code than it did when this began: the "
                "function was made anew. Start again",
                type="AlteredVersion",
            )
