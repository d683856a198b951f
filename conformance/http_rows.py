"""The table of hostile HTTP/1.1 and JSON: the bytes of one request, and the one answer allowed. `H` numbers name the kind.

To add an attack, add a row. `@APP@`, `@ADMIN@`, `@READ@`, `@DEVICE@`, `@SECRET@` stand for keys and a device that the suite has
made. A `code` of None is an answer without a body: what the parser refuses before there is a request.
"""

import base64
import json
from dataclasses import dataclass

@dataclass(frozen=True)
class HttpRow:
    h: int
    name: str
    data: bytes
    status: int
    code: str = None
    field: str = None


ROWS = []

APP, ADMIN, READ = (f"Authorization: Bearer @{name}@\r\n" for name in ("APP", "ADMIN", "READ"))
OWN = "Authorization: Bearer @DEVICE@:@SECRET@\r\n"
JSON = "Content-Type: application/json\r\n"
ESTIMATE = "/v1/messages/estimate"


def raw(h, name, data, status, code=None, field=None):
    """Any bytes."""
    ROWS.append(HttpRow(h, name, data.encode() if isinstance(data, str) else data, status, code, field))


def request(method, path, headers="", body=b"", auth=APP):
    """One request that ends its connection."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{auth}{headers}\r\n"
    return head.encode() + body


def get(h, name, path, status, code=None, field=None, headers="", auth=APP, method="GET"):
    raw(h, name, request(method, path, headers, b"", auth), status, code, field)


def send(h, name, path, body, status, code=None, field=None, headers=JSON, auth=APP, method="POST"):
    """A body, given as bytes, text, or a value to write as JSON."""
    if not isinstance(body, (bytes, str)):
        body = json.dumps(body)
    body = body.encode() if isinstance(body, str) else body
    raw(h, name, request(method, path, f"{headers}Content-Length: {len(body)}\r\n", body, auth), status, code, field)


# --- H81: WebSocket handshakes that are none ----------------------------------------------------------

KEY, VERSION = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "Sec-WebSocket-Version: 13\r\n"
PROTOCOL = "Sec-WebSocket-Protocol: mqtt\r\n"


def upgrade(name, rest, status, code, field=None, connection="Connection: Upgrade\r\nUpgrade: websocket\r\n", method="GET"):
    raw(81, f"upgrade with {name}", f"{method} /mqtt HTTP/1.1\r\nHost: x\r\n{connection}{rest}Connection: close\r\n\r\n",
        status, code, field)


upgrade("no key", VERSION + PROTOCOL, 400, "invalid_upgrade")
for bad in ("eA==", "", "not base64 at all!!!!!!!", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZTEyMzQ1Njc="):
    upgrade(f"the key '{bad}'", f"Sec-WebSocket-Key: {bad}\r\n" + VERSION + PROTOCOL, 400, "invalid_upgrade")
upgrade("two keys", KEY + KEY + VERSION + PROTOCOL, 400, "invalid_upgrade")
for bad in ("12", "8", "0", "-13", "013", "13.0", ""):
    upgrade(f"version '{bad}'", KEY + f"Sec-WebSocket-Version: {bad}\r\n" + PROTOCOL, 426, "websocket_version")
upgrade("no version", KEY + PROTOCOL, 426, "websocket_version")
for bad in ("wamp", "MQTT5", "mqtt5", ""):
    upgrade(f"the subprotocol '{bad}'", KEY + VERSION + f"Sec-WebSocket-Protocol: {bad}\r\n", 400, "invalid_upgrade",
            "Sec-WebSocket-Protocol")
upgrade("no subprotocol", KEY + VERSION, 400, "invalid_upgrade", "Sec-WebSocket-Protocol")
for bad in ("https://evil.example", "null", "http://x.evil.example", "http://evil.example/x", "http://x@evil.example",
            "file://", "x"):
    upgrade(f"the origin {bad}", KEY + VERSION + PROTOCOL + f"Origin: {bad}\r\n", 403, "foreign_origin")
upgrade("200 headers", KEY + VERSION + PROTOCOL + "".join(f"X-{n}: 1\r\n" for n in range(200)), 431, None)
upgrade("no Upgrade", KEY + VERSION + PROTOCOL, 400, "invalid_upgrade", connection="")
upgrade("Upgrade to h2c", KEY + VERSION + PROTOCOL, 400, "invalid_upgrade",
        connection="Connection: Upgrade\r\nUpgrade: h2c\r\n")
upgrade("the method POST", KEY + VERSION + PROTOCOL, 405, "method_not_allowed", method="POST")

# --- H82: requests whose end is disputed --------------------------------------------------------------

SMUGGLED = "GET /v1/apps HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = f"POST {ESTIMATE} HTTP/1.1\r\nHost: x\r\n{JSON}{APP}"
CHUNKED = "Transfer-Encoding: chunked\r\n"


def disputed(name, rest, status=400, code=None):
    """One answer and the end: what one side might take for the end of a body is never the begin of a request."""
    raw(82, name, HEAD + rest, status, code)


disputed("length and chunked", f"Content-Length: 5\r\n{CHUNKED}\r\n0\r\n\r\n{SMUGGLED}", 400, "invalid_json")
disputed("chunked and length", f"{CHUNKED}Content-Length: 5\r\n\r\n0\r\n\r\n{SMUGGLED}", 400, "invalid_json")
disputed("two lengths", f"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345{SMUGGLED}")
disputed("two lengths in one field", f"Content-Length: 5, 6\r\n\r\n12345{SMUGGLED}")
for bad in ("+5", "-5", "0x5", "5 5", "5,", "", "five", "5.0", "99999999999999999999", "18446744073709551616"):
    disputed(f"length '{bad}'", f"Content-Length: {bad}\r\n\r\n12345")
for bad in ("chunked, identity", "identity, chunked, gzip", "xchunked", "chunked, chunked, x", "gzip", "x"):
    disputed(f"transfer coding '{bad}'", f"Transfer-Encoding: {bad}\r\n\r\n0\r\n\r\n{SMUGGLED}")
for bad in ("\x0bchunked", "chunked\x00", "\x01"):
    disputed(f"transfer coding {bad!r}", f"Transfer-Encoding: {bad}\r\n\r\n0\r\n\r\n{SMUGGLED}")
disputed("obs-fold in a field", "X: a\r\n b\r\n\r\n")
disputed("obs-fold of the coding", "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n")
disputed("a space before the colon", f"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{SMUGGLED}")
disputed("a space before a field", f" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}")
disputed("a field without a name", ": chunked\r\n\r\n")
disputed("a field without a colon", "chunked\r\n\r\n")
disputed("NUL in a value", "X: a\0b\r\n\r\n")
disputed("NUL in a name", "X\0: a\r\n\r\n")
disputed("a lone CR in a value", "X: a\rb: c\r\n\r\n")
disputed("letters beyond ASCII in a name", "Xä: a\r\n\r\n")
disputed("brackets in a name", "X(1): a\r\n\r\n")
for name, chunk in (("overflows", "fffffffffffffffff\r\n"), ("is negative", "-1\r\n"), ("has a sign", "+1\r\nx\r\n"),
                    ("is empty", "\r\n"), ("has a prefix", "0x1\r\nx\r\n"), ("is no number", "g\r\n"),
                    ("is broken by a space", "1 1\r\nx\r\n"), ("ends in CR alone", "1\rx\r\n"), ("ends in LF", "1\nx\r\n")):
    disputed(f"a chunk size that {name}", f"{CHUNKED}\r\n{chunk}", 400, "invalid_json")
disputed("a chunk longer than its size", f"{CHUNKED}\r\n1\r\nxx\r\n0\r\n\r\n{SMUGGLED}", 400, "invalid_json")
disputed("a chunk extension of 1 MiB", f"{CHUNKED}\r\n1;{'x' * (1 << 20)}\r\n", 400, "invalid_json")
disputed("a chunk extension with a line break", f"{CHUNKED}\r\n1;a=\"\n\"\r\nx\r\n0\r\n\r\n", 400, "invalid_json")
disputed("trailers that name a length", f"{CHUNKED}\r\n2\r\n{{}}\r\n0\r\nContent-Length: 9\r\n\r\n{SMUGGLED}",
         400, "invalid_field")
disputed("trailers that authorise", f"{CHUNKED}\r\n2\r\n{{}}\r\n0\r\nAuthorization: Bearer x\r\n\r\n", 400, "invalid_field")
disputed("trailers of 1 MiB", f"{CHUNKED}\r\n2\r\n{{}}\r\n0\r\nX: {'x' * (1 << 20)}\r\n\r\n", 400, "invalid_json")
raw(82, "a body in a GET, then a request", f"GET /v1/apps HTTP/1.1\r\nHost: x\r\n{CHUNKED}\r\n0\r\n\r\n{SMUGGLED}", 401,
    "missing_credentials")
raw(82, "a chunked body in HTTP/1.0", f"POST {ESTIMATE} HTTP/1.0\r\n{JSON}{APP}{CHUNKED}\r\n2\r\n{{}}\r\n0\r\n\r\n", 400)
raw(82, "bare LF", "GET /v1/apps HTTP/1.1\nHost: x\nConnection: close\n\n", 400, "invalid_header")
raw(82, "bare LF in one line", f"GET /v1/apps HTTP/1.1\r\nHost: x\r\nX: a\n{CHUNKED}\r\n0\r\n\r\n", 400, "invalid_header")
raw(82, "bare CR", "GET /v1/apps HTTP/1.1\rHost: x\r\r", 400)
raw(82, "a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400)
raw(82, "an MQTT CONNECT", b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01h\r\n\r\n", 400)
raw(82, "bytes that are no text", bytes(range(128, 256)) + b"\r\n\r\n", 400)
raw(82, "zeros", bytes(64), 400)
for bad in ("HTTP/9.9", "HTTP/1.2", "HTTP/0.9", "http/1.1", "HTTP/1", "HTTP", "HTTP/1.1 x", "XTTP/1.1"):
    raw(82, f"version '{bad}'", f"GET /v1/apps {bad}\r\nHost: x\r\n\r\n", 400)
raw(82, "no version", "GET /v1/apps\r\nHost: x\r\n\r\n", 400)
raw(82, "two spaces in the request line", "GET  /v1/apps HTTP/1.1\r\nHost: x\r\n\r\n", 400)
raw(82, "a tab in the request line", "GET\t/v1/apps HTTP/1.1\r\nHost: x\r\n\r\n", 400)
raw(82, "NUL in the method", "G\0T /v1/apps HTTP/1.1\r\nHost: x\r\n\r\n", 400)
raw(82, "NUL in the target", "GET /v1/\0apps HTTP/1.1\r\nHost: x\r\n\r\n", 400)
raw(82, "a target without a slash", "GET v1/apps HTTP/1.1\r\nHost: x\r\n\r\n", 400)
raw(82, "a preface of HTTP/2 with something else behind", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 400)

# --- H83: heads that are too much ---------------------------------------------------------------------

FIELDS = {n: "".join(f"X-{i}: 1\r\n" for i in range(n)) for n in (61, 62, 100, 1000, 10_000)}
get(83, "64 fields", "/v1/devices", 200, headers=FIELDS[61])
get(83, "65 fields", "/v1/devices", 431, headers=FIELDS[62])
get(83, "103 fields", "/v1/devices", 431, headers=FIELDS[100])
get(83, "1,003 fields", "/v1/devices", 431, headers=FIELDS[1000])
get(83, "10,003 fields", "/v1/devices", 431, headers=FIELDS[10_000])
for size in (16 * 1024, 64 * 1024, 1 << 20):
    get(83, f"a field of {size} bytes", "/v1/devices", 431, headers=f"X: {'x' * size}\r\n")
    get(83, f"a name of {size} bytes", "/v1/devices", 431, headers=f"{'x' * size}: 1\r\n")
    get(83, f"a cookie of {size} bytes", "/v1/devices", 431, headers=f"Cookie: {'x' * size}\r\n")
get(83, "8 KiB of path", f"/{'x' * 8192}", 414, "uri_too_long")
get(83, "8 KiB of query", f"/v1/devices?{'x' * 8192}", 414, "uri_too_long")
get(83, "1,000 empty segments", "/" * 1000, 404, "no_such_route")
raw(83, "64 KiB of path", f"GET /{'x' * 65536} HTTP/1.1\r\nHost: x\r\n\r\n", 431)
raw(83, "a method of 64 KiB", f"{'X' * 65536} / HTTP/1.1\r\nHost: x\r\n\r\n", 431)
raw(83, "no Host", "GET /v1/apps HTTP/1.1\r\nConnection: close\r\n\r\n", 400, "invalid_host")
get(83, "two Hosts", "/v1/apps", 400, "invalid_host", headers="Host: y\r\n")
get(83, "the same Host twice", "/v1/apps", 400, "invalid_host", headers="Host: x\r\n")
get(83, "a target on another host", "http://y/v1/apps", 400, "invalid_host")
get(83, "a target on another port", "http://x:1/v1/apps", 400, "invalid_host")
get(83, "a target with a user", "http://u@x/v1/apps", 400, "invalid_host")
raw(83, "OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404, "no_such_route")
raw(83, "CONNECT", "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nConnection: close\r\n\r\n", 404, "no_such_route")
for method in ("TRACE", "PROPFIND", "X", "get", "BREW", "PRI"):
    get(83, f"the method {method}", "/v1/devices", 405, "method_not_allowed", method=method)
get(83, "Expect for something else", "/v1/devices", 200, headers="Expect: the-spanish-inquisition\r\n")

# --- H85: JSON that is none ---------------------------------------------------------------------------

GOOD = '{"audience":"all"}'
BAD_JSON = {
    "33 lists deep": "[" * 33 + "1" + "]" * 33, "10,000 lists deep": "[" * 10_000, "50,000 objects deep": '{"a":' * 50_000,
    "33 objects deep": '{"a":' * 33 + "1" + "}" * 33, "100,000 digits": "1" * 100_000, "200,000 decimals": "0." + "1" * 200_000 + "e",
    "1e999": "1e999", "-1e999": "-1e999", "an integer beyond 64 bits": "18446744073709551616",
    "a negative integer beyond 64 bits": "-9223372036854775809", "NaN": "NaN", "Infinity": "Infinity", "-Infinity": "-Infinity",
    "a leading zero": "01", "a leading plus": "+1", "a number that ends in a point": "1.", "a bare exponent": "1e",
    "hexadecimal": "0x10", "a lone minus": "-",
    "a key twice": '{"audience":"all","audience":"all"}', "a key twice, once escaped": '{"audience":"all","\\u0061udience":"all"}',
    "a key twice, deep down": '{"audience":"all","data":[{"a":1,"a":1}]}',
    "257 keys": json.dumps({str(n): n for n in range(257)}),
    "a lone high surrogate": '{"audience":{"tag":"\\ud800"}}', "a lone low surrogate": '{"audience":{"tag":"\\udc00"}}',
    "surrogates turned round": '{"audience":{"tag":"\\udc00\\ud800"}}', "a cut escape": '{"audience":{"tag":"\\u00"}}',
    "an unknown escape": '{"audience":{"tag":"\\x41"}}', "NUL in a string": '{"audience":"all\0"}', "a line break in a string": '{"audience":"al\nl"}',
    "a tab in a string": '{"audience":"al\tl"}', "NUL between tokens": '{"audience"\0:"all"}', "a vertical tab between tokens": '{"audience"\x0b:"all"}',
    "a byte order mark": "\ufeff" + GOOD, "a second value": GOOD + "{}", "a trailing comma": '{"audience":"all",}',
    "text behind": GOOD + "x", "NUL behind": GOOD + "\0", "a comment": "/* x */" + GOOD, "a line comment": "//x\n" + GOOD,
    "single quotes": "{'audience':'all'}", "a key without quotes": '{audience:"all"}', "no colon": '{"audience" "all"}',
    "no comma": '{"audience":"all" "data":1}', "a number as key": '{1:2}', "an open string": '{"audience":"all',
    "an open object": '{"audience":"all"', "a closing bracket of the other kind": '{"audience":"all"]', "only a comma": ",",
    "nothing": "", "only spaces": " " * 100, "True": "True", "nul": "nul", "undefined": "undefined",
    "a no-break space": "\u00a0" + GOOD, "UTF-16": GOOD.encode("utf-16-le"), "UTF-32": GOOD.encode("utf-32-be"),
    "XML": "<audience>all</audience>", "a form": "audience=all", "YAML": "audience: all", "MessagePack": b"\x81\xa8audience\xa3all",
    "an overlong slash": b'{"audience":"\xc0\xaf"}', "an encoded surrogate": b'{"audience":"\xed\xa0\x80"}', "the byte FF": b'{"audience":"\xff"}',
    "a cut sequence": b'{"audience":"\xe2\x82"}', "a lone continuation": b'{"audience":"\x80"}', "beyond U+10FFFF": b'{"audience":"\xf4\x90\x80\x80"}',
    "bad UTF-8 in a key": b'{"\xff":1}', "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
}
for name, body in BAD_JSON.items():
    send(85, f"JSON: {name}", ESTIMATE, body, 400, "invalid_json")
for name, body in {"a list": "[]", "null": "null", "a number": "1", "a string": '"all"', "true": "true", "{}": "{}",
                   "a list of one": f"[{GOOD}]"}.items():
    send(85, f"instead of an object: {name}", ESTIMATE, body, 400, "invalid_field")

# --- H85: fields of the wrong kind, of every call -----------------------------------------------------

TEXT, COUNT, LIST, OBJECT, YES = "text", "number", "list", "object", "boolean"
WRONG = {TEXT: (1, [], {}, True), COUNT: ("1", [], {}, True, -1, 1.5), LIST: (1, "x", {}, [1]), OBJECT: (1, "x", [], True), YES: (1, "true", [])}
DEVICE = "/v1/devices/@DEVICE@"
CALLS = [
    ("POST", "/v1/messages", {"audience": "all"}, APP,
     {"notification": OBJECT, "data_text": TEXT, "data_base64": TEXT, "ttl_secs": COUNT, "collapse_key": TEXT, "priority": TEXT,
      "durability": TEXT, "on_full": TEXT, "idempotency_key": TEXT}),
    ("POST", "/v1/messages/batch", {}, APP, {"messages": OBJECT}),
    ("POST", ESTIMATE, {"audience": "all"}, APP, {"device": TEXT}),
    ("POST", "/v1/messages/00000000000000000000000000000000/receipts", {}, OWN, {"step": TEXT}),
    ("POST", "/v1/topics/h/publish", {"payload_text": "x"}, APP, {"qos": COUNT, "retain": YES, "expiry_secs": COUNT, "content_type": TEXT}),
    ("POST", "/v1/topics/h/publish", {}, APP, {"payload_text": TEXT, "payload_base64": TEXT}),
    ("POST", "/v1/devices", {"platform": "web"}, APP, {"device_id": TEXT, "alias": TEXT, "tags": LIST, "attributes": OBJECT, "provider_tokens": OBJECT}),
    ("POST", "/v1/devices", {}, APP, {"platform": TEXT}),
    ("PATCH", DEVICE, {}, APP, {"platform": TEXT, "alias": TEXT, "tags": LIST, "add_tags": LIST, "remove_tags": LIST, "attributes": OBJECT,
                                "provider_tokens": OBJECT}),
    ("PUT", f"{DEVICE}/alias", {}, APP, {"alias": TEXT}),
    ("POST", "/v1/apps", {"id": "h"}, ADMIN, {"name": TEXT}),
    ("POST", "/v1/apps", {}, ADMIN, {"id": TEXT}),
    ("POST", "/v1/apps/default/keys", {"scope": "read"}, ADMIN, {"name": TEXT}),
    ("POST", "/v1/apps/default/keys", {}, ADMIN, {"scope": TEXT}),
]
for method, path, rest, auth, fields in CALLS:
    for field, kind in fields.items():
        for wrong in WRONG[kind]:
            pointer = f"/{field}/0" if wrong == [1] else f"/{field}"
            send(85, f"{method} {path} with {field} = {json.dumps(wrong)}", path, {**rest, field: wrong}, 400, "invalid_field", pointer,
                 auth=auth, method=method)
    send(85, f"{method} {path} with a field it does not know beside {sorted(fields)}", path, {**rest, "colour": 1}, 400,
         "invalid_field", "/colour", auth=auth, method=method)
for field in ("title", "subtitle", "body", "image", "icon", "color", "sound", "group", "category", "click"):
    for wrong in (1, [], {}):
        send(85, f"notification with {field} = {json.dumps(wrong)}", "/v1/messages", {"audience": "all", "notification": {field: wrong}}, 400,
             "invalid_field", f"/notification/{field}")
    send(87, f"a control character in {field}", "/v1/messages", {"audience": "all", "notification": {field: "a\x1bb"}}, 400,
         "invalid_field", f"/notification/{field}")
for wrong in (-1, 1.5, 4294967296, "1", []):
    send(85, f"notification with badge = {json.dumps(wrong)}", "/v1/messages", {"audience": "all", "notification": {"badge": wrong}}, 400,
         "invalid_field", "/notification/badge")
for name, wrong, place in (("a number", 1, ""), ("one without a title", [{"id": "a"}], "/0/title"),
                           ("one without an id", [{"title": "a"}], "/0/id"),
                           ("a number in the list", [1], "/0"), ("an unknown field", [{"id": "a", "title": "b", "x": 1}], "/0/x")):
    send(85, f"actions: {name}", "/v1/messages", {"audience": "all", "notification": {"actions": wrong}}, 400, "invalid_field",
         f"/notification/actions{place}")

# --- audiences ----------------------------------------------------------------------------------------

deep = {"tag": "a"}
for _ in range(20):
    deep = {"not": deep}
AUDIENCES = {
    "null": None, "a number": 1, "an unknown word": "some", "an empty object": {}, "an empty list": [], "two keys": {"tag": "a", "alias": "b"},
    "an unknown key": {"colour": "red"}, "a device that is a number": {"device": 1}, "devices that are text": {"devices": "a"},
    "no devices": {"devices": []}, "a tag that is a list": {"tag": ["a"]}, "and of nothing": {"and": []}, "or of nothing": {"or": []},
    "and of text": {"and": "all"}, "not of a list": {"not": []}, "a platform that is none": {"platform": "toaster"},
    "65 clauses": {"or": [{"tag": str(n)} for n in range(65)]}, "1,001 devices": {"devices": [str(n) for n in range(1001)]},
    "1,001 aliases": {"aliases": [str(n) for n in range(1001)]},
}
for name, audience in AUDIENCES.items():
    for place in ("audience", "exclude") if audience is not None else ("audience",):
        send(85, f"{place}: {name}", "/v1/messages", {"audience": "all", place: audience}, 400, "invalid_audience")

# --- numbers and texts out of range -------------------------------------------------------------------

PUSH = {"audience": {"device": "@DEVICE@"}, "data_text": "x"}
RANGES = [
    ("/v1/messages", APP, "POST", {**PUSH, "ttl_secs": 2_592_001}, "/ttl_secs"),
    ("/v1/messages", APP, "POST", {**PUSH, "ttl_secs": 2**64 - 1}, "/ttl_secs"),
    ("/v1/messages", APP, "POST", {**PUSH, "collapse_key": "x" * 65}, "/collapse_key"),
    ("/v1/messages", APP, "POST", {**PUSH, "collapse_key": ""}, "/collapse_key"),
    ("/v1/messages", APP, "POST", {**PUSH, "backlog": {"last": 0}}, "/backlog"),
    ("/v1/messages", APP, "POST", {**PUSH, "backlog": {"last": 2**32}}, "/backlog/last"),
    ("/v1/messages", APP, "POST", {**PUSH, "backlog": "newest"}, "/backlog"),
    ("/v1/messages", APP, "POST", {**PUSH, "backlog": {"first": 1}}, "/backlog"),
    ("/v1/messages", APP, "POST", {**PUSH, "priority": "urgent"}, "/priority"),
    ("/v1/messages", APP, "POST", {**PUSH, "durability": "maybe"}, "/durability"),
    ("/v1/messages", APP, "POST", {**PUSH, "on_full": "explode"}, "/on_full"),
    ("/v1/messages", APP, "POST", {**PUSH, "data": 1}, "/data"),
    ("/v1/messages", APP, "POST", {"audience": "all", "data_base64": "%%%"}, "/data_base64"),
    ("/v1/messages", APP, "POST", {"audience": "all", "data_base64": "YQ"}, "/data_base64"),
    ("/v1/messages", APP, "POST", {"audience": "all", "data_base64": "YR=="}, "/data_base64"),
    ("/v1/messages/batch", APP, "POST", {"messages": [PUSH] * 501}, "/messages"),
    ("/v1/topics/h/publish", APP, "POST", {"payload_text": "x", "qos": 3}, "/qos"),
    ("/v1/topics/h/publish", APP, "POST", {"payload_text": "x", "qos": 256}, "/qos"),
    ("/v1/topics/h/publish", APP, "POST", {"payload_text": "x", "expiry_secs": 2**32}, "/expiry_secs"),
    ("/v1/topics/h/publish", APP, "POST", {"payload_text": "x", "content_type": "a\r\nb"}, "/content_type"),
    ("/v1/topics/h/publish", APP, "POST", {"payload_text": "x", "content_type": "x" * 129}, "/content_type"),
    ("/v1/topics/h/publish", APP, "POST", {}, "/payload_text"),
    ("/v1/topics/h/publish", APP, "POST", {"payload_text": "x", "payload_json": None}, "/payload_text"),
    ("/v1/topics/h/publish", APP, "POST", {"payload_base64": "x"}, "/payload_base64"),
    ("/v1/apps", ADMIN, "POST", {"id": ""}, "/id"), ("/v1/apps", ADMIN, "POST", {"id": "x" * 65}, "/id"),
    ("/v1/apps", ADMIN, "POST", {"id": "UPPER"}, "/id"), ("/v1/apps", ADMIN, "POST", {"id": "../x"}, "/id"),
    ("/v1/apps", ADMIN, "POST", {"id": "a\u0000"}, "/id"), ("/v1/apps", ADMIN, "POST", {"id": "ä"}, "/id"),
    ("/v1/apps", ADMIN, "POST", {"id": "h", "name": "x" * 129}, "/name"), ("/v1/apps", ADMIN, "POST", {"id": "h", "name": "a\nb"}, "/name"),
    ("/v1/apps/default/keys", ADMIN, "POST", {"scope": "admin"}, "/scope"),
    ("/v1/apps/default/keys", ADMIN, "POST", {"scope": "APP"}, "/scope"),
    ("/v1/apps/default/keys", ADMIN, "POST", {"scope": "read", "name": "a\u001b[2Jb"}, "/name"),
    (f"{DEVICE}/alias", APP, "PUT", {"alias": "x" * 65}, "/alias"), (f"{DEVICE}/alias", APP, "PUT", {"alias": ""}, "/alias"),
    (f"{DEVICE}/alias", APP, "PUT", {"alias": "a\u0000"}, "/alias"),
    (DEVICE, APP, "PATCH", {"add_tags": ["x" * 65]}, "/tags"), (DEVICE, APP, "PATCH", {"tags": [""]}, "/tags"),
    (DEVICE, APP, "PATCH", {"attributes": {"x" * 65: 1}}, "/attributes"), (DEVICE, APP, "PATCH", {"platform": "toaster"}, "/platform"),
]
for number, (path, auth, method, body, field) in enumerate(RANGES):
    send(85, f"out of range {number}: {method} {path} {json.dumps(body)[:60]}", path, body, 400, "invalid_field", field, auth=auth, method=method)
for bad in ("", "x" * 65, "a b", "a/b", "#", "+", "$SYS", "a\u0000", "ä", "a\nb", "*", "a%b"):
    send(85, f"device id {bad[:9]!r} of {len(bad)}", "/v1/devices", {"platform": "web", "device_id": bad}, 400, "invalid_field", "/device_id")
send(86, "a payload of 64 KiB + 1", "/v1/messages", {**PUSH, "data_text": "x" * 65_537}, 413, "payload_too_large")

# --- H86: bodies that are too much, or of another kind ------------------------------------------------

FULL = " " * (256 * 1024 - len(GOOD)) + GOOD
send(86, "256 KiB", ESTIMATE, FULL, 200)
send(86, "256 KiB + 1", ESTIMATE, " " + FULL, 413, "body_too_large")
for size in (1 << 20, 1 << 40, (1 << 63) - 1):
    raw(86, f"a body said to have {size} bytes", request("POST", ESTIMATE, f"{JSON}Content-Length: {size}\r\n"), 413, "body_too_large")
raw(86, "chunks without end", request("POST", ESTIMATE, JSON + CHUNKED, (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 64), 413, "body_too_large")
raw(86, "a million chunks of one byte", request("POST", ESTIMATE, JSON + CHUNKED, b"1\r\n \r\n" * 400_000), 413, "body_too_large")
raw(86, "a batch of 4 MiB + 1", request("POST", "/v1/messages/batch", f"{JSON}Content-Length: {(4 << 20) + 1}\r\n"), 413, "body_too_large")
raw(86, "Expect and a body too large", request("POST", ESTIMATE, f"{JSON}Expect: 100-continue\r\nContent-Length: {1 << 30}\r\n"), 413,
    "body_too_large")
for coding in ("gzip", "br", "deflate", "zstd", "identity, gzip", "x"):
    send(86, f"content coding {coding}", ESTIMATE, GOOD, 415, "unsupported_encoding", headers=f"{JSON}Content-Encoding: {coding}\r\n")
KINDS = ("text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx",
         "application/json; charset=utf-16", "application/json; charset=latin1", "application/xml", "application/octet-stream", "*/*", "json",
         "application/json, text/plain", ";", "")
for kind in KINDS:
    send(86, f"content type '{kind}'", ESTIMATE, GOOD, 415, "unsupported_media_type", headers=f"Content-Type: {kind}\r\n")
for method, path, rest, auth, fields in CALLS:
    if not rest or path == "/v1/messages":
        send(86, f"no content type: {method} {path} {sorted(fields)[0]}", path, "{}", 415, "unsupported_media_type", headers="", auth=auth, method=method)

# --- H87: control characters where names are ----------------------------------------------------------

for name, value, status, code in (("NUL", "a\0b", 400, None), ("DEL", "a\x7fb", 400, None), ("letters beyond ASCII", "ä", 400, "invalid_header"),
                                  ("65 letters", "x" * 65, 400, "invalid_header"), ("nothing", "", 400, "invalid_header")):
    send(87, f"idempotency key with {name}", "/v1/messages", PUSH, status, code, headers=f"{JSON}Idempotency-Key: {value}\r\n")
send(87, "two idempotency keys", "/v1/messages", PUSH, 400, "invalid_header", "Idempotency-Key",
     headers=f"{JSON}Idempotency-Key: a\r\nIdempotency-Key: b\r\n")
send(87, "a line break in the idempotency key", "/v1/messages", PUSH, 400, headers=f"{JSON}Idempotency-Key: a\r\nb\r\n")
for name, topic in {"a line break": "a%0d%0ab", "NUL": "a%00", "DEL": "a%7f", "a plus": "a%2b", "a hash": "a%23", "a dollar": "$SYS%2fx", "another dollar": "%24push%2finbox",
                    "513 bytes": "x" * 513, "17 levels": "%2f".join("a" * 17)}.items():
    send(87, f"a topic with {name}", f"/v1/topics/{topic}/publish", {"payload_text": "x"}, 400, "invalid_topic", "topic")
    get(87, f"a look at a topic with {name}", f"/v1/topics/{topic}", 400, "invalid_topic", "topic")

# --- H88: paths that mean another ---------------------------------------------------------------------

for path in ("/v1/admin/%2e%2e/apps", "//v1/apps", "/v1//apps", "/x;/../v1/apps", "/v1/../v1/apps", "/v1/./apps", "/v1/apps/", "/V1/apps", "/v1/apps%00",
             "/%c0%ae/v1/apps", "/v1/apps\\x", "/mqtt/../v1/apps", "/v1/apps;x=1", "/v1/apps.json", "/v1%2fapps", "/%76%31/apps", "/nothing", "/v2/apps",
             "/metrics", "/healthz", "/readyz", "/.git/config", "/etc/passwd", "/v1/admin/audit/x", "/v1/devices/a/b/c/d", "/v1", "/v1/"):
    get(88, f"path {path}", path, 404, "no_such_route", auth=ADMIN)
for what, path in {"bad UTF-8": "%ff", "an overlong slash": "%c0%af", "a surrogate": "%ed%a0%80"}.items():
    get(88, f"{what} in a device id", f"/v1/devices/{path}", 400, "invalid_parameter")
    get(88, f"{what} in a topic", f"/v1/topics/{path}", 400, "invalid_parameter")
    get(88, f"{what} in a tag", f"{DEVICE}/tags/{path}", 400, "invalid_parameter", method="PUT")
for name in ("%zz", "%", "%2", "..", "%2e%2e", "%00", "a%2fb", "none", "x" * 2000, "%E2%80%AE"):
    get(88, f"device {name[:12]} of {len(name)}", f"/v1/devices/{name}", 404, "no_such_device")
    get(88, f"message {name[:12]} of {len(name)}", f"/v1/messages/{name}", 404, "no_such_message")
    get(88, f"app {name[:12]} of {len(name)}", f"/v1/apps/{name}", 404, "no_such_app", auth=ADMIN)
for name in ("0" * 31, "0" * 33, "g" * 32, "-1", "0", "1e9", "00000000-0000-0000-0000-000000000000"):
    get(88, f"message id {name}", f"/v1/messages/{name}", 404, "no_such_message")
    get(88, f"deliveries of message {name}", f"/v1/messages/{name}/deliveries", 404, "no_such_message")
    get(88, f"cancelling message {name}", f"/v1/messages/{name}", 404, "no_such_message", method="DELETE")

# --- parameters of the query --------------------------------------------------------------------------

LISTS = {"/v1/devices": APP, "/v1/messages": APP, "/v1/events": APP, "/v1/apps": ADMIN}
for path, auth in LISTS.items():
    for bad in ("0", "1001", "-1", "1.5", "x", "", "99999999999999999999", "1e2", "%00", "+1+"):
        get(89, f"{path} with limit={bad}", f"{path}?limit={bad}", 400, "invalid_parameter", auth=auth)
    get(89, f"{path} with limit twice", f"{path}?limit=1&limit=1", 400, "invalid_parameter", auth=auth)
    get(89, f"{path} with an unknown parameter", f"{path}?colour=red", 400, "invalid_parameter", auth=auth)
    if path != "/v1/events":
        for bad in ("x", "%00", "bWVzc2FnZS0", "ZXZpbC0x", "x" * 4000, "-1", ""):
            get(89, f"{path} with cursor={bad[:12]}", f"{path}?cursor={bad}", 400, "invalid_cursor", auth=auth)
for bad in ("x", "-1", "0-", "-", "0--1", "g-1", "0-99999999999999999999", "1" * 4000, "%00"):
    get(89, f"events after '{bad[:12]}'", f"/v1/events?after={bad}", 400, "invalid_cursor")
get(89, "events of another history", "/v1/events?after=0-1", 409, "cursor_from_other_history")
for bad in ("61", "-1", "x", "1.5", "18446744073709551616"):
    get(89, f"events with wait={bad}", f"/v1/events?wait={bad}", 400, "invalid_parameter")
for query in ("platform=toaster", "platform=", "state=x"):
    get(89, f"devices with {query}", f"/v1/devices?{query}", 400, "invalid_parameter")

# --- H91: credentials in every wrong way --------------------------------------------------------------


def basic(text):
    return "Authorization: Basic " + base64.b64encode(text.encode()).decode() + "\r\n"


for name, auth in {"twice": APP + APP, "mixed": APP + basic("a:b"), "not ASCII": "Authorization: Bearer ä\r\n", "no key": "Authorization: Bearer\r\n",
                   "an empty key": "Authorization: Bearer  \r\n", "two words": "Authorization: Bearer a b\r\n", "a list": "Authorization: Bearer a,b\r\n",
                   "no scheme": "Authorization: @APP@\r\n", "Digest": "Authorization: Digest username=a\r\n", "an empty value": "Authorization:\r\n",
                   "Basic that is no base64": "Authorization: Basic ????\r\n", "Basic without a colon": basic("abc"),
                   "Basic that is no text": "Authorization: Basic /////w==\r\n", "a tab for a space": "Authorization: Bearer\t@APP@\r\n"}.items():
    get(91, f"credentials: {name}", "/v1/devices", 400, "ambiguous_credentials", auth=auth)
for name, auth in {"an unknown key": "Authorization: Bearer x\r\n", "a key in capitals": "Authorization: Bearer @APP-UPPER@\r\n",
                   "a key and more": "Authorization: Bearer @APP@x\r\n", "a key less a letter": "Authorization: Bearer @APP-CUT@\r\n",
                   "an unknown device": "Authorization: Bearer none:secret\r\n", "a device and a wrong secret": "Authorization: Bearer @DEVICE@:wrong\r\n",
                   "a device and no secret": "Authorization: Bearer @DEVICE@:\r\n", "a device of an app that is none": "Authorization: Bearer none/@DEVICE@:@SECRET@\r\n",
                   "Basic with nothing": basic(":"), "Basic with an injection": basic("' OR 1=1 --:x"), "a token that signs nothing":
                   "Authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.\r\n", "8 KiB of key": f"Authorization: Bearer {'x' * 8192}\r\n"}.items():
    get(91, f"credentials: {name}", "/v1/devices", 401, "bad_credentials", auth=auth)
get(91, "100 KiB of credentials", "/v1/devices", 431, auth=f"Authorization: Bearer {'x' * 102400}\r\n")
for name in ("access_token", "api_key", "apikey", "auth", "authorization", "key", "secret", "token", "ACCESS_TOKEN"):
    get(91, f"credentials in the query as {name}", f"/v1/devices?{name}=@APP@", 400, "credentials_in_query", auth="")

# --- webhooks that would lead inside (92) --------------------------------------------------------------

for url in ("", "x", "http://a.example/", "file:///etc/passwd", "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::127.0.0.1]/",
            "https://0x7f.1/", "https://0x7f000001/", "https://127.1/", "https://2130706433/", "https://0177.0.0.1/", "https://169.254.169.254/", "https://localhost/",
            "https://localhost./", "https://a.localhost/", "https://user@a.example/", "https://a.example@10.0.0.1/", "https://a.example:22/", "https://a.example:0/",
            "https://a.example:65536/", "https://a.example/#x", "https://a.example\\@10.0.0.1/", "https://a.example/\r\nX: y", "https://\u0430.example/",
            "https://[fe80::1%25eth0]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://[fd00::1]/", "https://224.0.0.1/", "https://" + "x" * 3000):
    send(92, f"a webhook to {url[:40]!r}", "/v1/webhooks/x", {"url": url}, 400, "webhook_url_refused", "/url", method="PUT")
for body, code, field in (("{}", "invalid_field", "/url"), ('{"url":1}', "invalid_field", "/url"), ('{"url":"https://a.example/","secret":"x"}', "invalid_field", "/secret"),
                          ('{"url":"https://a.example/","events":["x"]}', "invalid_field", "/events/0"), ('{"url":"https://a.example/","batch_max":0}', "invalid_field", "/batch_max")):
    send(92, f"a webhook of {body}", "/v1/webhooks/x", body, 400, code, field, method="PUT")
get(92, "a webhook with a strange name", "/v1/webhooks/..%2Fx", 404, "no_such_webhook")

# --- every call without credentials, and with those of another kind -----------------------------------

MESSAGE = "/v1/messages/00000000000000000000000000000001"
BY_APP = [("GET", "/v1/devices"), ("POST", "/v1/devices"), ("POST", "/v1/messages"), ("GET", "/v1/messages"), ("POST", "/v1/messages/batch"), ("POST", ESTIMATE),
          ("GET", MESSAGE), ("DELETE", MESSAGE), ("GET", f"{MESSAGE}/deliveries"), ("GET", f"{MESSAGE}/deliveries/x"), ("GET", "/v1/events"), ("GET", "/v1/topics/x"),
          ("POST", "/v1/topics/x/publish"), ("GET", "/v1/webhooks"), ("GET", "/v1/webhooks/x"), ("PUT", "/v1/webhooks/x"), ("DELETE", "/v1/webhooks/x"),
          ("POST", "/v1/webhooks/x/test"), ("POST", "/v1/webhooks/x/secret"), ("POST", "/v1/webhooks/x/replay"), ("GET", "/v1/webhooks/x/failures")]
BY_ADMIN = [("POST", "/v1/apps"), ("GET", "/v1/apps"), ("GET", "/v1/apps/default"), ("PATCH", "/v1/apps/default"),
            ("DELETE", "/v1/apps/default"), ("POST", "/v1/apps/default/keys"), ("GET", "/v1/apps/default/keys"),
            ("DELETE", "/v1/apps/default/keys/x"), ("POST", "/v1/admin/audit"),
            ("GET", "/v1/admin/jobs"), ("POST", "/v1/admin/jobs/1/retry")]
BY_OWNER = [("GET", DEVICE), ("PATCH", DEVICE), ("DELETE", DEVICE), ("PUT", f"{DEVICE}/tags/x"), ("DELETE", f"{DEVICE}/tags/x"), ("PUT", f"{DEVICE}/alias"),
            ("DELETE", f"{DEVICE}/alias")]
WRITES = ("POST", "PUT", "PATCH", "DELETE")
for method, path in BY_APP + BY_ADMIN + BY_OWNER + [("POST", f"{MESSAGE}/receipts")]:
    get(91, f"{method} {path} by nobody", path, 401, "missing_credentials", auth="", method=method)
for method, path in BY_APP:
    get(91, f"{method} {path} by a device", path, 403, "not_allowed", auth=OWN, method=method)
    get(91, f"{method} {path} by an admin", path, 403, "not_allowed", auth=ADMIN, method=method)
    if method in WRITES and path != ESTIMATE:
        get(91, f"{method} {path} by a key that reads", path, 403, "not_allowed", auth=READ, method=method)
for method, path in BY_ADMIN:
    get(91, f"{method} {path} by an app", path, 403, "not_allowed", method=method)
    get(91, f"{method} {path} by a device", path, 403, "not_allowed", auth=OWN, method=method)
for method, path in BY_OWNER:
    get(91, f"{method} {path} by an admin", path, 403, "not_allowed", auth=ADMIN, method=method)
    foreign = path.replace("@DEVICE@", "none")
    with_body = JSON + "Content-Length: 2\r\n"
    raw(91, f"{method} {foreign} by another device", request(method, foreign, with_body, b"{}", OWN), 403 if not path.endswith("alias") or method != "PUT" else 400,
        "not_allowed" if not path.endswith("alias") or method != "PUT" else "invalid_field")
    if method in WRITES:
        raw(91, f"{method} {path} by a key that reads", request(method, path, with_body, b"{}", READ), 403, "not_allowed")
get(91, "a receipt by an app", f"{MESSAGE}/receipts", 403, "not_allowed", method="POST")

# --- wrong methods, conditions and ranges -------------------------------------------------------------

KNOWN = {}
for method, path in BY_APP + BY_ADMIN + BY_OWNER + [("POST", f"{MESSAGE}/receipts"), ("GET", "/openapi.json"), ("GET", "/mqtt")]:
    KNOWN.setdefault(path, set()).add(method)
for path, known in KNOWN.items():
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        if method not in known:
            get(88, f"{method} {path}, which knows {sorted(known)}", path, 405, "method_not_allowed", method=method)
for field in ("Range: bytes=0-0", "Range: bytes=-1", "Range: bytes=9-1,0-0,0-0", "Range: x", "If-None-Match: *", "If-Match: \"x\"", "If-Modified-Since: never",
              "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT", "If-Range: x", "X-HTTP-Method-Override: DELETE", "X-Forwarded-For: 127.0.0.1", "X-Original-URL: /v1/apps",
              "X-Forwarded-Host: evil.example", "Accept: text/html", "Accept-Encoding: gzip;q=x", "TE: trailers, deflate", "Upgrade: h2c", "Content-Length: 0", "Via: 1.1 evil"):
    get(89, f"{field} means nothing here", "/v1/devices/none", 404, "no_such_device", headers=f"{field}\r\n")
