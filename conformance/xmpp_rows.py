"""The table of hostile XMPP: where a stream stands, the bytes that come then, and the one reaction allowed. `H` numbers name
the kind.

To add an attack, add a row. `@SELF@` and `@OTHER@` stand for two devices' names, `@TOKEN@` for the credentials of the first as
SASL PLAIN wants them.
"""

import base64
from dataclasses import dataclass

from xmpp_wire import BIND, SASL, SM, STREAMS, TLS

# Where a stream stands when the bytes come.
CONNECTED = "connected"          # nothing was said
OPENED = "opened"                # the features were read, in clear
SIGNED_IN = "signed in"          # and the features behind it were read: no resource yet
SESSION = "session"              # bound and present


@dataclass(frozen=True)
class Reaction:
    """What the server must do.

    ends     the stream ends with this condition; "" is without one
    error    one stanza error with this condition; the stream lives
    failure  a SASL failure with this condition; the stream lives
    failed   XEP-0198 `<failed/>` with this condition; the stream lives
    element  an element of this name; the stream lives
    lives    nothing, and the next ping is answered

    The `<enabled/>` of a session that begins with `<enable/>` is not counted.
    """
    what: str
    condition: str = ""


@dataclass(frozen=True)
class XmppRow:
    h: int
    name: str
    stage: str
    data: bytes
    reaction: Reaction


ROWS = []
LIVES = Reaction("lives")


def row(h, name, stage, data, reaction):
    ROWS.append(XmppRow(h, name, stage, data.encode() if isinstance(data, str) else data, reaction))


def ends(condition):
    return Reaction("ends", condition)


def error(condition):
    return Reaction("error", condition)


def failure(condition):
    return Reaction("failure", condition)


def failed(condition):
    return Reaction("failed", condition)


def element(name):
    return Reaction("element", name)


def opening(ns="jabber:client", streams=STREAMS, version=' version="1.0"', to=' to="localhost"', prefix="stream"):
    return f'<{prefix}:stream{to} xmlns="{ns}" xmlns:{prefix}="{streams}"{version}>'


OPEN = opening()


def message(inside="<body>x</body>", to="@OTHER@@localhost", rest=""):
    return f'<message to="{to}"{rest}>{inside}</message>'


def iq(inside, kind="get", to="", rest=' id="q"'):
    return f'<iq type="{kind}"{to}{rest}>{inside}</iq>'


# --- H59, H60: what XMPP forbids of XML (RFC 6120 §11.1) ------------------------------------------------

BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>'
FORBIDDEN = {
    "entity bomb": BOMB,
    "external document type": '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">',
    "public document type": '<!DOCTYPE a PUBLIC "-//A//B" "a.dtd">',
    "parameter entity": '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd">%p;]>',
    "external entity": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>',
    "empty document type": "<!DOCTYPE a>",
    "element declaration": "<!ELEMENT a ANY>",
    "attribute list": '<!ATTLIST a b CDATA "c">',
    "notation": '<!NOTATION a SYSTEM "b">',
    "conditional section": "<![INCLUDE[a]]>",
    "comment": "<!-- x -->",
    "empty comment": "<!---->",
    "comment that never ends": "<!-- x",
    "processing instruction": "<?php x ?>",
    "stylesheet": '<?xml-stylesheet href="a.css"?>',
}
for name, data in FORBIDDEN.items():
    row(60 if "comment" in name or "instruction" in name else 59, f"{name} in front", CONNECTED, data + OPEN, ends("restricted-xml"))
    row(60, f"{name} in a stream", OPENED, data, ends("restricted-xml"))
    row(60, f"{name} in a stanza", SESSION, f"<message><body>{data}</body></message>", ends("restricted-xml"))
row(60, "second declaration", OPENED, "<?xml version='1.0'?>", ends("restricted-xml"))
for entity in ("custom", "nbsp", "amp2", "LT"):
    row(60, f"entity {entity}", SESSION, message(f"<body>&{entity};</body>"), ends("restricted-xml"))
    row(60, f"entity {entity} in a value", SESSION, f'<message to="&{entity};"/>', ends("restricted-xml"))
