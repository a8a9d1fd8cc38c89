"""Secrets are read by reference, and nothing but the reference is ever said about them."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest
from temporalio.exceptions import ApplicationError

from activities.secret_refs import SecretResolver, fingerprint
from tests.running_hub import aws_client

pytest_plugins = ("tests.hub_fixture",)

VALUE = "sup3r-s3cret-välue"


@pytest.fixture
def resolver(people_aws: str) -> SecretResolver:
    return SecretResolver(aws_client("ssm", people_aws), aws_client("secretsmanager", people_aws))


def refusal(resolver: SecretResolver, ref: str) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        resolver.resolve(ref)
    assert ref in caught.value.message
    assert VALUE not in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.__cause__ is None
    return caught.value


def test_environment(resolver: SecretResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_TEST_SECRET", VALUE)
    assert resolver.resolve("env:RUNBOOK_TEST_SECRET") == VALUE
    monkeypatch.setenv("RUNBOOK_TEST_SECRET", "changed")
    assert resolver.resolve("env:RUNBOOK_TEST_SECRET") == "changed"
    monkeypatch.delenv("RUNBOOK_TEST_SECRET")
    assert refusal(resolver, "env:RUNBOOK_TEST_SECRET").non_retryable
    monkeypatch.setenv("RUNBOOK_TEST_SECRET", "")
    assert "empty" in refusal(resolver, "env:RUNBOOK_TEST_SECRET").message


def test_file_without_its_last_line_break(resolver: SecretResolver, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{VALUE}\n", encoding="utf-8")
    assert resolver.resolve(f"file:{path}") == VALUE
    path.write_bytes(VALUE.encode("latin-1"))
    assert "UTF-8" in refusal(resolver, f"file:{path}").message
    path.unlink()
    assert "No such file" in refusal(resolver, f"file:{path}").message


def test_parameter_is_decrypted_and_kept_for_a_while(resolver: SecretResolver, people_aws: str) -> None:
    ssm, name = aws_client("ssm", people_aws), f"/runbooks/{uuid4().hex}"
    ssm.put_parameter(Name=name, Value=VALUE, Type="SecureString")
    assert resolver.resolve(f"ssm:{name}") == VALUE
    ssm.delete_parameter(Name=name)
    assert resolver.resolve(f"ssm:{name}") == VALUE
    fresh = SecretResolver(ssm, aws_client("secretsmanager", people_aws))
    error = refusal(fresh, f"ssm:{name}")
    assert error.type == "ParameterNotFound"
    assert error.non_retryable


def test_secrets_manager_whole_and_by_field(resolver: SecretResolver, people_aws: str) -> None:
    manager, name = aws_client("secretsmanager", people_aws), uuid4().hex
    manager.create_secret(Name=name, SecretString=json.dumps({"primary": VALUE, "count": 3}))
    assert resolver.resolve(f"secretsmanager:{name}#primary") == VALUE
    assert json.loads(resolver.resolve(f"secretsmanager:{name}"))["primary"] == VALUE
    assert "no text field backup" in refusal(resolver, f"secretsmanager:{name}#backup").message
    assert "no text field count" in refusal(resolver, f"secretsmanager:{name}#count").message
    manager.create_secret(Name=f"{name}-plain", SecretString=VALUE)
    assert "not JSON" in refusal(resolver, f"secretsmanager:{name}-plain#primary").message
    manager.create_secret(Name=f"{name}-binary", SecretBinary=os.urandom(8))
    assert "binary" in refusal(resolver, f"secretsmanager:{name}-binary").message
    assert refusal(resolver, f"secretsmanager:{name}-none").type == "ResourceNotFoundException"


def test_unreachable_store_may_pass() -> None:
    nowhere = "http://127.0.0.1:9"
    resolver = SecretResolver(aws_client("ssm", nowhere), aws_client("secretsmanager", nowhere))
    assert not refusal(resolver, "ssm:/x").non_retryable
    assert not refusal(resolver, "secretsmanager:x#y").non_retryable


def test_unknown_kind_is_refused(resolver: SecretResolver) -> None:
    assert refusal(resolver, "vault:x").non_retryable


def test_fingerprint_is_the_start_of_the_sha256() -> None:
    assert fingerprint(VALUE) == hashlib.sha256(VALUE.encode()).hexdigest()[:12]


class _Page(BaseHTTPRequestHandler):
    """What a gateway or a proxy puts in front of a service when it wants people to sign in."""

    def do_POST(self) -> None:
        page = b"<html><body>Please sign in</body></html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_an_answer_without_any_secret_may_pass() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{server.server_port}"
        resolver = SecretResolver(aws_client("ssm", there), aws_client("secretsmanager", there))
        for ref in ("ssm:/x", "secretsmanager:x"):
            error = refusal(resolver, ref)
            assert not error.non_retryable, error
            assert ref in error.message
        server.shutdown()
