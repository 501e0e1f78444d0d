# SPDX-License-Identifier: Apache-2.0
"""Keys, region and endpoint from the files that the AWS tools share."""

import pytest

from ditr_cache.errors import ConfigError
from ditr_cache.store.locate import open_writable_storage
from ditr_cache.store.remote.aws_profile import aws_settings

CREDENTIALS = """
[default]
aws_access_key_id = default-id
aws_secret_access_key = default-secret
[lab]
aws_access_key_id=lab-id
aws_secret_access_key=lab-secret/+=
aws_session_token = token
"""
CONFIG = """
[default]
region = eu-west-1
[profile lab]
region = eu-north-1
endpoint_url = https://s3.lab.example
s3 =
    max_concurrent_requests = 20
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Both files, and no variable but those that name them."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for variable, name, text in (
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", CREDENTIALS),
        ("AWS_CONFIG_FILE", "config", CONFIG),
    ):
        (tmp_path / name).write_text(text)
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path


def test_profiles(files, monkeypatch):
    keys = {"access_key_id": "default-id", "secret_access_key": "default-secret"}
    assert aws_settings() == {**keys, "region": "eu-west-1"}
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert aws_settings() == {
        "access_key_id": "lab-id",
        "secret_access_key": "lab-secret/+=",
        "session_token": "token",
        "region": "eu-north-1",
        "endpoint": "https://s3.lab.example",
    }
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="no profile 'nobody'"):
        aws_settings()


def test_variables_come_first(files, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    # neither the secret nor the token of another id
    assert aws_settings() == {"region": "eu-north-1"}


def test_no_files(files, monkeypatch):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(files / "absent"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(files / "credentials" / "below"))
    assert aws_settings() == {}


def test_what_cannot_be_parsed_is_not_quoted(files):
    (files / "credentials").write_text("aws_secret_access_key = very-secret")
    with pytest.raises(ConfigError, match="cannot be parsed") as caught:
        aws_settings()
    assert "very-secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_bucket_with_keys_from_files_alone(s3, monkeypatch, tmp_path):
    variables = dict(s3.environment)
    for name in variables:
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    (tmp_path / "config").write_text(f"[default]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    storage = open_writable_storage(s3.url())
    assert storage.create_exclusively("a", b"x")
    assert storage.read("a") == b"x"