for code in ("#0", "#x0", "#8", "#xB", "#x1F", "#xD800", "#xDFFF", "#xFFFE", "#xFFFF", "#x110000", "#99999999999999999999", "#", "#x", "#-1",
             "#+65", "#x+41", "#xG", "", " amp", "#6 5"):
    row(60, f"reference {code!r}", SESSION, message(f"<body>&{code};</body>"), ends("not-well-formed"))
row(60, "ampersand alone", SESSION, message("<body>a & b</body>"), ends("not-well-formed"))
row(60, "reference without its end", SESSION, message("<body>&amp</body>"), ends("not-well-formed"))

# --- H61 to H64: sizes (L17, L18) ------------------------------------------------------------------------

row(61, "stanza of 10,001 bytes before sign-in", OPENED, iq(f"<a>{'x' * 10_001}</a>"), ends("policy-violation"))
row(61, "stanza that does not end before sign-in", OPENED, "<iq><a>" + "x" * 10_001, ends("policy-violation"))
row(61, "header of 10,001 bytes", CONNECTED, OPEN.replace("to=", f'a="{"x" * 10_001}" to='), ends("policy-violation"))
row(61, "65 elements before sign-in", OPENED, iq("<a>" + "<b/>" * 64 + "</a>"), ends("policy-violation"))
row(61, "stanza of 64 KiB and one", SESSION, message(f"<body>{'x' * 65_537}</body>"), ends("policy-violation"))
row(61, "many small texts", SESSION, message("<a/>x" * 2_000), ends("policy-violation"))
row(61, "many elements", SESSION, message("<a/>" * 1_100), ends("policy-violation"))
row(61, "many attributes in many elements", SESSION, message('<a a="" b="" c="" d=""/>' * 300), ends("policy-violation"))
row(61, "ahead of an answer", OPENED, f'<auth xmlns="{SASL}" mechanism="PLAIN">@TOKEN@</auth>' + " " * 10_001, ends("policy-violation"))
row(62, "depth 17", SESSION, "<message>" + "<a>" * 16, ends("policy-violation"))
row(62, "depth 16", SESSION, f'<message to="@OTHER@@localhost" type="headline">{"<a>" * 15}{"</a>" * 15}</message>', LIVES)
row(62, "depth 100,000", SESSION, "<a>" * 100_000, ends("policy-violation"))
row(62, "depth 100,000 before sign-in", OPENED, "<a>" * 100_000, ends("policy-violation"))
row(63, "80,000 attributes", SESSION, "<message " + " ".join(f"a{n}='1'" for n in range(80_000)) + "/>", ends("policy-violation"))
row(63, "33 attributes", SESSION, "<message " + " ".join(f"a{n}='1'" for n in range(33)) + "/>", ends("policy-violation"))
row(63, "8,000 namespaces", SESSION, "<message " + " ".join(f"xmlns:a{n}='u'" for n in range(8_000)) + "/>", ends("policy-violation"))
row(63, "9 namespaces", SESSION, "<message " + " ".join(f"xmlns:a{n}='u'" for n in range(9)) + "/>", ends("policy-violation"))
row(63, "9 namespaces in the header", CONNECTED, OPEN[:-1] + "".join(f" xmlns:a{n}='u'" for n in range(7)) + ">", ends("policy-violation"))
row(64, "name that never ends", SESSION, "<" + "a" * 1_048_576, ends("policy-violation"))
row(64, "name that never ends before sign-in", OPENED, "<" + "a" * 1_048_576, ends("policy-violation"))
row(64, "name of 257 bytes", SESSION, message(f"<{'a' * 257}/>"), ends("policy-violation"))
row(64, "prefix of 257 bytes", SESSION, message(f"<{'a' * 255}:b/>"), ends("policy-violation"))
row(64, "attribute's name of 257 bytes", SESSION, message(f"<a {'a' * 257}='1'/>"), ends("policy-violation"))
row(64, "value of 4,097 bytes", SESSION, message(f"<a a='{'x' * 4_097}'/>"), ends("policy-violation"))
row(64, "namespace of 4,097 bytes", SESSION, message(f"<a xmlns='{'x' * 4_097}'/>"), ends("policy-violation"))
row(64, "value that never ends", SESSION, "<message to='" + "x" * 1_048_576, ends("policy-violation"))
row(64, "blanks in a tag without end", SESSION, "<message" + " " * 1_048_576, ends("policy-violation"))

