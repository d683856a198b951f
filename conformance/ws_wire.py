"""WebSocket framing (RFC 6455), client side, just enough to carry MQTT and to break its rules on purpose.

`WebSocket` looks like a socket to `mqtt_wire.Client`. It does not negotiate extensions.
"""

import base64
import hashlib
import os
import socket
import struct

CONTINUATION, TEXT_FRAME, BINARY_FRAME, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class HandshakeRefused(Exception):
    def __init__(self, status):
        super().__init__(f"the upgrade was answered with {status}")
        self.status = status


class WebSocket:
    def __init__(self, address, path="/mqtt", protocols=("mqtt",), timeout=40):
        self.sock = socket.create_connection(address, timeout=timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.close_code = None
        self.protocol = self.shake_hands(address, path, protocols)

    def shake_hands(self, address, path, protocols):
        key = base64.b64encode(os.urandom(16))
        lines = [f"GET {path} HTTP/1.1", f"Host: {address[0]}:{address[1]}", "Upgrade: websocket",
                 "Connection: Upgrade", f"Sec-WebSocket-Key: {key.decode()}", "Sec-WebSocket-Version: 13"]
        if protocols:
            lines.append("Sec-WebSocket-Protocol: " + ", ".join(protocols))
        self.sock.sendall("\r\n".join(lines + ["", ""]).encode())
        head = self.read_head().decode("latin-1").split("\r\n")
        status = int(head[0].split()[1])
        if status != 101:
            raise HandshakeRefused(status)
        fields = {k.strip().lower(): v.strip() for k, v in (line.split(":", 1) for line in head[1:] if line)}
        wanted = base64.b64encode(hashlib.sha1(key + MAGIC).digest()).decode()
        if fields.get("sec-websocket-accept") != wanted:
            raise HandshakeRefused("a wrong Sec-WebSocket-Accept")
        return fields.get("sec-websocket-protocol")

    def read_head(self):
        while b"\r\n\r\n" not in self.buffer:
            data = self.sock.recv(4096)
            if not data:
                raise HandshakeRefused("nothing")
            self.buffer += data
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        return head

    def send_frame(self, payload, opcode=BINARY_FRAME, final=True):
        mask = os.urandom(4)
        head = bytes([(0x80 if final else 0) | opcode])
        if len(payload) < 126:
            head += bytes([0x80 | len(payload)])
        elif len(payload) < 65536:
            head += bytes([0x80 | 126]) + struct.pack("!H", len(payload))
        else:
            head += bytes([0x80 | 127]) + struct.pack("!Q", len(payload))
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self.sock.sendall(head + mask + masked)

    # What `mqtt_wire.Client` uses.

    def sendall(self, data):
        self.send_frame(data)

    def settimeout(self, seconds):
        self.sock.settimeout(seconds)

    def recv(self, _size):
        """The payload of the next data frame; empty when the server has closed."""
        while True:
            frame = self.take_frame()
            if frame is None:
                data = self.sock.recv(65536)
                if not data:
                    return b""
                self.buffer += data
                continue
            opcode, payload = frame
            if opcode == CLOSE:
                self.close_code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else None
                return b""
            if opcode == PING:
                self.send_frame(payload, PONG)
            elif opcode in (BINARY_FRAME, CONTINUATION) and payload:
                return payload
            elif opcode == TEXT_FRAME:
                raise OSError("MQTT came in a text frame")

    def take_frame(self):
        if len(self.buffer) < 2:
            return None
        size, at = self.buffer[1] & 0x7F, 2
        if size > 125:
            width = 2 if size == 126 else 8
            if len(self.buffer) < 2 + width:
                return None
            size, at = int.from_bytes(self.buffer[2:2 + width], "big"), 2 + width
        if len(self.buffer) < at + size:
            return None
        opcode, payload = self.buffer[0] & 15, self.buffer[at:at + size]
        self.buffer = self.buffer[at + size:]
        return opcode, payload

    def close(self):
        self.sock.close()
