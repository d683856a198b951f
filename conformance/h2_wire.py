"""HTTP/2 framing (RFC 9113), client side, just enough to break its rules on purpose."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
ENHANCE_YOUR_CALM = 11


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def settings(**values):
    """`initial_window_size=0` and the like, by their numbers."""
    numbers = {"header_table_size": 1, "enable_push": 2, "max_concurrent_streams": 3, "initial_window_size": 4}
    return frame(SETTINGS, payload=b"".join(struct.pack("!HI", numbers[name], value) for name, value in values.items()))


def literal(name, value):
    """A header field that no table holds (RFC 7541 §6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def head(method, path, fields=()):
    """HPACK of a request, in plain literals."""
    block = b"".join(literal(name, value) for name, value in
                     ((":method", method), (":scheme", "http"), (":path", path), (":authority", "x"), *fields))
    return block


def get(stream, path="/openapi.json"):
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, head("GET", path))


def connect(address, source=None, opening=None):
    sock = socket.create_connection(address, 10, (source, 0) if source else None)
    sock.sendall(PREFACE + (settings() if opening is None else opening))
    return sock


def frames(data):
    """(kind, stream, payload) of each whole frame."""
    found = []
    while len(data) >= 9:
        size = int.from_bytes(data[:3], "big")
        if len(data) < 9 + size:
            break
        found.append((data[3], int.from_bytes(data[5:9], "big"), data[9:9 + size]))
        data = data[9 + size:]
    return found
