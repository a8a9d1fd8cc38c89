"""The connection to Temporal: the same profiles and environment variables as the ``temporal`` command line."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client, Interceptor
from temporalio.envconfig import ClientConfig
from temporalio.runtime import Runtime
from temporalio.service import RPCError, RPCStatusCode

from activities.keyring import read_keyring
from activities.settings import Settings
from workflows import search_attributes
from workflows.plugin import RunbooksPlugin

_NOT_ALLOWED = (RPCStatusCode.UNAUTHENTICATED, RPCStatusCode.PERMISSION_DENIED)
"""Trying again does not help."""

_AWAY = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED)

_AT_CONNECT = re.compile(r'call error after connection.*?\bcode: (\w+|\'[^\']*\').*?\bmessage: "([^"]*)"', re.DOTALL)
"""How the SDK words what the server answered to its very first call, which it does not raise as an RPCError."""


class ConnectionProblem(Exception):
    """Temporal cannot be used as configured; the message is one line and says what to do."""


async def connect(
    settings: Settings | None,
    *,
    patience: float = 5.0,
    runtime: Runtime | None = None,
    interceptors: Sequence[Interceptor] = (),
) -> Client:
    """Connect with the profile of the environment: ``TEMPORAL_ADDRESS``, ``TEMPORAL_PROFILE``, ``TEMPORAL_API_KEY`` ...

    Args:
        settings: Say with which keys histories are encrypted; None to look at what is never encrypted.
        patience: Seconds to keep trying, for a server that is just starting.
        interceptors: What looks on at every call, and at every worker made from the client.

    Raises:
        ConnectionProblem: nothing answers, or the profile is wrong.
        ConfigError: the keys cannot be read.
    """
    # Beside the loop: a slow AWS must not keep the receiver, which shares it, from taking alerts.
    plugin = RunbooksPlugin(await asyncio.to_thread(read_keyring, settings) if settings else None)
    try:
        config = ClientConfig.load_client_connect_config()
    except Exception as error:
        raise ConnectionProblem(f"the Temporal profile cannot be read: {error}") from None
    config.setdefault("target_host", "localhost:7233")
    address, namespace = config["target_host"], config.get("namespace") or "default"
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        try:
            client = await Client.connect(**config, plugins=[plugin], runtime=runtime, interceptors=interceptors)
            await client.count_workflows()
        except (RPCError, RuntimeError) as error:
            status, said = _answered(error)
            if status in _NOT_ALLOWED:
                raise ConnectionProblem(
                    f"Temporal at {address} refuses who asks for namespace {namespace!r}: {status.name}, {said}. "
                    "Renew TEMPORAL_API_KEY or the certificate, and see that it may use this namespace"
                ) from None
            if isinstance(error, RPCError) and "amespace" in str(error):
                raise ConnectionProblem(
                    f"Temporal at {address} has no namespace {namespace!r}: {error.message}"
                ) from None
            if asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.3)
                continue
            if status is not None and status not in _AWAY:
                raise ConnectionProblem(
                    f"Temporal at {address} (namespace {namespace}) answers {status.name}: {said}"
                ) from None
            raise ConnectionProblem(
                f"Temporal does not answer at {address} (namespace {namespace}): start it, or set TEMPORAL_ADDRESS"
            ) from None
        return client


def _answered(error: RPCError | RuntimeError) -> tuple[RPCStatusCode | None, str]:
    """What the server said; no status where nothing answered."""
    if isinstance(error, RPCError):
        return error.status, error.message
    found = _AT_CONNECT.search(str(error))
    names = {code.name.replace("_", ""): code for code in RPCStatusCode}
    return (names.get(found[1].upper()), found[2]) if found else (None, "")


async def require_search_attributes(client: Client) -> None:
    """Fail now rather than in the middle of a run: an unregistered search attribute blocks a workflow for good.

    Raises:
        ConnectionProblem: some are missing; the message holds the command that registers them.
    """
    try:
        answer = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace),
            retry=True,  # a server that dies in this very moment is back soon
        )
    except RPCError as error:
        raise ConnectionProblem(
            f"Temporal does not tell the search attributes of namespace {client.namespace}: "
            f"{error.status.name}, {error.message}"
        ) from None
    missing = [key.name for key in search_attributes.ALL if key.name not in answer.custom_attributes]
    if missing:
        flags = " ".join(f"--name {name} --type Keyword" for name in missing)
        raise ConnectionProblem(
            f"namespace {client.namespace} lacks the search attributes {', '.join(missing)}. "
            f"Register them: temporal operator search-attribute create {flags}"
        )
