"""The people side of the sandbox: one HTTP service that receives, keeps and shows what people would have received.

It stands in for Slack incoming webhooks, PagerDuty's Events API v2, plain webhooks, GitHub Issues, Jira Cloud and the
parts of the MongoDB Atlas Administration API that the runbooks use. Each answers like the real one, bad requests
included, and each can be made to fail (see :mod:`sandbox.hub.faults`).

Start it with ``python -m sandbox.hub --port N [--state FILE]`` and open ``/`` in a browser.
"""
