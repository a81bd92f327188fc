"""Answers that come piece by piece."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import fal
import fal_client
import pytest
from fastapi.responses import StreamingResponse
from gallery import bug

TOPIC = "Streams"


class Writer(fal.App):
    """Writes word by word, and runs out of memory."""

    @fal.endpoint("/stream")
    def write(self, input: dict) -> StreamingResponse:
        return StreamingResponse(self.words(), media_type="text/event-stream")

    @fal.endpoint("/closed/stream")
    def write_to_the_end(self, input: dict) -> StreamingResponse:
        return StreamingResponse(self.and_done(), media_type="text/event-stream")

    def words(self) -> Iterator[str]:
        yield 'data: {"word": "once"}\n\n'
        yield 'data: {"word": "upon"}\n\n'
        raise MemoryError("CUDA out of memory")

    def and_done(self) -> Iterator[str]:
        try:
            yield from self.words()
        except Exception as error:
            yield f"data: {json.dumps({'error': str(error)})}\n\n"
        else:
            yield 'data: {"done": true}\n\n'


@bug(
    "N45",
    symptom="streamed texts end in the middle of a sentence, and nobody reports an error",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_stream_that_breaks_off_looks_complete(fal_gateway, isolation):
    """An app's exception in the middle of a stream ends it as if that were all.

    Production: some texts are shorter than others; clients see no error, the request counts as a
        success, and only the runner's log has the exception.
    Expected: the connection is cut, so that the client raises.
    Happens: the SDK's middlewares are Starlette's BaseHTTPMiddleware, which ends the body in order
        whatever the app has raised.
    Avoid: say at the end of a stream that it is whole, and take one that does not say it for a
        failure; send exceptions as events.
    """
    app = fal_gateway.deploy("tester/writer", Writer, isolation=isolation)
    assert list(fal_client.stream("tester/writer", {})) == [{"word": "once"}, {"word": "upon"}]
    assert app.calls[0].attempts[0].status == 200

    *_, last = fal_client.stream("tester/writer/closed", {})
    assert last == {"error": "CUDA out of memory"}


class Counter(fal.App):
    """Counts for everybody who connects."""

    @fal.realtime("/realtime")
    async def count(self, input: dict) -> AsyncIterator[dict]:
        for number in range(input["up_to"]):
            yield {"number": number}

    @fal.realtime("/buffered/realtime", buffering=50)
    async def count_buffered(self, input: dict) -> AsyncIterator[dict]:
        for number in range(input["up_to"]):
            yield {"number": number}


def numbers(path: str, count: int) -> list[int]:
    with fal_client.realtime(f"tester/counter{path}") as connection:
        connection.send({"up_to": count})
        received = []
        while len(received) < count:
            message = connection.recv()
            assert message is not None
            received.append(message["number"])
        return received


@bug(
    "N73",
    symptom="frames of a realtime stream come in the wrong order",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_fast_realtime_stream_is_reordered(fal_gateway):
    """What a streaming realtime endpoint yields quickly overtakes what it has yielded before.

    Production: video that is generated fast enough jumps back and forth; slow models are fine.
    Expected: what is yielded first arrives first.
    Happens: the SDK's queue of outgoing messages has two places; the third is sent past it at once,
        before those that wait in it.
    Avoid: buffering= as large as what is made without a pause; or number the frames.
    """
    fal_gateway.deploy("tester/counter", Counter)
    assert numbers("", 5) != [0, 1, 2, 3, 4]

    assert numbers("/buffered", 5) == [0, 1, 2, 3, 4]
