# SPDX-License-Identifier: Apache-2.0
"""What is asked again, what is not, and what is said in the end."""

import pytest

from ditr_cache.errors import CorruptStoreError, RemoteError
from ditr_cache.store.remote import retry
from ditr_cache.store.remote.client import public_url, scrub


class Fails:
    """Raises some errors, one after the other, then returns."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_is_asked_again_until_it_works(monkeypatch):
    pauses = []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    request = Fails(*[ConnectionError("gone")] * (retry.ATTEMPTS - 1))
    assert retry.retrying(request, "s3://b/k") == "done"
    assert request.calls == retry.ATTEMPTS
    assert all(0.05 <= pause <= 5 for pause in pauses)
    assert pauses[-1] > pauses[0]


def test_one_sentence_in_the_end(impatient):
    request = Fails(*[RuntimeError("GET https://me:word@host/b/k?sig=abc\n failed")] * retry.ATTEMPTS)
    with pytest.raises(RemoteError) as caught:
        retry.retrying(request, "https://host/b/k")
    assert "GET https://host/b/k failed" in caught.value.what
    assert "\n" not in caught.value.what


@pytest.mark.parametrize(
    ("error", "kind"), [(FileNotFoundError("k"), CorruptStoreError), (PermissionError("k"), RemoteError)]
)
def test_a_clear_answer_is_taken_at_once(error, kind):
    request = Fails(error)
    with pytest.raises(kind):
        retry.retrying(request, "s3://b/k")
    assert request.calls == 1


def test_urls_are_shown_without_secrets():
    assert public_url("https://u:p@h:80/a/b/?x=1#y") == "https://h:80/a/b"
    assert scrub("a https://u:p@h/a?x=1 b\n'http://v@h/' c Debug source: secret") == "a https://h/a b 'http://h' c"
