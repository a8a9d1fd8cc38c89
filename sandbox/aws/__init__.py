"""An embedded AWS for the sandbox: ``python -m sandbox.aws``.

ministack serves the AWS APIs from one process without Docker: CloudFormation
with real rollbacks, API Gateway, Lambda that runs code, CloudWatch, Logs, Secrets Manager, SSM, SES, S3. This package
starts it and replaces the few operations that answer differently from AWS where the runbooks would notice. One module
per service; each has ``install()``, which puts its functions in the place of ministack's.

ministack's functions are private, so its version is pinned exactly and checked at start.
"""
