"""How sites, runs and digests are spelled, wherever they cross a border."""

from typing import Annotated

from pydantic import StringConstraints

SITE_NAME = r"^[a-z0-9][a-z0-9-]{0,39}$"
SiteName = Annotated[str, StringConstraints(pattern=SITE_NAME)]
"""Of a site, a run or a consortium; it becomes a file's name."""
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
