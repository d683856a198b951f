#!/usr/bin/env python3
"""User memory of an idle MQTT connection over TLS: opens N of them, and divides the growth of the server's memory.

    tls_idle.py --server target/release/postrider -n 3000

Makes a certificate for the purpose (needs the `openssl` program), starts the server on free ports, stops it again.
"""

import argparse
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile

from process import pss


def connect_packet(name):
    body = b"\x00\x04MQTT\x04\x02\x00\x00" + struct.pack("!H", len(name)) + name
    return bytes([0x10, len(body)]) + body


def signed_in(port, context, number):
    plain = socket.create_connection(("127.0.0.1", port), source_address=(f"127.1.0.{number % 250 + 1}", 0))
    client = context.wrap_socket(plain, server_hostname="localhost")
    client.sendall(connect_packet(b"tls%d" % number))
    assert client.recv(4)[3:4] == b"\x00", "the sign-in was refused"
    return client


def start(server, folder):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-subj", "/CN=localhost", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"],
                   check=True, capture_output=True)
    with open("profiles/bench.toml") as profile, open(f"{folder}/tls.toml", "w") as config:
        config.write(profile.read() + f'\n[tls]\ncertificate = "{folder}/cert.pem"\nkey = "{folder}/key.pem"\n')
    free = {f"POSTRIDER_{name}_LISTEN": "127.0.0.1:0" for name in ("HTTP", "OPS", "MQTT", "MQTT_TLS")}
    process = subprocess.Popen([server, "serve", "--config", f"{folder}/tls.toml", "--data", f"{folder}/data"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **free})
    for line in process.stdout:
        if line.startswith("listening "):
            return process, int(re.search(r"mqtt_tls=[^ ]*:(\d+)", line).group(1))
    sys.exit("the server did not start")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("-n", type=int, default=3000)
    options = parser.parse_args()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with tempfile.TemporaryDirectory() as folder:
        process, port = start(options.server, folder)
        try:
            warm = [signed_in(port, context, n) for n in range(200)]
            before = pss(process.pid)
            clients = [signed_in(port, context, 200 + n) for n in range(options.n)]
            grown = pss(process.pid) - before
            print(f"{options.n} idle TLS connections ({clients[0].version()}): {grown / options.n:.0f} bytes of user memory each")
            assert len(warm) == 200
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
