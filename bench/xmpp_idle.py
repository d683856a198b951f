#!/usr/bin/env python3
"""Memory of one idle XMPP session, beside Prosody and ejabberd in the same run (Debian packages `prosody`, `ejabberd`).

    python3 bench/xmpp_idle.py --server target/release/postrider [-n 1000] [--only postrider,prosody,ejabberd]

Each session opens a stream, signs in with SASL PLAIN without TLS, binds a resource and sends presence, as an account of its own. Printed is
the growth of the server's proportional set size (user memory, all its processes) divided by the sessions.
"""

import argparse
import base64
import socket
import ssl

from process import settled
from web_idle import read_until, register
from xmpp_servers import DOMAIN, start

OPEN = (f"<?xml version='1.0'?><stream:stream to='{DOMAIN}' xmlns='jabber:client' "
        "xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>").encode()


def session(place, user, password, tls=None):
    connection = socket.create_connection(place)
    connection.settimeout(30)
    connection.sendall(OPEN)
    read_until(connection, b"</stream:features>")
    if tls:
        connection.sendall(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
        read_until(connection, b"<proceed")
        connection = tls.wrap_socket(connection, server_hostname=DOMAIN)
        connection.sendall(OPEN)
        read_until(connection, b"</stream:features>")
    proof = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
    connection.sendall(f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{proof}</auth>".encode())
    answer = read_until(connection, b">")
    if b"<success" not in answer:
        raise ConnectionError(f"not signed in: {answer!r}")
    connection.sendall(OPEN)
    read_until(connection, b"</stream:features>")
    connection.sendall(b"<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>")
    read_until(connection, b"</iq>")
    connection.sendall(b"<presence/><iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>")
    read_until(connection, b"<iq")
    return connection


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--only", default="postrider,prosody,ejabberd")
    parser.add_argument("--tls", action="store_true", help="STARTTLS with TLS 1.3; of postrider only")
    options = parser.parse_args()
    tls = ssl._create_unverified_context() if options.tls else None
    for name in options.only.split(","):
        server = start(name, options.server, "open", bool(tls))
        accounts = register(server.server, options.n) if name == "postrider" else [(f"u{n}", "secret") for n in range(options.n)]
        try:
            warm = [session(server.place, *account, tls) for account in accounts[:50]]
            before = settled(server.pid)
            held = [session(server.place, *account, tls) for account in accounts[50:]]
            after = settled(server.pid)
            print(f"{name:10} {(after - before) / len(held):8.0f} bytes each", flush=True)
            for connection in warm + held:
                connection.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
