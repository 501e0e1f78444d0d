# SPDX-License-Identifier: Apache-2.0
"""Settings for S3 from the files that the AWS tools share, which obstore does not read by itself.

Keys, region and endpoint of a profile. What needs programs or logins (SSO, roles, `credential_process`) is left to the
environment variables that the AWS tools export, and to instance metadata.
"""

from __future__ import annotations

import configparser
import os
from pathlib import Path

from ditr_cache.errors import ConfigError

__all__ = ["aws_settings"]

_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
_OTHERS = {"region": "region", "endpoint_url": "endpoint"}
_VARIABLES = {
    "access_key_id": ("AWS_ACCESS_KEY_ID",),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
}


def aws_settings() -> dict[str, str]:
    """What the chosen profile says and no environment variable does, by obstore's names.

    Raises:
        ConfigError: If AWS_PROFILE names a profile that is in no file, or if a file cannot be parsed.
    """
    profile = os.environ.get("AWS_PROFILE", "default")
    credentials = _section("AWS_SHARED_CREDENTIALS_FILE", "credentials", [profile])
    config = _section("AWS_CONFIG_FILE", "config", [f"profile {profile}", profile])
    if "AWS_PROFILE" in os.environ and credentials is None and config is None:
        raise ConfigError(f"no profile {profile!r} in the AWS configuration files", hint="It is what AWS_PROFILE says.")
    values = (config or {}) | (credentials or {})
    found = {ours: values[theirs] for theirs, ours in (_KEYS | _OTHERS).items() if theirs in values}
    for name, variables in _VARIABLES.items():
        if any(os.environ.get(variable) for variable in variables):
            # an id without its secret, or a secret of another id, helps nobody
            for gone in _KEYS.values() if name == "access_key_id" else [name]:
                found.pop(gone, None)
    return found


def _section(variable: str, name: str, sections: list[str]) -> dict[str, str] | None:
    path = Path(os.environ.get(variable) or Path.home() / ".aws" / name)
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (configparser.Error, UnicodeDecodeError):
        # without the reason, which may hold a key
        raise ConfigError("cannot be parsed", where=path) from None
    return next((dict(parser[section]) for section in sections if parser.has_section(section)), None)
