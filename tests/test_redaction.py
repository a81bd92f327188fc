"""What the ledger does not show: credentials in URLs and headers."""

import pytest

from emulator.ledger import masked, redact_headers


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("auth=1", "auth=***"),
        ("password=1", "password=***"),
        ("passwd=1", "passwd=***"),
        ("db_pwd=1", "db_pwd=***"),
        ("author=1", "author=1"),
        ("hook=https%3A%2F%2Fme%3Apw%40a.b%2Fc", "hook=https%3A%2F%2Fa.b%2Fc"),
        ("hook=https://me:pw@a.b/c", "hook=https%3A%2F%2Fa.b%2Fc"),
        ("hook=https%3A%2F%2Fme%3Apw%40a.b%3Fkey%3D1", "hook=https%3A%2F%2Fa.b%3Fkey=***"),
        ("hook=https%3A%2F%2Fa.b%2Fme%40c", "hook=https%3A%2F%2Fa.b%2Fme%40c"),
    ],
)
def test_credentials_in_a_query_are_not_shown(query, shown):
    assert masked(f"https://fal.run/a?{query}") == f"https://fal.run/a?{shown}"


@pytest.mark.parametrize("authority", ["me:pw@fal.run", "fal.run"])
@pytest.mark.parametrize("rest", ["", "/a@b", "?to=a@b"])
def test_who_asks_is_not_shown(authority, rest):
    assert masked(f"https://{authority}{rest}") == f"https://fal.run{rest}"


@pytest.mark.parametrize("name", ["X-Auth-Token", "X-Fal-Webhook-Signature"])
def test_credentials_in_headers_are_not_shown(name):
    assert redact_headers([(name, "1")]) == {name.lower(): "***"}
