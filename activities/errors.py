"""How a failing outside system becomes an error that tells the operator what to do.

Every activity raises through this module, so that a retry is decided where the fault is understood and no caller has
to list error types. Two kinds exist:

* a *fault that may pass* (network, throttling, 5xx, another operation under way): retried by the policy of the step;
* a *fault that will not pass by itself* (not found, refused, bad request): fails the step at once.

Messages never carry secrets: only names, ids and status codes are put in, never a request body, header or URL query.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from datetime import timedelta
from typing import ParamSpec, TypeVar

import botocore.exceptions
import httpx
import pymongo.errors
from temporalio.exceptions import ApplicationError

P = ParamSpec("P")
T = TypeVar("T")

_TRANSIENT_AWS = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "InternalFailure",
        "InternalError",
        "InternalServerError",
        "ServiceException",
        "ServiceFailure",
        "RequestTimeout",
        "RequestTimeoutException",
        "SlowDown",
        "TooManyUpdates",
    }
)
_UNTIL_ANOTHER_ENDS = re.compile(r"(?i)\bconcurrent\b|in progress|at this time|try again")
"""What AWS says of a conflict (409) with another operation. One with something that is there says "already exists"."""

_CREDENTIALS_AWS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "SignatureDoesNotMatch",
        "AccessDenied",
        "AccessDeniedException",
        "UnauthorizedOperation",
    }
)


_TRANSIENT_MONGO = frozenset(
    {6, 7, 24, 43, 50, 63, 89, 91, 112, 133, 134, 150, 189, 202, 234, 237, 251, 262, 462, 9001}
    | {10107, 11600, 11602, 13388, 13435, 13436}
)
"""Host away, time-out, lock or write conflict, cursor or session gone, fail-over: the drivers' list of what passes;
and more requests than the server lets in (since 8.2).
"""
_TRANSIENT_LABELS = ("RetryableWriteError", "TransientTransactionError", "SystemOverloadedError")


RENEWAL = 15.0
"""Seconds until a call is tried again for which a person has to renew credentials or mend a role meanwhile."""


def passing(message: str, *, type: str = "Unavailable", retry_after: float | None = None) -> ApplicationError:
    """A fault that may pass by itself. ``retry_after`` is the service's own hint, in seconds."""
    delay = timedelta(seconds=retry_after) if retry_after else None
    return ApplicationError(message, type=type, next_retry_delay=delay)


def lasting(message: str, *, type: str = "Refused") -> ApplicationError:
    """A fault that no retry cures. The message ends by saying what a person should do."""
    return ApplicationError(message, type=type, non_retryable=True)


def from_aws(error: Exception, doing: str) -> ApplicationError:
    """Classify what boto3 raised while ``doing`` (a phrase such as ``"update stack state-api"``)."""
    if isinstance(error, botocore.exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", "Unknown"))
        text = str(error.response.get("Error", {}).get("Message", ""))[:500]
        meta = error.response.get("ResponseMetadata", {})
        status = int(meta.get("HTTPStatusCode", 0))
        message = f"could not {doing}: AWS answered {code}: {text}"
        if code in _CREDENTIALS_AWS:
            remedy = "Renew the worker's AWS credentials or mend its role"
            return passing(f"{message}. {remedy}", type=code, retry_after=RENEWAL)
        conflict = status == 409 and _UNTIL_ANOTHER_ENDS.search(text) is not None
        if code in _TRANSIENT_AWS or status >= 500 or status == 429 or conflict:
            hint = meta.get("HTTPHeaders", {}).get("retry-after")
            return passing(message, type=code, retry_after=float(hint) if hint and hint.isdigit() else None)
        return lasting(message, type=code)
    if isinstance(error, botocore.exceptions.NoCredentialsError | botocore.exceptions.ProfileNotFound):
        return passing(
            f"could not {doing}: the worker has no AWS credentials. Give it a role or AWS_PROFILE",
            type="NoCredentials",
            retry_after=RENEWAL,
        )
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return lasting(f"could not {doing}: {error}", type="BadRequest")
    if isinstance(error, botocore.exceptions.BotoCoreError):
        return passing(f"could not {doing}: {type(error).__name__} (AWS did not answer)", type="AwsUnreachable")
    raise error


def from_http(error: httpx.HTTPError, doing: str) -> ApplicationError:
    """Classify a failed HTTP exchange. The URL is left out: it can carry a token."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        after = error.response.headers.get("retry-after", "")
        if status >= 500 or status in (408, 425, 429):
            seconds = float(after) if after.isdigit() else None
            return passing(f"could not {doing}: HTTP {status}", type=f"Http{status}", retry_after=seconds)
        remedy = ". Check the credential it uses" if status in (401, 403) else ""
        return lasting(f"could not {doing}: HTTP {status}{remedy}", type=f"Http{status}")
    return passing(f"could not {doing}: {type(error).__name__} (no answer)", type="HttpUnreachable")


def from_mongo(error: pymongo.errors.PyMongoError, doing: str) -> ApplicationError:
    """Classify what pymongo raised. Only the code and the server's own text are kept, never the URI."""
    if isinstance(error, pymongo.errors.OperationFailure):
        message = f"could not {doing}: MongoDB error {error.code}"
        if error.code == 18:  # somebody may just be changing the password; the secret is read anew within a minute
            refused = f"{message}: wrong user or password. Renew the database secret"
            return passing(refused, type="Mongo18", retry_after=RENEWAL)
        if error.code == 13:
            return lasting(f"{message}: the user lacks a role. Check the database secret", type="Mongo13")
        if error.code in _TRANSIENT_MONGO or any(map(error.has_error_label, _TRANSIENT_LABELS)):
            return passing(message, type=f"Mongo{error.code}")
        details = error.details if isinstance(error.details, dict) else {}
        first = next(iter(details.get("writeErrors") or []), details)  # a bulk write's own text says nothing
        detail = str(first.get("errmsg", ""))[:300]
        return lasting(f"{message}: {detail}", type=f"Mongo{error.code}")
    why = "the database did not answer"
    if isinstance(error, pymongo.errors.ConfigurationError):  # also of a name server that is away
        why = "its host is not found, or an option of its connection string is wrong"
    elif isinstance(error, pymongo.errors.NotPrimaryError):
        why = "the server is shutting down or has ceased to be the primary"
    return passing(f"could not {doing}: {type(error).__name__} ({why})", type="MongoUnreachable")


def classified(doing: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator for a sync activity method: every known library error leaves it classified, without its cause.

    The cause is cut off (``from None``) because stack traces are stored in the history with their source lines.
    """

    def wrap(fn: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(fn)
        def inner(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return fn(*args, **kwargs)
            except ApplicationError:
                raise
            except httpx.HTTPError as error:
                raise from_http(error, doing) from None
            except pymongo.errors.PyMongoError as error:
                raise from_mongo(error, doing) from None
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                raise from_aws(error, doing) from None

        return inner

    return wrap
