"""What the clients of the API are told about their new key. It names the key by reference and fingerprint only."""

from __future__ import annotations

from datetime import datetime, timedelta

from activities.stage import ApiClient, RotationPolicy
from workflows.details import length


def reference(policy: RotationPolicy, client: ApiClient) -> str:
    """Where the client finds its key."""
    store = policy.api_keys.store if policy.api_keys else "?"
    return f"secretsmanager:{store}/{client.key}"


def notice(
    policy: RotationPolicy, client: ApiClient, stage: str, new: str, deadline: datetime, run: str
) -> tuple[str, str]:
    """Title and text of the first notice, in Markdown."""
    title = f"Your API key for {stage} changes: use the new one before {deadline:%Y-%m-%d %H:%M} UTC"
    store = policy.api_keys.store if policy.api_keys else "?"
    text = (
        f"{client.name} ({client.owner}) has a new {client.key} key for the State Tracking API, stage {stage}. "
        f"Its fingerprint is `{new}`. Both keys work until the deadline, **{deadline:%Y-%m-%d %H:%M} UTC**.\n\n"
        f"1. Read it, with your own permission: "
        f"`aws secretsmanager get-secret-value --secret-id {store}/{client.key} --query SecretString`. "
        "It is never sent to you.\n"
        "2. Use it as X-Api-Key. " + (f"The guide: {policy.guide}\n" if policy.guide else "\n") + "3. Say so: "
        f'`runbooks acknowledge {run} --client "{client.name}"`, or signal `acknowledge` in the Temporal UI.'
    )
    return title, text


def reminder(
    policy: RotationPolicy, client: ApiClient, stage: str, left: timedelta, last_old: datetime, deadline: datetime
) -> tuple[str, str]:
    """Title and text of a reminder to a client that still uses an old key."""
    title = f"{length(left)} left: {client.name} still uses an old API key of {stage}"
    text = (
        f"Last request with an old key: {last_old:%Y-%m-%d %H:%M} UTC. The old keys are removed on "
        f"**{deadline:%Y-%m-%d %H:%M} UTC**. The new {client.key} key is at `{reference(policy, client)}`."
        + (f" The guide: {policy.guide}" if policy.guide else "")
    )
    return title, text
