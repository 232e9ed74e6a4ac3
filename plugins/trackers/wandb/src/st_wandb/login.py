"""Where wandb looks for a login, read without importing it: that takes seconds and changes the process."""

from __future__ import annotations

import netrc
import os
from configparser import ConfigParser, Error
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

CLOUD = "https://api.wandb.ai"


def server(environment: Mapping[str, str]) -> str:
    """The server that a run goes to, as "host" or "host:port"; a password that its url may have is left out."""
    return _place(environment).rpartition("@")[2]


def is_logged_in(environment: Mapping[str, str]) -> bool:
    """Whether there is a key or token for the server; whether the server takes it is not asked."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return bool(_settings(environment).get("api_key")) or _is_in_netrc(environment, _place(environment))


def _place(environment: Mapping[str, str]) -> str:
    url = environment.get("WANDB_BASE_URL") or _settings(environment).get("base_url") or CLOUD
    return urlsplit(url).netloc


def _settings(environment: Mapping[str, str]) -> Mapping[str, str]:
    """What ``wandb login`` and ``wandb.setup`` keep for this user; nothing where the file cannot be read."""
    folder = Path(environment.get("WANDB_CONFIG_DIR") or Path("~", ".config", "wandb")).expanduser()
    parser = ConfigParser(interpolation=None)
    try:
        parser.read(folder / "settings", encoding="utf-8")
    except (OSError, UnicodeDecodeError, Error):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _is_in_netrc(environment: Mapping[str, str], host: str) -> bool:
    named = environment.get("NETRC")
    usual = [Path("~", name).expanduser() for name in (".netrc", "_netrc")]
    file = (
        Path(named).expanduser() if named else next((path for path in usual if path.exists()), usual[os.name == "nt"])
    )
    try:
        entry = netrc.netrc(file).authenticators(host)
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
    return entry is not None and bool(entry[2])
