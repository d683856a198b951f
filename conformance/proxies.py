"""nginx and HAProxy before the HTTP listener, as the guide sets them up, with connections that they keep and share."""

import os
import shutil
import socket
import subprocess
import tempfile
import time

from docs_blocks import blocks_of
from harness import NotHere, eventually
from server import ROOT, quiet_port

# Around the guide's example: a process of its own that writes into its folder alone, and forwards bodies as they come.
NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; proxy_request_buffering off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
{example}
  # A path behind `proxy_pass` makes nginx decode the request's path.
  server {{ listen {decoding}; location / {{ proxy_pass http://postrider/; proxy_set_header Connection ""; }} }}
}}
"""

# The worst case: any request may follow any other on a connection.
HAPROXY = """
global
  maxconn 1000
{example}
  http-reuse always
"""


def example(name):
    """The block of that language in the guide."""
    return next(block.text for block in blocks_of("docs/guide.md", ROOT) if block.language == name)


class Proxy:
    """One of the two, in a process of its own until `stop`."""

    def __init__(self, name, upstream):
        if shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            raise NotHere(f"{name} is not installed")
        self.name, self.place = name, ("127.0.0.1", quiet_port())
        self.folder = tempfile.mkdtemp(prefix=f"{name}-")
        self.decoding = ("127.0.0.1", quiet_port())
        given = {"listen 80": "listen %s:%d" % self.place, "bind :80": "bind %s:%d" % self.place,
                 "127.0.0.1:8080": "%s:%d" % upstream}
        own = example(name)
        for words, instead in given.items():
            own = own.replace(words, instead)
        text = {"nginx": NGINX, "haproxy": HAPROXY}[name]
        config = os.path.join(self.folder, "proxy.conf")
        with open(config, "w") as file:
            file.write(text.format(folder=self.folder, example=own, decoding="%s:%d" % self.decoding))
        program = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        words = {"nginx": [program, "-e", f"{self.folder}/early.log", "-c", config],
                 "haproxy": [program, "-db", "-q", "-f", config]}[name]
        self.log = os.path.join(self.folder, "output.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        eventually(self.listens, f"{name} listens; it said {self.said()!r}")

    def listens(self):
        if self.process.poll() is not None:
            raise NotHere(f"{self.name} ended: {self.said()}")
        try:
            socket.create_connection(self.place, timeout=1).close()
            return True
        except OSError:
            time.sleep(0.02)
            return False

    def said(self):
        with open(self.log, errors="replace") as log:
            return log.read()[-500:]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
