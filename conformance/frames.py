"""A WebSocket by hand, for tests that stop reading, drip, or look at every byte."""

import json

OPEN_WEBSOCKET = (b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                  b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")


def text_frame(frame):
    """A client's frame, masked."""
    payload, mask = json.dumps(frame).encode(), b"\x01\x02\x03\x04"
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return b"\x81" + size + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
