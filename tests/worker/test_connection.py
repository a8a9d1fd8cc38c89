"""What people are told when Temporal answers, and the answer is no."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import Mock

import pytest
from temporalio.client import Client
from temporalio.service import ConnectConfig, GrpcCompression, ServiceClient

from starters.doctor_temporal import temporal_lines
from workflows.connection import ConnectionProblem, connect, require_search_attributes
from workflows.plugin import RunbooksPlugin

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _SETTINGS, _PING = 1, 4, 6
_END_STREAM, _ACK = 1, 1


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return len(content).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + content


def _refusal(status: int, message: str) -> bytes:
    """Headers of a gRPC answer that is nothing but a status."""
    fields = {"content-type": "application/grpc", "grpc-status": str(status), "grpc-message": message}
    literal = [
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields.items()
    ]
    return b"\x88" + b"".join(literal)


@asynccontextmanager
async def refusing(status: int, message: str) -> AsyncIterator[str]:
    """The address of a server that answers every call with this status of gRPC."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(len(_PREFACE))
            writer.write(_frame(_SETTINGS, 0, 0))
            while True:
                head = await reader.readexactly(9)
                content = await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                if kind in (_SETTINGS, _PING) and not flags & _ACK:
                    writer.write(_frame(kind, _ACK, 0, content if kind == _PING else b""))
                elif stream and flags & _END_STREAM:
                    writer.write(_frame(_HEADERS, 4 | _END_STREAM, stream, _refusal(status, message)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield "{}:{}".format(*server.sockets[0].getsockname())


class Between:
    """In front of a server, and able to cut the connection of whoever says something next."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.partition(":")
        self.address, self.cuts = "", 0
        self._open: list[asyncio.WriteTransport] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(writer.transport)
        answers, asks = await asyncio.open_connection(self._host, int(self._port))

        async def back() -> None:
            while said := await answers.read(65536):
                writer.write(said)

        task = asyncio.create_task(back())
        with contextlib.suppress(ConnectionError):
            while said := await reader.read(65536):
                if self.cuts:
                    self.cuts -= 1
                    writer.transport.abort()
                    break
                asks.write(said)
        task.cancel()
        asks.close()
        writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Between]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            self.address = "{}:{}".format(*server.sockets[0].getsockname())
            try:
                yield self
            finally:
                for connection in self._open:  # a server waits for those that call it to hang up
                    connection.abort()


@pytest.mark.parametrize(("status", "named"), [(16, "UNAUTHENTICATED"), (7, "PERMISSION_DENIED")])
async def test_an_expired_key_is_told_from_a_server_that_is_away(
    monkeypatch: pytest.MonkeyPatch, status: int, named: str
) -> None:
    async with refusing(status, "the API key has expired") as address:
        monkeypatch.setenv("TEMPORAL_ADDRESS", address)
        with pytest.raises(ConnectionProblem) as told:
            await asyncio.wait_for(connect(None, patience=3600), 120)  # at once, whatever the patience
    assert f"Temporal at {address} refuses" in str(told.value)
    assert f"{named}, the API key has expired. Renew TEMPORAL_API_KEY" in str(told.value)


async def test_any_other_answer_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with refusing(9, "not today") as address:
        monkeypatch.setenv("TEMPORAL_ADDRESS", address)
        with pytest.raises(ConnectionProblem, match="answers FAILED_PRECONDITION: not today"):
            await asyncio.wait_for(connect(None, patience=0), 120)


async def test_a_server_that_dies_as_a_worker_starts_is_asked_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``make chaos`` met it: the worker had just reached Temporal, and ended as one that is set up wrongly does."""
    async with Between(client.service_client.config.target_host).listening() as between:
        monkeypatch.setenv("TEMPORAL_ADDRESS", between.address)
        connected = await connect(None)
        between.cuts = 1
        await require_search_attributes(connected)
        assert between.cuts == 0


async def test_the_doctor_has_a_remedy_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with refusing(16, "the API key has expired") as address:
        monkeypatch.setenv("TEMPORAL_ADDRESS", address)
        (line,) = await asyncio.wait_for(temporal_lines(None), 120)
    assert line.said.endswith("UNAUTHENTICATED, the API key has expired")
    assert (line.remedy or "").startswith("Renew TEMPORAL_API_KEY")


@pytest.mark.parametrize(
    ("target", "compression"),
    [
        ("127.0.0.1:7233", GrpcCompression.NONE),
        ("localhost:7233", GrpcCompression.NONE),
        ("localhost.example.com:7233", GrpcCompression.GZIP),
        ("team.a1b2c.tmprl.cloud:7233", GrpcCompression.GZIP),
    ],
)
async def test_only_what_leaves_the_machine_is_compressed(target: str, compression: GrpcCompression) -> None:
    asked: list[ConnectConfig] = []

    async def connected(config: ConnectConfig) -> ServiceClient:
        asked.append(config)
        return Mock(spec=ServiceClient)

    await RunbooksPlugin().connect_service_client(ConnectConfig(target_host=target), connected)
    assert [config.grpc_compression for config in asked] == [compression]
