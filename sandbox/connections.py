"""How the rest of the world finds the sandbox: the worker's settings, the environment, the ``sst`` command."""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import jinja2

from activities.settings import RecordsStore
from activities.stage import Stage
from sandbox.parts import ACCOUNT, NAMESPACE, REGION, Site, base_environment
from sandbox.ports import HOST
from sandbox.state import write_secret

ACCESS_KEY = "sandbox"
"""Both halves of the AWS credentials: the emulator checks none, and this fits no real account."""
SENDER = "runbooks@state-api.example.com"
ALARM_PREFIX = "state-api-{stage}-"
"""What the names of a stage's alarms begin with."""


_MAKING = threading.Lock()


@cache
def session() -> boto3.Session:
    """A session of the sandbox's owner: one a process, because each reads the descriptions of the services anew."""
    return boto3.Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=ACCESS_KEY, region_name=REGION)


@cache
def client(service: str, endpoint: str) -> Any:
    """A client of one service. Threads may share a client, but not the making of one."""
    with _MAKING:
        return session().client(service, endpoint_url=endpoint)  # type: ignore[call-overload]  # any service


def environment(site: Site) -> dict[str, str]:
    """The whole environment of a process that works on the sandbox, such as the worker: nothing in it leads outside."""
    inherited = base_environment()
    path = [str(site.layout.bin), str(Path(sys.executable).parent), inherited.get("PATH", "")]
    return inherited | _pointers(site) | {"PATH": os.pathsep.join(filter(None, path))}


def write(site: Site, stages: Sequence[Stage]) -> None:
    """Write ``runbooks.toml``, and the secrets that it refers to by file."""
    values = {
        "slack-webhook": f"{site.url('hub')}/slack/{site.vault.slack_path}",
        "pagerduty-routing-key": site.vault.pagerduty_routing_key,
        "webhook-token": site.vault.webhook_token,
        "github-token": site.vault.github_token,
        "atlas-client-id": "mdb_sa_id_sandbox",
        "atlas-client-secret": site.vault.atlas_secret,
        "receiver-token": site.vault.receiver_token,
    }
    for name, value in values.items():
        write_secret(site.layout.references / name, value)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # it is TOML, not HTML
    )
    templates.filters["toml"] = _toml
    text = templates.get_template("runbooks.toml.j2").render(
        site=site,
        region=REGION,
        records_bucket=RecordsStore().bucket,
        references={name: f"file:{site.layout.references / name}" for name in values},
        sender=SENDER,
        stages=stages,
        alarm_topic=alarm_topic(),
        alarm_prefix=ALARM_PREFIX,
        alerts=f"{HOST}:{site.ports['alerts']}",
        spool=str(site.layout.data / "alerts"),
    )
    site.layout.settings.write_text(text)


def alarm_topic() -> str:
    """The SNS topic of all alarms, which posts to the receiver."""
    return f"arn:aws:sns:{REGION}:{ACCOUNT}:state-api-alarms"


def write_env(site: Site) -> None:
    """Write ``env``, to be sourced by a shell: the same as :func:`environment`."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in _pointers(site).items()]
    path = shlex.quote(f"{site.layout.bin}:{Path(sys.executable).parent}")
    unset = "unset AWS_PROFILE AWS_SESSION_TOKEN TEMPORAL_PROFILE TEMPORAL_API_KEY"
    site.layout.env.write_text("\n".join([unset, *lines, f'export PATH={path}:"$PATH"', ""]))


def write_sst(site: Site) -> None:
    """Put the ``sst`` stand-in on the sandbox's PATH."""
    script = site.layout.bin / "sst"
    root = base_environment()["PYTHONPATH"]
    script.write_text(
        "#!/bin/sh\n# The sandbox's stand-in for the SST command line.\n"
        f'PYTHONPATH={shlex.quote(root)} exec {shlex.quote(sys.executable)} -m sandbox.sst "$@"\n'
    )
    script.chmod(0o755)


def _pointers(site: Site) -> dict[str, str]:
    """Where the parts that there are can be found."""
    found = {"RUNBOOKS_CONFIG": str(site.layout.settings)}
    if "temporal" in site.ports:
        found |= {"TEMPORAL_ADDRESS": f"{HOST}:{site.ports['temporal']}", "TEMPORAL_NAMESPACE": NAMESPACE}
    if "aws" in site.ports:
        found |= {
            "AWS_ENDPOINT_URL": site.url("aws"),
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
        }
    return found


def _toml(value: Any) -> str:
    """A string, number, boolean or list of these: JSON writes them as TOML does."""
    return json.dumps(value)
