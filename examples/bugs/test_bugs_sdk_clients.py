"""The clients inside the SDK, ``fal.app.AppClient`` and ``fal.apps``: what they lose and break.

Without postponed annotations: one of the bugs is about them.
"""

import time
import warnings
from uuid import UUID

import fal
import fal.apps
import httpx
import pytest
from fal.app import AppClient, AppClientError
from fastapi import HTTPException
from gallery import bug
from pydantic import BaseModel

TOPIC = "AppClient and fal.apps"
SEEN = ("1.75.5", "1.83.0")
pytestmark = pytest.mark.filterwarnings("ignore:The `dict` method is deprecated")


class Order(BaseModel):
    item: str = "poster"


class NumberedOrder(BaseModel):
    number: UUID


class Receipt(BaseModel):
    item: str


class Shop(fal.App):
    @fal.endpoint("/")
    def order(self, input: Order) -> Receipt:
        print(f"packing a {input.item}")
        return Receipt(item=input.item)

    @fal.endpoint("/numbered")
    def order_numbered(self, input: NumberedOrder) -> Receipt:
        return Receipt(item=str(input.number))

    @fal.endpoint("/sold-out")
    def sold_out(self, input: Order) -> Receipt:
        raise HTTPException(409, "sold out")

    @fal.endpoint("/all")
    def all(self, input: Order) -> list[Receipt]:
        return [Receipt(item=input.item)]

    @fal.endpoint("/frame")
    def frame(self, input: Order) -> "Receipt":
        return Receipt(item=input.item)

    @fal.endpoint("/slow")
    def slow(self, input: Order) -> Receipt:
        time.sleep(6)
        return Receipt(item=input.item)


@pytest.fixture
def shop(fal_gateway, fal_clock):
    fal_clock.freeze()
    return fal_gateway.deploy("tester/shop", Shop)


@bug(
    "N56",
    symptom="each test of an error takes a second",
    topic=TOPIC,
    seen=SEEN,
)
def test_a_failed_call_sleeps(shop, fal_clock):
    """AppClient sleeps one second for each call that fails.

    Production: a suite with a hundred cases of bad input takes two minutes, whatever it tests.
    Expected: an error comes as fast as an answer.
    Happens: EndpointClient calls time.sleep(1) before it raises, so that logs can be printed.
    Avoid: stop the clock, as here; or ask with httpx.
    """
    before = fal_clock.now()
    with pytest.raises(AppClientError):
        AppClient(Shop, shop.url).sold_out(Order())
    assert (fal_clock.now() - before).total_seconds() == 1


@bug(
    "N57",
    symptom="fal.apps shows no logs of fast requests",
    topic=TOPIC,
    seen=SEEN,
)
def test_the_last_event_is_left_out(shop):
    """iter_events() never yields the last status, and with it all logs since the one before.

    Production: `for event in handle.iter_events(logs=True)` prints nothing for a request that is
        over when it is first asked about, and lacks the last lines of every other one.
    Expected: all events up to Completed, as fal_client has it, and as its docstring says.
    Happens: it returns as soon as the status is Completed, without yielding it.
    Avoid: handle.status(logs=True) after the loop; or fal_client.
    """
    handle = fal.apps.submit("tester/shop", {})
    shop.calls[0].result()
    assert list(handle.iter_events(logs=True)) == []
    (entry,) = handle.status(logs=True).logs
    assert entry["message"] == "packing a poster"


@bug(
    "N58",
    symptom="fal.apps finds no request of a comfy/ app",
    topic=TOPIC,
    seen=SEEN,
)
def test_the_namespace_comfy_is_lost(fal_emulator, fal_ledger):
    """fal.apps asks about requests of comfy/owner/app at comfy/owner.

    Production: a request to a ComfyUI app is accepted, and its status is a 404.
    Expected: what fal_client does: three segments for workflows/ and for comfy/.
    Happens: RequestHandle keeps three segments for workflows/ alone, two for all others.
    Avoid: fal_client.
    """
    handle = fal.apps.RequestHandle("comfy/tester/flow", "an-id")
    with pytest.raises(httpx.HTTPStatusError):
        handle.status()
    (exchange,) = fal_ledger.requests(host="queue.fal.run")
    assert exchange.path == "/comfy/tester/requests/an-id/status/"


