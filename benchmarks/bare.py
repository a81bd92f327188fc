"""The least that moves bytes over HTTP: a server of one screen, and clients that add nothing."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.request
from pathlib import Path

import trustme

__all__ = ["BareServer", "get_to_file", "put"]

BLOCK = 256 * 1024


class BareServer:
    """Swallows what is PUT to it, answers GET with its payload; a thread for each connection."""

    def __init__(self, payload: bytes, authority: trustme.CA | None = None) -> None:
        self._payload = payload
        self._context: ssl.SSLContext | None = None
        if authority is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        scheme = "http" if authority is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port}/file"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection, connection.makefile("rb") as reader:
            method = reader.readline().split()[0]
            headers = http.client.parse_headers(reader)
            left, buffer = int(headers.get("content-length", 0)), bytearray(BLOCK)
            while left and (count := reader.readinto(memoryview(buffer)[: min(left, BLOCK)])):
                left -= count
            body = self._payload if method == b"GET" else b""
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            connection.sendall(body)


def put(opener: urllib.request.OpenerDirector, url: str, data: bytes) -> None:
    """PUT with urllib, on a new connection."""
    with opener.open(urllib.request.Request(url, data, method="PUT")) as response:
        response.read()


def get_to_file(port: int, context: ssl.SSLContext, target: Path) -> None:
    """GET with http.client over TLS into a file, on a new connection."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
    connection.request("GET", "/file")
    response = connection.getresponse()
    with target.open("wb") as file:
        while chunk := response.read(BLOCK):
            file.write(chunk)
    connection.close()
