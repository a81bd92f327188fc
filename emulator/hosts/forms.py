"""Forms with a file in them (``multipart/form-data``, RFC 7578), read as they arrive.

Nothing is held but the chunk that has just come, so a form may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from email.message import Message
from email.parser import BytesHeaderParser

from emulator.errors import RefusedRequest

__all__ = ["FormError", "file_in_form"]

#: What the headers of one field may take at most, in bytes.
_MOST_HEADERS = 16 * 1024


class FormError(RefusedRequest):
    """A form that is none, breaks off, or has not the field asked for: 422."""

    def __init__(self, detail: str) -> None:
        super().__init__(422, detail)


def file_in_form(content_type: str | None, chunks: Iterable[bytes], field: str) -> Iterator[bytes]:
    """The content of a field, once: all other fields are passed over.

    Args:
        content_type: the request's header, which tells the boundary.
        chunks: the request's body.
        field: the name of the field.

    Raises:
        FormError: while it is iterated; what came before is then of no worth.
    """
    form = _Form(_boundary(content_type), chunks)
    found = False
    for headers in form.fields():
        name = headers.get_param("name", header="content-disposition")
        if name == field and not found:
            found = True
            yield from form.content()
        else:
            for _ in form.content():
                pass
    if not found:
        raise FormError(f"the form has no field {field!r}")


def _boundary(content_type: str | None) -> bytes:
    message = Message()
    message["content-type"] = content_type or ""
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise FormError(
            f"the body must be multipart/form-data with a boundary, not {content_type!r}"
        )
    return boundary.encode("latin-1", "replace")


class _Form:
    def __init__(self, boundary: bytes, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._delimiter = b"\r\n--" + boundary
        # The first boundary has no line before it.
        self._buffer = bytearray(b"\r\n")

    def fields(self) -> Iterator[Message]:
        """The headers of each field; its content has to be taken before the next one."""
        for _ in self._until(self._delimiter):  # what may stand before the first
            pass
        while (after := self._take(2)) == b"\r\n":
            yield BytesHeaderParser().parsebytes(self._headers())
        if after != b"--":
            raise FormError("the form is malformed: something follows a boundary")
        for _ in self._chunks:  # what may stand after the last
            pass

    def content(self) -> Iterator[bytes]:
        """The content of the field whose headers came last."""
        return self._until(self._delimiter)

    def _headers(self) -> bytes:
        headers = bytearray()
        # A field without any has an empty line only.
        self._buffer[:0] = b"\r\n"
        for piece in self._until(b"\r\n\r\n"):
            headers += piece
            if len(headers) > _MOST_HEADERS:
                raise FormError("the form is malformed: the headers of a field never end")
        return bytes(headers[2:]) + b"\r\n\r\n"

    def _until(self, end: bytes) -> Iterator[bytes]:
        """What comes before *end*, which is taken too."""
        buffer = self._buffer
        while (at := buffer.find(end)) < 0:
            safe = len(buffer) - len(end) + 1
            if safe > 0:
                yield bytes(memoryview(buffer)[:safe])
                del buffer[:safe]
            self._fill()
        if at:
            yield bytes(memoryview(buffer)[:at])
        del buffer[: at + len(end)]

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _fill(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise FormError("the form breaks off")
        self._buffer += chunk