@bug(
    "N59",
    symptom="TypeError: fal.app.EndpointClient.__call__() argument after ** must be a mapping",
    topic=TOPIC,
    seen=SEEN,
)
def test_an_answer_that_is_no_model(shop):
    """AppClient fails for an endpoint whose answer is a list, a number or a text.

    Production: the endpoint works for everybody else; AppClient raises a TypeError.
    Expected: what the endpoint returns.
    Happens: it calls the annotation with the answer's members as keywords, whatever they are.
    Avoid: return a model; or ask with httpx.
    """
    with pytest.raises(TypeError, match=r"argument after \*\* must be a mapping, not list"):
        AppClient(Shop, shop.url).all(Order())
    assert shop.post("/all", json={}).json() == [{"item": "poster"}]


@bug(
    "N60",
    symptom="TypeError: 'str' object is not callable, from AppClient",
    topic=TOPIC,
    seen=SEEN,
)
def test_an_annotation_that_is_a_text(shop):
    """AppClient fails for endpoints in modules with postponed annotations.

    Production: after `from __future__ import annotations` was added every call raises a TypeError.
    Expected: the model that the annotation names.
    Happens: it calls endpoint.__annotations__["return"], which is a text then.
    Avoid: leave that import out of the modules of apps, which breaks deployed ones too.
    """
    with pytest.raises(TypeError, match="'str' object is not callable"):
        AppClient(Shop, shop.url).frame(Order())


@bug(
    "N61",
    symptom="TypeError: Object of type UUID is not JSON serializable, from AppClient",
    topic=TOPIC,
    seen=SEEN,
)
def test_a_model_with_a_uuid(shop):
    """AppClient cannot send models with UUIDs, dates, paths or sets.

    Production: TypeError before anything is sent.
    Expected: the model as JSON, as the endpoint takes it.
    Happens: it sends data.dict(), whose values are Python's; model_dump(mode="json") has JSON's.
    Avoid: client.order_numbered(order.model_dump(mode="json")).
    """
    client, order = AppClient(Shop, shop.url), NumberedOrder(number=UUID(int=1))
    with pytest.raises(TypeError, match="Object of type UUID is not JSON serializable"):
        client.order_numbered(order)
    assert client.order_numbered(order.model_dump(mode="json")) == Receipt(item=str(UUID(int=1)))


@bug(
    "N62",
    symptom="PydanticDeprecatedSince20: The `dict` method is deprecated, from AppClient",
    topic=TOPIC,
    seen=SEEN,
)
def test_a_model_where_warnings_are_errors(shop):
    """AppClient cannot send a model where warnings are errors.

    Production: `pytest -W error` fails in the first call, before anything is sent.
    Expected: no warnings of the SDK's own.
    Happens: it calls .dict(), which Pydantic 2 has deprecated.
    Avoid: client.order(order.model_dump()).
    """
    client = AppClient(Shop, shop.url)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning, match="The `dict` method is deprecated"):
            client.order(Order())
        assert client.order(Order().model_dump()) == Receipt(item="poster")


@bug(
    "N63",
    symptom="fal.apps.stream shows everything at once, at the end",
    topic=TOPIC,
    seen=SEEN,
)
def test_a_stream_is_read_whole_first(fal_http):
    """fal.apps.stream() yields its first event when the last one has come.

    Production: no progress for a minute, then all of it.
    Expected: events as they come.
    Happens: it asks with client.post(), which reads the whole body, before it iterates.
    Avoid: fal_client.stream().
    """
    sent = []

    def events():
        for number in range(3):
            sent.append(number)
            yield f"data: {number}\n\n".encode()

    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=events())
    fal_http.post("https://fal.run/tester/shop/stream").mock(return_value=answer)
    stream = fal.apps.stream("tester/shop", {}, path="/stream")
    assert next(stream) == "data: 0"
    assert sent == [0, 1, 2]


@bug(
    "N64",
    symptom="fal.apps.stream raises ReadTimeout after five seconds",
    topic=TOPIC,
    seen=SEEN,
)
def test_a_stream_has_five_seconds(shop, fal_clock):
    """fal.apps.stream() gives up on an app that sends nothing for five seconds.

    Production: httpx.ReadTimeout on every cold start, and for whatever takes longer than that; the
        app works on, and is paid for.
    Expected: it waits, as fal_client does.
    Happens: its client has httpx's own time-out, 5 s, which nothing can change.
    Avoid: fal_client.stream(); or fal.apps.run(), which goes through the queue.
    """
    with pytest.raises(httpx.ReadTimeout):
        list(fal.apps.stream("tester/shop", {}, path="/slow"))
    assert fal.apps.run("tester/shop", {}, path="/slow") == {"item": "poster"}
