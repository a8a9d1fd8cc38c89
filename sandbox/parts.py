"""The parts of the sandbox: how each is started, and how to tell that it answers."""

from __future__ import annotations

import functools
import os
import shutil
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

import sandbox
from sandbox import mongodb
from sandbox.ports import HOST
from sandbox.state import Layout, Vault
from workflows import search_attributes

ACCOUNT = "123456789012"
REGION = "us-east-1"
NAMESPACE = "default"

_PROBE_SECONDS = 2.0
# Variables that would lead a part, or the worker, out of the sandbox and into somebody's real account or cluster.
_FOREIGN = ("AWS_", "TEMPORAL_", "RUNBOOKS_", "HUB_")

# One shard is asked for work 20 times a second by default, which makes every step take 50 ms and every timer a second.
# With the others a run's search attributes are found at once, a run can be paused, and time can be skipped for a
# demonstration (the last under the names that it has in this release and in the next).
_DYNAMIC_CONFIG = {
    "history.transferProcessorMaxPollRPS": "2000",
    "history.timerProcessorMaxPollRPS": "2000",
    "history.timerProcessorMaxTimeShift": '"1ms"',
    # Otherwise read from the database for every task; they are there before the server is.
    "system.forceSearchAttributesCacheRefreshOnRead": "false",
    # Nobody looks at the metrics of this one, which it goes through every second.
    "metrics.breakdownByTaskQueue": "false",
    "frontend.WorkflowPauseEnabled": "true",
    "frontend.WorkflowTimeSkippingEnabled": "true",
    "system.workflowTimeSkippingEnabled": "true",
    # Often by default, which is half of what an idle server does.
    "system.namespaceCacheRefreshInterval": '"1m"',
    "matching.ephemeralDataUpdateInterval": '"1m"',
}


class NotInstalledError(Exception):
    """A program that the sandbox needs is missing; the message says how to get it."""


class NotReadyError(Exception):
    """The part answers, but not yet as it will."""


@dataclass(frozen=True)
class Site:
    """Where this sandbox is: its files, its ports by name, its secrets."""

    layout: Layout
    ports: Mapping[str, int]
    vault: Vault

    def url(self, port: str) -> str:
        return f"http://{HOST}:{self.ports[port]}"


@dataclass(frozen=True)
class Part:
    name: str
    ports: Mapping[str, int]
    """Preferred port by the port's name."""
    command: Callable[[Site], list[str]]
    ready: Callable[[Site], None]
    """Raises while the part does not answer."""
    environment: Callable[[Site], dict[str, str]] = field(default=lambda _site: {})


def program(name: str) -> str:
    """The full path of a program that comes with the sandbox's dependencies.

    Raises:
        NotInstalledError: it is neither beside this interpreter nor on the PATH.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise NotInstalledError(f"{name} is not installed. Run: pip install 'operational-runbooks[sandbox]'")
    return found


def base_environment() -> dict[str, str]:
    """This process's environment without what points outside the sandbox, and with this project importable."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    root = str(Path(sandbox.__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    # A proxy of the network knows nothing of this machine's loopback.
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, [environment.get(name), HOST, "localhost"]))
    return environment


@functools.cache
def _tls() -> ssl.SSLContext:
    """Loaded once: it costs more than all the rest of a probe."""
    return httpx.create_ssl_context(trust_env=False)


def _get(url: str) -> httpx.Response:
    with httpx.Client(timeout=_PROBE_SECONDS, trust_env=False, verify=_tls()) as client:
        return client.get(url).raise_for_status()


def _temporal_command(site: Site) -> list[str]:
    options = ["--ip", HOST, "--port", str(site.ports["temporal"]), "--ui-port", str(site.ports["temporal-ui"])]
    options += ["--db-filename", str(site.layout.data / "temporal.db")]
    options += ["--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"]
    options += ["--log-level", "warn", "--ui-disable-news-fetch"]
    for key in search_attributes.ALL:
        options += ["--search-attribute", f"{key.name}={_type_name(key.indexed_value_type.name)}"]
    for name, value in _DYNAMIC_CONFIG.items():
        options += ["--dynamic-config-value", f"{name}={value}"]
    return [program("temporal"), "server", "start-dev", *options]


def _type_name(indexed_value_type: str) -> str:
    """``KEYWORD_LIST`` as the command line spells it: ``KeywordList``."""
    return indexed_value_type.title().replace("_", "")


def _temporal_ready(site: Site) -> None:
    # Through the UI to the server and back: both answer, and the runbooks' search attributes are there.
    url = f"{site.url('temporal-ui')}/api/v1/namespaces/{NAMESPACE}/search-attributes"
    known = _get(url).json()["customAttributes"]
    missing = [key.name for key in search_attributes.ALL if key.name not in known]
    if missing:
        raise NotReadyError(f"search attributes {', '.join(missing)} are not registered")


def _aws_command(_site: Site) -> list[str]:
    return [sys.executable, "-m", "sandbox.aws"]


def _aws_environment(site: Site) -> dict[str, str]:
    return {"GATEWAY_PORT": str(site.ports["aws"]), "BIND_HOST": HOST, "MINISTACK_ACCOUNT_ID": ACCOUNT}


def _aws_ready(site: Site) -> None:
    _get(f"{site.url('aws')}/_ministack/health")


def _mongodb_command(site: Site) -> list[str]:
    return mongodb.command(program(mongodb.PROGRAM), site.ports["mongodb"], site.layout.data / "mongodb", auth=True)


def _hub_command(site: Site) -> list[str]:
    state = site.layout.data / "hub.jsonl"
    return [sys.executable, "-m", "sandbox.hub", "--port", str(site.ports["hub"]), "--state", str(state)]


def _hub_environment(site: Site) -> dict[str, str]:
    checked = {"HUB_WEBHOOK_TOKEN": site.vault.webhook_token, "HUB_ATLAS_SECRET": site.vault.atlas_secret}
    if "mongodb" not in site.ports:
        return checked
    return checked | {"HUB_MONGODB_URI": mongodb.admin_uri(site.ports["mongodb"], site.vault)}


def _hub_ready(site: Site) -> None:
    _get(f"{site.url('hub')}/_control/fail")


PARTS = {
    part.name: part
    for part in (
        Part("temporal", {"temporal": 7233, "temporal-ui": 8233}, _temporal_command, _temporal_ready),
        # At 'alerts' nobody listens yet: it is kept for the receiver of whoever works on the sandbox.
        Part("aws", {"aws": 4566, "alerts": 8085}, _aws_command, _aws_ready, _aws_environment),
        Part(
            "mongodb",
            {"mongodb": 27027},
            _mongodb_command,
            lambda site: mongodb.ready(site.ports["mongodb"], site.vault),
        ),
        Part("hub", {"hub": 8300}, _hub_command, _hub_ready, _hub_environment),
    )
}
