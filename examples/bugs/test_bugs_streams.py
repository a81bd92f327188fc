"""Answers that come piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator

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
