"""What a Python environment finds loaded: the libraries of the API's function, and AWS's description of SSM."""

from __future__ import annotations

import functools

import boto3
import botocore.handlers
import botocore.loaders
import pymongo  # noqa: F401

_read_once = functools.cache(botocore.loaders.JSONFileLoader.load_file)
botocore.loaders.JSONFileLoader.load_file = _read_once  # type: ignore[method-assign]
boto3.session.Session(aws_access_key_id="none", aws_secret_access_key="none", region_name="us-east-1").client("ssm")
