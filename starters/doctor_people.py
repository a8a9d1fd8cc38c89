"""Whether a stage's people can be reached, and who may approve. Nothing that is asked here reaches anybody."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import httpx
from temporalio.exceptions import ApplicationError

from activities import settings as models
from activities.clients import Aws
from activities.delivery import call
from activities.errors import from_aws, from_http
from activities.providers import bearer
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.stage import SecretRef, Stage
from starters.doctor_lines import Check, Seen, warning, wrong
from workflows.gates import same_person

_NO_SUCH_PAGE = "operational-runbooks/doctor"
"""A deduplication key that no page has: resolving it changes nothing."""


class PeopleChecks:
    def __init__(
        self, aws: Aws, settings: Settings, stage: Stage, resolver: SecretResolver, http: httpx.Client
    ) -> None:
        self._aws, self._settings, self._stage = aws, settings, stage
        self._resolver, self._http = resolver, http

    def secrets(self) -> Check:
        """Every reference of the stage, resolved and forgotten."""
        from_aws_itself = any(ref.startswith(("ssm:", "secretsmanager:")) for ref in self._references())
        needs = ("credentials",) if from_aws_itself else ()
        return Check("secrets", self._secrets, "store a value where each reference points", needs)

    def approvals(self) -> Check:
        return Check("approvals", self._approvals, "register keys under [approvers]")

    def providers(self) -> Sequence[Check]:
        channels = self._stage.channels
        mail = channels.mail if channels.stakeholders else ()
        named = [("chat", channels.chat), ("page", channels.page), ("mail", mail), ("ticket", channels.ticket)]
        return [
            Check(f"{channel}: {name}", self._asker(channel, name), self._remedy(name))
            for channel, names in named
            for name in names
        ]

    def _remedy(self, name: str) -> str:
        return f"correct the provider {name!r} under [providers] and its secret, or mend the service"

    def _references(self) -> list[SecretRef]:
        stage = self._stage
        found: list[SecretRef | None] = [stage.api_key, stage.database.uri, stage.backup.uri]
        if (atlas := stage.backup.atlas) and stage.backup.provider == "atlas":
            found += [atlas.id, atlas.secret, atlas.scratch_uri]
        return [reference for reference in found if reference is not None]

    def _secrets(self) -> Seen:
        stage, references, problems = self._stage, self._references(), []
        for reference in references:
            try:
                self._resolver.resolve(reference)
            except ApplicationError as error:
                problems.append(error.message)
        if problems:
            return wrong(
                "; ".join(problems), f"store a value where [stages.{stage.name}] points, or correct the reference"
            )
        return Seen(f"all {len(references)} references have a value")

    def _approvals(self) -> Seen:
        stage, keys = self._stage, self._settings.approvers
        if not stage.signed_approvals:
            note = "names are taken as they are given" if stage.production else "not asked for"
            return Seen(f"unsigned: {note}")
        lacking = sorted(
            {
                person
                for policy in stage.gates.values()
                for person in policy.approvers
                if not any(same_person(person, name) for name in keys)
            }
        )
        if lacking:
            return wrong(
                f"no key is registered for {', '.join(lacking)}, whom gates of this stage name",
                "have each run 'runbooks keys new FILE', and put the line that it prints under [approvers]",
            )
        most = max((policy.approvals for policy in stage.gates.values()), default=1)
        if len(keys) <= most:
            return warning(
                f"{len(keys)} people have a key and a gate needs {most}: who asks for a run may not be one of them",
                "register more keys under [approvers]",
            )
        return Seen(f"signed, by one of {len(keys)} registered keys: {', '.join(sorted(keys))}")

    def _asker(self, channel: str, name: str) -> Callable[[], Seen]:
        providers = self._settings.providers
        kinds: dict[str, tuple[tuple[str, dict[str, object]], ...]] = {
            "chat": (("slack", dict(providers.slack)), ("webhook", dict(providers.webhook))),
            "page": (("pagerduty", dict(providers.pagerduty)), ("webhook", dict(providers.webhook))),
            "mail": (("ses", dict(providers.ses)),),
            "ticket": (
                ("github", dict(providers.github)),
                ("jira", dict(providers.jira)),
                ("webhook", dict(providers.webhook)),
            ),
        }
        for _, configured in kinds[channel]:
            if name in configured:
                return lambda: self._ask(configured[name])
        known = ", ".join(kind for kind, _ in kinds[channel])
        return lambda: wrong(
            f"no provider is named {name!r}",
            f"add [providers.KIND.{name}] with KIND one of {known}, or take it out of [stages.{self._stage.name}."
            f"channels] {channel}",
        )

    def _ask(self, config: object) -> Seen:
        match config:
            case models.Slack():
                return self._slack(config)
            case models.PagerDuty():
                event = {
                    "routing_key": self._resolver.resolve(config.routing_key),
                    "event_action": "resolve",
                    "dedup_key": _NO_SUCH_PAGE,
                }
                call(self._http, "POST", config.url, "resolve a page that does not exist", json=event)
                return Seen("PagerDuty takes events for this routing key")
            case models.Webhook():
                return self._webhook(config)
            case models.Ses():
                return self._ses(config)
            case models.GitHubIssues():
                call(
                    self._http,
                    "GET",
                    f"{config.url}/repos/{config.repository}/issues",
                    f"list the issues of {config.repository}",
                    params={"per_page": "1"},
                    headers=bearer(self._resolver, config.token),
                )
                return Seen(f"GitHub shows the issues of {config.repository}")
            case models.Jira():
                call(
                    self._http,
                    "GET",
                    f"{config.url}/rest/api/2/search/jql",
                    f"look into the project {config.project}",
                    params={"jql": f"project = {config.project}", "maxResults": "1"},
                    auth=(config.user, self._resolver.resolve(config.token)),
                )
                return Seen(f"Jira shows the project {config.project}")
        raise TypeError(f"a provider of unknown kind: {type(config).__name__}")

    def _slack(self, config: models.Slack) -> Seen:
        """A message without text: a webhook that works refuses it by that reason, and posts nothing."""
        answer = self._send("POST", self._resolver.resolve(config.webhook), "ask the Slack webhook", json={})
        if answer.text in ("no_text", "invalid_payload"):
            return Seen("the Slack webhook answers")
        reason = answer.text if answer.text.replace("_", "").isalpha() and len(answer.text) < 60 else "not Slack's own"
        return wrong(
            f"the Slack webhook answers HTTP {answer.status_code}: {reason}",
            f"make a new incoming webhook in Slack and store its URL under {config.webhook}",
        )

    def _webhook(self, config: models.Webhook) -> Seen:
        headers = bearer(self._resolver, config.token)
        answer = self._send("GET", config.url, "ask the webhook", headers=headers)
        if answer.status_code in (401, 403):
            return wrong(
                f"the webhook answers HTTP {answer.status_code}", f"store the right token under {config.token}"
            )
        if answer.status_code in (404, 410) or (answer.status_code >= 500 and answer.status_code != 501):
            return wrong(f"the webhook answers HTTP {answer.status_code}", "correct its 'url', or mend the receiver")
        taken = "" if answer.is_success else "; only a real message shows whether it takes the token"
        return Seen(f"the webhook answers (HTTP {answer.status_code} to GET{taken})")

    def _send(self, method: str, url: str, doing: str, **more: object) -> httpx.Response:
        try:
            return self._http.request(method, url, timeout=5.0, **more)  # type: ignore[arg-type]
        except httpx.HTTPError as error:
            raise from_http(error, doing) from None

    def _ses(self, config: models.Ses) -> Seen:
        try:
            found = self._aws.ses.get_identity_verification_attributes(
                Identities=[config.sender, _domain(config.sender)]
            )
        except Exception as error:
            raise from_aws(error, "ask SES about the sender") from None
        states = {who: facts["VerificationStatus"] for who, facts in found["VerificationAttributes"].items()}
        if "Success" in states.values():
            return Seen(f"SES sends as {config.sender}")
        return wrong(
            f"SES has not verified {config.sender} ({', '.join(states.values()) or 'not asked for'})",
            f"aws ses verify-email-identity --email-address {config.sender}, or verify its domain",
        )


def _domain(address: str) -> str:
    return address.rpartition("@")[2]
