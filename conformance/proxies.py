"""nginx and HAProxy as operators put them before the HTTP listener, with connections that they keep and share.

Both forward bodies as they come, reuse a connection for whoever asks next, and say whose request it is.
"""

import os
import shutil
import subprocess
import tempfile
import time

from harness import NotHere, eventually
from server import quiet_port

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream postrider {{ server {upstream}; keepalive 16; }}
  server {{
    listen {listen};
    location / {{
      proxy_pass http://postrider;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 90s;
    }}
    # A path behind `proxy_pass` makes nginx decode the request's path.
    location /decoded/ {{ proxy_pass http://postrider/; proxy_set_header Host $http_host; }}
  }}
}}
"""

HAPROXY = """
global
  maxconn 1000
defaults
  mode http
  timeout connect 5s
  timeout client 90s
  timeout server 90s
  timeout tunnel 1h
  option forwardfor
frontend public
  bind {listen}
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  default_backend postrider
backend postrider
  http-reuse always
  server one {upstream}
"""


class Proxy:
    """One of the two, in a process of its own until `stop`."""

    def __init__(self, name, upstream):
        if shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            raise NotHere(f"{name} is not installed")
        self.name, self.place = name, ("127.0.0.1", quiet_port())
        self.folder = tempfile.mkdtemp(prefix=f"{name}-")
        text = {"nginx": NGINX, "haproxy": HAPROXY}[name]
        config = os.path.join(self.folder, "proxy.conf")
        with open(config, "w") as file:
            file.write(text.format(folder=self.folder, listen="%s:%d" % self.place, upstream="%s:%d" % upstream))
        program = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        words = {"nginx": [program, "-e", f"{self.folder}/early.log", "-c", config],
                 "haproxy": [program, "-db", "-q", "-f", config]}[name]
        self.log = os.path.join(self.folder, "output.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        eventually(self.listens, f"{name} listens; it said {self.said()!r}")

    def listens(self):
        import socket
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