# --- H64: not well-formed (XML 1.0, Namespaces in XML) ----------------------------------------------------

for name, data in {
    "no quotes": "<message a=b/>",
    "attribute without a value": "<message a/>",
    "attribute without an equals sign": "<message a 'b'/>",
    "attributes without a blank": "<message a='1'b='2'/>",
    "attribute twice": "<message a='1' a='2'/>",
    "attribute twice by two prefixes": "<message xmlns:x='u' xmlns:y='u' x:a='1' y:a='2'/>",
    "less-than in a value": "<message a='<'/>",
    "blank in front of the name": "< message/>",
    "name of digits": "<1message/>",
    "name with a hyphen first": "<-message/>",
    "name with a dot first": "<.message/>",
    "empty name": "<>",
    "empty name that closes": "</>",
    "two colons": "<a:b:c/>",
    "colon first": "<:message/>",
    "colon last": "<message:/>",
    "tags crossed": "<message><a><b></a></b></message>",
    "end without a start": "</message>",
    "end of another": "<message></presence>",
    "end with another case": "<message></Message>",
    "end with an attribute": "<message></message a='1'>",
    "slash in the middle": "<message/ >",
    "two slashes": "<message//>",
    "text between stanzas": "hello",
    "text behind a stanza": "<presence/>hello",
    "prefix bound to nothing": "<message xmlns:a=''/>",
    "prefix xml bound elsewhere": "<message xmlns:xml='u'/>",
    "prefix bound to xml's name": "<message xmlns:a='http://www.w3.org/XML/1998/namespace'/>",
    "prefix xmlns": "<message xmlns:xmlns='u'/>",
    "declaration twice": "<message xmlns:a='u' xmlns:a='v'/>",
    "default declaration twice": "<message xmlns='jabber:client' xmlns='jabber:client'/>",
    "control character": "<message><body>\x01</body></message>",
    "escape character in a value": "<message a='\x1b'/>",
    "zero byte": "<message><body>\x00</body></message>",
    "zero byte between stanzas": "\x00",
    "U+FFFE": "<message><body>\ufffe</body></message>",
    "control character in a section": "<message><body><![CDATA[\x02]]></body></message>",
}.items():
    # What is wrong is known at the quote's end, the slash or the text; nothing more has to come.
    row(64, name, SESSION, data + ">", ends("not-well-formed"))
for name, data in {"element": "<a:b/>", "attribute": "<message a:b='1'/>", "end of its scope": "<message><a xmlns:p='u'/><p:b/></message>"}.items():
    row(64, f"prefix that was not declared, {name}", SESSION, data, ends("bad-namespace-prefix"))
row(64, "section outside of a stanza", SESSION, "<![CDATA[x]]>", ends("restricted-xml"))

# --- H65: encodings ---------------------------------------------------------------------------------------

for name, data in {
    "FF FE": b"\xff\xfe", "continuation first": b"\x80", "overlong slash": b"\xc0\xaf", "overlong zero": b"\xc0\x80",
    "overlong in three": b"\xe0\x80\xaf", "overlong in four": b"\xf0\x80\x80\xaf", "surrogate": b"\xed\xa0\x80",
    "over U+10FFFF": b"\xf4\x90\x80\x80", "five bytes": b"\xf8\x88\x80\x80\x80", "cut": b"\xe2\x82", "Latin-1": "é".encode("latin-1"),
}.items():
    row(65, f"{name} in a text", SESSION, b"<message><body>" + data + b"</body></message>", ends("bad-format"))
    row(65, f"{name} in a value", SESSION, b"<message a='" + data + b"'/>", ends("bad-format"))
    row(65, f"{name} in a name", OPENED, b"<m" + data + b"/>", ends("bad-format"))
