"""Tests of the result cache: its entries and its images die on time, and in the right order."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from packaging.version import Version
from result_cache import ENTRY_LIFETIME, IMAGE_LIFETIME, ResultCache

if TYPE_CHECKING:
    from pytest_fal import CDN, KV, Clock, Emulator, Faults, Runner, RunnerFactory

pytestmark = pytest.mark.skipif(
    Version(metadata.version("fal")) < Version("1.75.7"),
    reason="KVStore.set() takes a ttl since fal 1.75.7",
)

PRIVATE = {"x-fal-object-lifecycle-preference": '{"initial_acl": {"default": "hide"}}'}


@pytest.fixture
def runner(fal_runner: RunnerFactory) -> Runner:
    """A runner that has booted and is waiting for requests."""
    return fal_runner(ResultCache)


def generate(runner: Runner, prompt: str = "a sunset", **options: Any) -> tuple[str, bool]:
    """Ask for an image as a client would: its URL, and whether it was there already."""
    response = runner.post("/", json={"prompt": prompt}, **options)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["image"]["url"], answer["cached"]


def test_the_same_prompt_is_painted_once(runner: Runner, fal_cdn: CDN) -> None:
    url, cached = generate(runner)
    assert not cached
    assert generate(runner) == (url, True)
    assert len(fal_cdn.files) == 1


def test_runners_share_what_they_have_painted(fal_runner: RunnerFactory) -> None:
    url, _ = generate(fal_runner(ResultCache))
    assert generate(fal_runner(ResultCache)) == (url, True)


@pytest.mark.parametrize("prompt", ["50% off? #sale", "ein Dachs für Übung", "a/b"])
def test_any_prompt_can_be_a_key(runner: Runner, prompt: str) -> None:
    generate(runner, "50% off")
    url, cached = generate(runner, prompt)
    assert not cached
    assert generate(runner, prompt) == (url, True)


def test_an_entry_dies_before_its_image(runner: Runner, fal_kv: KV, fal_clock: Clock) -> None:
    fal_clock.freeze()
    url, _ = generate(runner)
    fal_clock.advance(seconds=ENTRY_LIFETIME - 1)
    assert generate(runner) == (url, True)

    fal_clock.advance(seconds=1)
    assert fal_kv.keys("results") == []
    assert httpx.get(url).status_code == 200, "who has just got the address can still fetch it"
    assert generate(runner)[1] is False


def test_no_address_is_ever_handed_out_that_leads_nowhere(runner: Runner, fal_clock: Clock) -> None:
    for _ in range(30):
        url, _ = generate(runner)
        assert httpx.get(url).status_code == 200
        fal_clock.advance(hours=13)


def test_images_do_not_stay_for_ever(runner: Runner, fal_cdn: CDN, fal_clock: Clock) -> None:
    url, _ = generate(runner)
    fal_clock.advance(seconds=IMAGE_LIFETIME)
    fal_cdn.assert_expired(url)


def test_a_private_image_is_nobody_elses(
    runner: Runner, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    bob = fal_emulator.user("bob")
    private, _ = generate(runner, headers=PRIVATE, caller=bob)
    public, cached = generate(runner)
    assert (public != private, cached) == (True, False)
    assert httpx.get(private).status_code == 404
    assert bob.get(private).status_code == 200
    assert len(fal_cdn.files) == 2


def test_without_the_store_every_image_is_painted(
    runner: Runner, fal_faults: Faults, fal_clock: Clock
) -> None:
    fal_clock.freeze()  # the SDK tries again five times, and sleeps in between
    fal_faults.status(503, host="kv.fal.media")
    first, second = generate(runner), generate(runner)
    assert first[0] != second[0]
    assert (first[1], second[1]) == (False, False)


def test_an_image_that_was_taken_off_the_cdn_is_not_noticed(runner: Runner, fal_cdn: CDN) -> None:
    """What this app does not do: it trusts its entries, so nobody may delete its images."""
    url, _ = generate(runner)
    fal_cdn.expire(url)
    assert generate(runner) == (url, True)
    assert httpx.get(url).status_code == 404
