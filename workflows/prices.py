"""What capacity costs: a dated table, and nothing computed. Update the figures and the date together.

List prices in US dollars of the region below, without free tier, savings plans and taxes. An estimate made with them
says so, and names the date.

Sources, as they stood at that date: https://aws.amazon.com/lambda/pricing/ (Lambda),
https://www.mongodb.com/docs/atlas/reference/atlas-limits/ (connections, general class; M40 of low CPU takes 4,000),
https://www.mongodb.com/pricing (clusters on AWS).
"""

from __future__ import annotations

from typing import NamedTuple

AS_OF = "2025-11"
REGION = "us-east-1"
HOURS_A_MONTH = 730


class LambdaPrices(NamedTuple):
    """A second of a gigabyte, by what it is kept for."""

    duration: float
    """While a call runs on an environment that was started for it."""
    provisioned: float
    """While an environment is kept ready, used or not."""
    provisioned_duration: float
    """While a call runs on an environment that was kept ready."""


LAMBDA: dict[str, LambdaPrices] = {
    "x86_64": LambdaPrices(0.0000166667, 0.0000041667, 0.0000097222),
    "arm64": LambdaPrices(0.0000133334, 0.0000033334, 0.0000077778),
}

ATLAS_CONNECTIONS: dict[str, int] = {
    "M10": 1500,
    "M20": 3000,
    "M30": 3000,
    "M40": 6000,
    "M50": 16_000,
    "M60": 32_000,
    "M80": 96_000,
}
"""Connections a node of a dedicated cluster takes, by its size; the live figure of the server goes before it."""

ATLAS_HOURLY: dict[str, float] = {
    "M10": 0.08,
    "M20": 0.20,
    "M30": 0.54,
    "M40": 1.04,
    "M50": 2.00,
    "M60": 3.95,
    "M80": 7.30,
}