for encoding in ("utf-16", "UTF-16LE", "iso-8859-1", "us-ascii", "utf-7", "x"):
    row(65, f"encoding {encoding}", CONNECTED, f"<?xml version='1.0' encoding='{encoding}'?>{OPEN}", ends("unsupported-encoding"))
row(65, "UTF-16 with its mark, big end first", CONNECTED, b"\xfe\xff" + OPEN.encode("utf-16-be"), ends("unsupported-encoding"))
row(65, "UTF-16 with its mark, little end first", CONNECTED, b"\xff\xfe" + OPEN.encode("utf-16-le"), ends("unsupported-encoding"))

# --- H66, H67: streams ------------------------------------------------------------------------------------

for name, data, condition in (
    ("wrong stream namespace", opening(streams="http://etherx.jabber.org/other"), "invalid-namespace"),
    ("wrong content namespace", opening(ns="jabber:server"), "invalid-namespace"),
    ("no content namespace", opening().replace(' xmlns="jabber:client"', ""), "invalid-namespace"),
    ("another root", '<html xmlns="jabber:client">', "invalid-namespace"),
    ("version 2.0", opening(version=' version="2.0"'), "unsupported-version"),
    ("version 0.9", opening(version=' version="0.9"'), "unsupported-version"),
    ("no version", opening(version=""), "unsupported-version"),
    ("version of words", opening(version=' version="one"'), "unsupported-version"),
    ("version without a dot", opening(version=' version="1"'), "unsupported-version"),
    ("undeclared prefix", '<stream:stream to="localhost" xmlns="jabber:client" version="1.0">', "bad-namespace-prefix"),
    ("root that ends at once", OPEN[:-1] + "/>", "not-well-formed"),
    ("words in front", "hello" + OPEN, "not-well-formed"),
    ("HTTP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not-well-formed"),
    ("MQTT", b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", "not-well-formed"),
    ("SSH", "SSH-2.0-x\r\n", "not-well-formed"),
    ("declaration of version 1.1 without quotes", f"<?xml version=1.1?>{OPEN}", "not-well-formed"),
    ("declaration without a version", f"<?xml encoding='utf-8'?>{OPEN}", "not-well-formed"),
    ("declaration with more", f"<?xml version='1.0' a='b'?>{OPEN}", "not-well-formed"),
):
    row(66, name, CONNECTED, data, ends(condition))
row(67, "second root", SESSION, OPEN, ends("invalid-xml"))
row(67, "second root before sign-in", OPENED, OPEN, ends("invalid-xml"))
row(67, "stream inside of a stanza", SESSION, message(f'<stream:stream xmlns:stream="{STREAMS}"/>', rest=' type="headline"'), LIVES)
row(67, "end, then more", SESSION, "</stream:stream>" + message(), ends(""))
row(67, "end, then a second stream", SESSION, "</stream:stream>" + OPEN, ends(""))
row(67, "end of another name", SESSION, "</stream>", ends("not-well-formed"))
row(67, "peer's stream error", SESSION, '<stream:error><conflict xmlns="urn:ietf:params:xml:ns:xmpp-streams"/></stream:error>',
    ends("unsupported-stanza-type"))

# --- H68: too early ---------------------------------------------------------------------------------------

for stage in (OPENED, SIGNED_IN):
    for name, data in {
        "message": message(), "presence": "<presence/>", "ping": iq('<ping xmlns="urn:xmpp:ping"/>'),
        "roster": iq('<query xmlns="jabber:iq:roster"/>'), "result": iq("", "result"),
        "publish": iq('<pubsub xmlns="http://jabber.org/protocol/pubsub"><publish node="a"/></pubsub>', "set"),
    }.items():
        row(68, f"{name} when {stage}", stage, data, ends("not-authorized"))
row(68, "bind before sign-in", OPENED, iq(f'<bind xmlns="{BIND}"/>', "set"), ends("not-authorized"))
row(68, "STARTTLS twice in clear", SIGNED_IN, f'<starttls xmlns="{TLS}"/>', ends("not-authorized"))
row(68, "STARTTLS in a session", SESSION, f'<starttls xmlns="{TLS}"/>', ends("unsupported-stanza-type"))
row(68, "sign-in in a session", SESSION, f'<auth xmlns="{SASL}" mechanism="PLAIN">@TOKEN@</auth>', ends("unsupported-stanza-type"))
row(68, "element of nobody", SESSION, '<launch xmlns="urn:missile"/>', ends("unsupported-stanza-type"))
row(68, "stanza of another namespace", SESSION, '<message xmlns="jabber:server" to="@OTHER@@localhost"><body>x</body></message>',
    ends("unsupported-stanza-type"))

# --- H70, H71: SASL ---------------------------------------------------------------------------------------


def auth(mechanism, words="", raw=False):
    token = words if raw else base64.b64encode(words.encode() if isinstance(words, str) else words).decode() or "="
    return f'<auth xmlns="{SASL}" mechanism="{mechanism}">{token}</auth>'


for mechanism in ("", "CRAM-MD5", "DIGEST-MD5", "EXTERNAL", "ANONYMOUS", "GSSAPI", "OAUTHBEARER", "plain", "SCRAM-SHA-512", "SCRAM-SHA-256-PLUS",
                  "X" * 200):
    row(70, f"mechanism {mechanism[:20]!r}", OPENED, auth(mechanism, "\0u\0p"), failure("invalid-mechanism"))
row(70, "no mechanism", OPENED, f'<auth xmlns="{SASL}">AHUAcA==</auth>', failure("invalid-mechanism"))
for words in ("!!!", "AHU AcA==", "AHUAcA", "AHUAcA===", "=", "AHUAcA==AHUAcA==", "AHUA_-==", "\u00e4"):
    expected = "malformed-request" if words == "=" else "incorrect-encoding"
    row(70, f"base64 {words!r}", OPENED, auth("PLAIN", words, raw=True), failure(expected))
for name, words, condition in (
    ("PLAIN without zero bytes", "user", "malformed-request"), ("PLAIN with one zero byte", "user\0secret", "malformed-request"),
    ("PLAIN with three zero bytes", "\0user\0sec\0ret", "malformed-request"), ("PLAIN without a name", "\0\0secret", "malformed-request"),
    ("PLAIN without a password", "\0user\0", "malformed-request"), ("PLAIN not in UTF-8", b"\0\xff\0\xfe", "malformed-request"),
    ("PLAIN for somebody else", "other\0user\0secret", "invalid-authzid"), ("PLAIN with a name of 129 bytes", f"\0{'u' * 129}\0p", "not-authorized"),
    ("PLAIN with a password of 1,025 bytes", f"\0u\0{'p' * 1_025}", "not-authorized"), ("PLAIN of nobody", "\0nobody-at-all\0p", "not-authorized"),
    ("PLAIN with a wrong password", "\0@SELF@\0wrong", "not-authorized"),
):
    row(70, name, OPENED, auth("PLAIN", words), failure(condition))
for name, words, condition in (
    ("nothing", "", "malformed-request"), ("no name", "n,,r=abc", "malformed-request"), ("no nonce", "n,,n=u", "malformed-request"),
    ("empty nonce", "n,,n=u,r=", "malformed-request"), ("extension that must be understood", "n,,m=x,n=u,r=abc", "malformed-request"),
    ("nonce first", "n,,r=abc,n=u", "malformed-request"), ("no header", "n=u,r=abc", "malformed-request"),
    ("header of another kind", "z,,n=u,r=abc", "malformed-request"), ("binding on a mechanism without", "p=tls-exporter,,n=u,r=abc", "malformed-request"),
    ("name with a bad escape", "n,,n=u=2D,r=abc", "malformed-request"), ("name not in UTF-8", b"n,,n=\xff,r=abc", "malformed-request"),
    ("for somebody else", "n,a=other,n=u,r=abc", "invalid-authzid"), ("control character in the nonce", "n,,n=u,r=a\x01c", "malformed-request"),
):
    row(71, f"SCRAM: {name}", OPENED, auth("SCRAM-SHA-256", words), failure(condition))
row(70, "answer without a question", OPENED, f'<response xmlns="{SASL}">AAAA</response>', failure("malformed-request"))
row(70, "abort", OPENED, f'<abort xmlns="{SASL}"/>', failure("aborted"))

# --- H72, H73: stanzas ------------------------------------------------------------------------------------

for name in ("@OTHER@@localhost", "localhost", "admin@localhost/x", "", "@SELF@x@localhost", "x@SELF@@localhost"):
    row(72, f"from {name!r}", SESSION, message(rest=f' from="{name}"'), ends("invalid-from"))
row(72, "presence from another", SESSION, '<presence from="@OTHER@@localhost"/>', ends("invalid-from"))
row(72, "message to nobody", SESSION, message(to="nobody-at-all@localhost"), error("service-unavailable"))
row(72, "message to another app's device", SESSION, message(to="other\\2f@OTHER@@localhost"), error("service-unavailable"))
row(72, "message to a group", SESSION, message(rest=' type="groupchat"'), error("service-unavailable"))
row(72, "message to another server", SESSION, message(to="elsewhere.example"), error("service-unavailable"))
for name in ("@@@", "@localhost", "a@b@c", "a b@localhost", "a@", "&lt;a@localhost", "a@localhost/", "x" * 1_024 + "@localhost", "a&#10;b@localhost"):
    row(72, f"message to {name[:12]!r}", SESSION, message(to=name), error("jid-malformed"))
    row(73, f"question to {name[:12]!r}", SESSION, iq('<ping xmlns="urn:xmpp:ping"/>', to=f' to="{name}"'), error("jid-malformed"))
PING = '<ping xmlns="urn:xmpp:ping"/>'
for name, data in {
    "no id": f'<iq type="get">{PING}</iq>', "two children": iq(PING + PING), "no child": iq(""), "text for a child": iq("ping"),
    "unknown type": iq(PING, "fetch"), "no type": f'<iq id="q">{PING}</iq>', "upper case type": iq(PING, "GET"),
}.items():
    row(73, f"question with {name}", SESSION, data, error("bad-request"))
for name, data in {
    "unknown question": iq('<a xmlns="urn:nothing"/>'), "question of no namespace": iq('<a xmlns=""/>'),
    "ping that sets": iq(PING, "set"), "private storage": iq('<query xmlns="jabber:iq:private"/>'),
    "vCard": iq('<vCard xmlns="vcard-temp"/>'), "version": iq('<query xmlns="jabber:iq:version"/>'),
    "question to another's account": iq(PING, to=' to="@OTHER@@localhost"'),
    "question to one who is away": iq(PING, to=' to="@OTHER@@localhost/phone"'),
    "archive": iq('<query xmlns="urn:xmpp:mam:2"/>', "set"), "carbons of the server": iq('<enable xmlns="urn:xmpp:carbons:2"/>', "set", to=' to="localhost"'),
}.items():
    row(73, name, SESSION, data, error("service-unavailable"))
row(73, "second resource", SESSION, iq(f'<bind xmlns="{BIND}"/>', "set"), error("not-allowed"))
row(73, "roster that sets", SESSION, iq('<query xmlns="jabber:iq:roster"><item jid="a@b"/></query>', "set"), error("not-allowed"))
row(73, "answer to what was not asked", SESSION, iq("", "result", rest=' id="never"'), LIVES)
row(73, "error to what was not asked", SESSION, iq("", "error", rest=' id="never"'), LIVES)
row(73, "answer without an id", SESSION, '<iq type="result"/>', LIVES)
row(73, "receipt for what was not sent", SESSION, message('<received xmlns="urn:xmpp:receipts" id="never"/>', to="localhost"), LIVES)
row(73, "marker with an endless id", SESSION, message(f'<displayed xmlns="urn:xmpp:chat-markers:0" id="{"x" * 4_000}"/>', to="localhost"), LIVES)
row(73, "presence of an unknown type", SESSION, '<presence type="maybe"/>', error("bad-request"))
row(73, "presence with a priority of 999", SESSION, "<presence><priority>999</priority></presence>", element("presence"))
for resource in ("x" * 1_024, "a\tb", "\u200b" * 400):
    row(73, f"resource {resource[:3]!r}", SIGNED_IN, iq(f'<bind xmlns="{BIND}"><resource>{resource}</resource></bind>', "set"), error("bad-request"))
row(73, "bind that asks", SIGNED_IN, iq(f'<bind xmlns="{BIND}"/>', "get"), ends("not-authorized"))
row(78, "receipt of a namespace of its own", SESSION, message('<received xmlns="urn:other" id="x"/>', rest=' type="headline"'), LIVES)
row(78, "receipt deeper inside", SESSION, message('<a xmlns="urn:a"><displayed xmlns="urn:xmpp:chat-markers:0" id="x"/></a>', rest=' type="headline"'), LIVES)

# --- H73: publish-subscribe and accounts ------------------------------------------------------------------


def pubsub(inside, kind="set"):
    return iq(f'<pubsub xmlns="http://jabber.org/protocol/pubsub">{inside}</pubsub>', kind)


for name, data, condition in (
    ("nothing in it", pubsub(""), "bad-request"), ("unknown action", pubsub("<fly/>"), "feature-not-implemented"),
    ("subscribe without a node", pubsub('<subscribe jid="@SELF@@localhost"/>'), "bad-request"),
    ("subscribe another", pubsub('<subscribe node="a" jid="@OTHER@@localhost"/>'), "bad-request"),
    ("subscribe nobody", pubsub('<subscribe node="a"/>'), "bad-request"),
    ("subscribe a bad filter", pubsub('<subscribe node="a/#/b" jid="@SELF@@localhost"/>'), "item-not-found"),
    ("subscribe the server's own", pubsub('<subscribe node="$SYS/#" jid="@SELF@@localhost"/>'), "item-not-found"),
    ("subscribe 17 levels", pubsub(f'<subscribe node="{"/".join("a" * 17)}" jid="@SELF@@localhost"/>'), "item-not-found"),
    ("subscribe 513 bytes", pubsub(f'<subscribe node="{"a" * 513}" jid="@SELF@@localhost"/>'), "item-not-found"),
    ("subscribe by a get", pubsub('<subscribe node="a" jid="@SELF@@localhost"/>', "get"), "bad-request"),
    ("leave what was not subscribed", pubsub('<unsubscribe node="never" jid="@SELF@@localhost"/>'), "unexpected-request"),
    ("publish to a filter", pubsub('<publish node="a/#"><item><a xmlns="u"/></item></publish>'), "item-not-found"),
    ("publish to the inbox", pubsub('<publish node="$push/inbox"><item><a xmlns="u"/></item></publish>'), "item-not-found"),
    ("publish nothing", pubsub('<publish node="a"/>'), "bad-request"),
    ("publish two", pubsub('<publish node="a"><item><a xmlns="u"/></item><item><a xmlns="u"/></item></publish>'), "bad-request"),
    ("items of a filter", pubsub('<items node="a/+"/>', "get"), "item-not-found"),
    ("configure", iq('<pubsub xmlns="http://jabber.org/protocol/pubsub#owner"><configure node="a"/></pubsub>', "get"), "service-unavailable"),
    ("delete a node", iq('<pubsub xmlns="http://jabber.org/protocol/pubsub#owner"><delete node="a"/></pubsub>', "set"), "service-unavailable"),
):
    row(73, f"pubsub: {name}", SESSION, data, error(condition))


def account(ns, inside, kind="set"):
    return iq(f'<query xmlns="jabber:iq:{ns}">{inside}</query>', kind)


for name, data, condition in (
    ("name that is taken", account("register", "<username>@SELF@</username><password>x</password>"), "conflict"),
    ("no name", account("register", "<password>x</password>"), "not-acceptable"),
    ("no password", account("register", "<username>a</username>"), "not-acceptable"),
    ("nothing", account("register", ""), "not-acceptable"),
    ("removal before sign-in", account("register", "<remove/>"), "not-acceptable"),
    ("name of 129 bytes", account("register", f"<username>{'u' * 129}</username><password>x</password>"), "not-acceptable"),
    ("password of 1,025 bytes", account("register", f"<username>u1025</username><password>{'p' * 1_025}</password>"), "not-acceptable"),
    ("another app's name", account("register", "<username>other/u</username><password>x</password>"), "not-acceptable"),
    ("wrong password", account("auth", "<username>@SELF@</username><password>x</password><resource>r</resource>"), "not-authorized"),
    ("digest", account("auth", "<username>@SELF@</username><digest>x</digest><resource>r</resource>"), "not-acceptable"),
    ("no resource", account("auth", "<username>@SELF@</username><password>x</password>"), "not-acceptable"),
):
    row(73, f"account: {name}", OPENED, data, error(condition))
row(73, "account: another's password", SESSION, account("register", "<username>@OTHER@</username><password>x</password>"), error("not-allowed"))

# --- H74, H75: compression, stream management -------------------------------------------------------------

for stage in (OPENED, SIGNED_IN):
    row(74, f"compression when {stage}", stage, '<compress xmlns="http://jabber.org/protocol/compress"><method>zlib</method></compress>',
        Reaction("element", "failure"))
ENABLE = f'<enable xmlns="{SM}"/>'
row(75, "enable before bind", SIGNED_IN, ENABLE, failed("unexpected-request"))
row(75, "resume what never was", SIGNED_IN, f'<resume xmlns="{SM}" h="0" previd="{"0" * 32}"/>', failed("item-not-found"))
row(75, "resume nothing", SIGNED_IN, f'<resume xmlns="{SM}" h="0"/>', failed("item-not-found"))
row(75, "resume in a session", SESSION, f'<resume xmlns="{SM}" h="0" previd="x"/>', failed("unexpected-request"))
row(75, "resume before sign-in", OPENED, f'<resume xmlns="{SM}" h="0" previd="x"/>', failed("unexpected-request"))
row(75, "enable twice", SESSION, ENABLE + ENABLE, failed("unexpected-request"))
row(75, "count without stream management", SESSION, f'<a xmlns="{SM}" h="0"/>', failed("unexpected-request"))
row(75, "count of one too many", SESSION, f'{ENABLE}<a xmlns="{SM}" h="1"/>', ends("undefined-condition"))
row(75, "count of 7", SESSION, f'{ENABLE}<a xmlns="{SM}" h="7"/>', ends("undefined-condition"))
# XEP-0198 §4 counts modulo 2^32: this is one back, which acknowledges nothing.
row(75, "count that goes back", SESSION, f'{ENABLE}<a xmlns="{SM}" h="4294967295"/>', LIVES)
for words in ("", "-1", "x", "4294967296", "1e3", " 0x1"):
    row(75, f"count of {words!r}", SESSION, f'{ENABLE}<a xmlns="{SM}" h="{words}"/>', ends("policy-violation"))
row(75, "unknown element of stream management", SESSION, f'{ENABLE}<b xmlns="{SM}"/>', ends("unsupported-stanza-type"))
