"""Checkouts of the State Tracking API: what a git worktree of one release holds."""

from __future__ import annotations

import shutil
from pathlib import Path

from sandbox.api.releases import BESIDE, HANDLER, Release
from sandbox.api.stack import APP

_CONFIG = """/// <reference path="./.sst/platform/config.d.ts" />

export default $config({{
  app(input) {{
    return {{ name: "{app}", home: "aws" }};
  }},
  async run() {{
    const apiKeys = new sst.Secret("ApiKeys");
    const mongodbUri = new sst.Secret("MongoDBUri");
    const jwtSecret = new sst.Secret("JwtSecret");

    const api = new sst.aws.ApiGatewayV1("StateTrackingApi");
    api.route("ANY /{{proxy+}}", {{
      handler: "handler.handler",
      runtime: "python3.12",
      memory: "512 MB",
      timeout: "30 seconds",
      link: [apiKeys, mongodbUri, jwtSecret],
    }});
    api.deploy();
  }},
}});
"""


def write_checkout(release: Release, releases: Path) -> Path:
    """Write ``<releases>/<release id>/`` with the sources, ``release.json`` and ``sst.config.ts``; return its path.

    Writing it again restores the files, so an edited ``sst.config.ts`` is put back.
    """
    directory = releases / release.id
    directory.mkdir(parents=True, exist_ok=True)
    for source in (HANDLER, *map(HANDLER.with_name, BESIDE)):
        shutil.copyfile(source, directory / source.name)
    (directory / "release.json").write_text(release.to_json())
    (directory / "sst.config.ts").write_text(_CONFIG.format(app=APP))
    return directory
