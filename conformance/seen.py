"""A server seen from outside: its operations listener, and what the system knows of its process."""

import os
import re
import socket


class Seen:
    """The operations listener and what the system knows of the process."""

    def __init__(self, server):
        self.server, self.target = server, server.target()

    def metrics(self):
        connection = socket.create_connection(self.server.places["ops"], 10)
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return read_all(connection).decode()

    def metric(self, name):
        """The sum over all labels."""
        lines = re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", self.metrics(), re.MULTILINE)
        return sum(map(float, lines))

    def ready(self):
        connection = socket.create_connection(self.server.places["ops"], 10)
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b" 200 " in read_all(connection)[:20]

    def resident_mib(self):
        with open(f"/proc/{self.server.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024

    def allocated_bytes(self):
        """Anonymous resident memory: what the server itself has asked for."""
        with open(f"/proc/{self.server.process.pid}/status") as status:
            return int(re.search(r"RssAnon:\s+(\d+)", status.read()).group(1)) * 1024

    def cpu_secs(self):
        with open(f"/proc/{self.server.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def threads(self):
        return len(os.listdir(f"/proc/{self.server.process.pid}/task"))

    def sockets_open(self):
        folder, found = f"/proc/{self.server.process.pid}/fd", 0
        for number in os.listdir(folder):
            try:
                found += os.readlink(f"{folder}/{number}").startswith("socket:")
            except FileNotFoundError:
                continue
        return found

    def files_open(self):
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))


def read_all(sock):
    got = b""
    with sock:
        while True:
            try:
                part = sock.recv(65536)
            except ConnectionResetError:
                return got
            if not part:
                return got
            got += part
