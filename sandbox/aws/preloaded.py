"""What a Python environment finds loaded: the libraries of the API's function, and AWS's description of SSM."""

from __future__ import annotations

import boto3
import pymongo  # noqa: F401

from sandbox import descriptions

descriptions.read_once()
boto3.session.Session(aws_access_key_id="none", aws_secret_access_key="none", region_name="us-east-1").client("ssm")
