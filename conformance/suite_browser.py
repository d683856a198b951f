"""The browser SDK and the live page in a real Chromium: a push goes in over HTTP and comes out in a page.

The suite has servers of its own, with the page `/demo` switched on, since some cases kill theirs.
"""

import atexit
import base64
import contextlib
import os
import tempfile
import threading

from browser import Browser, Front
from harness import DEFAULT, NotHere, Suite, check, equal, eventually
from server import Server

SUITE = Suite("browser")
case = SUITE.case(DEFAULT, needs_http=True)

HOSTILE = ["<img src=x onerror=\"window.pwned=1\">", "<script>window.pwned=1</script>", "\"><svg onload=window.pwned=1>",
           "{{constructor.constructor('window.pwned=1')()}}", "\u202egnp.exe <b>bold</b>"]

# The page of an app, as the README of the SDK shows it: one script tag, no bundler.
PAGE = """<!doctype html><meta charset="utf-8"><title>app</title>
<script src="/sdk/postrider.js"></script>
<script>
  window.got = []
  window.begin = (options) => {
    const client = window.client = postrider.create(options)
    client.onPush((push) => { got.push(push) })
    client.on('message', (message) => { (window.messages ??= []).push(message) })
    client.on('status', (status) => { (window.statuses ??= []).push(status.state) })
    client.connect()
  }
</script>
<main></main>"""
WITHOUT_DATABASE = "<script>Object.defineProperty(window, 'indexedDB', {value: undefined})</script>"
PAGES = {"/page": PAGE, "/opened": PAGE.replace("<title>app", "<title>opened"),
         "/without-database": PAGE.replace("<script", WITHOUT_DATABASE + "<script", 1)}

_shared = {}
_once = threading.Lock()


def browser():
    with _once:
        if "browser" not in _shared:
            _shared["browser"] = Browser()
            atexit.register(_shared["browser"].end)
        return _shared["browser"]


@contextlib.contextmanager
def own_server(target, **settings):
    """A server with the live page, which ends with the case. `settings` are of the section `http`."""
    if not target.notes.get("binary"):
        raise NotHere("the binary is not known")
    wanted = {"http.demo": "true", **{f"http.{name}": value for name, value in settings.items()}}
    with tempfile.TemporaryDirectory(prefix="browser-") as folder:
        server = Server(target.notes["binary"], os.path.join(folder, "data"), None,
                        os.path.join(folder, "server.log"), settings=wanted)
        try:
            yield server.with_fixed_ports().start()
        finally:
            server.stop()


@contextlib.contextmanager
def scene(target):
    """A server of its own, a proxy before it, and a window that may show notifications."""
    with own_server(target) as server, Front(server.places["http"], PAGES) as front:
        with browser().window(front.origin) as window:
            yield server.target(), front, window


def begin(tab, device, **options):
    tab.run("begin(args)", device=device.device_id, secret=device.secret, **options)


def online(tab, road="websocket"):
    tab.until("client.status.state === 'online' && client.status.road === args.road", road=road)


def connected(front, window, device, road="websocket", **options):
    tab = window.open(front.origin + "/page")
    begin(tab, device, **options)
    online(tab, road)
    return tab


def to(device):
    return {"device": device.device_id}


def ids(tab):
    return tab.value("got.map((push) => push.id)")


def steps(target, message, device):
    return [entry["step"] for entry in target.delivery(message, device)["timeline"]]


@case
def a_push_is_shown_clicked_and_opens_the_page_and_the_ledger_says_so(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        tab = connected(front, window, device, notifications="always")
        # The browser's own notification, whose click no program can make: so its listener is called.
        tab.run("""const Real = Notification; window.shown = []
                   window.Notification = class extends Real { constructor (...a) { super(...a); shown.push(this) } }""")
        message = own.push(to(device), "Order 7", notification={"title": "Order 7", "body": "b", "click": "/opened#7"})["message_id"]
        own.await_state(message, device, "displayed")
        equal(tab.value("[shown[0].title, shown[0].body]"), ["Order 7", "b"], "notification of the browser")
        tab.run("setTimeout(() => shown[0].dispatchEvent(new Event('click')), 0)")
        tab.until("document.title === 'opened' && location.hash === '#7'")
        own.await_state(message, device, "clicked")
        found = [step for step in steps(own, message, device) if step in ("delivered", "displayed", "clicked")]
        equal(found, ["delivered", "displayed", "clicked"], "steps")
        equal(tab.complaints(), [], "complaints of the page")


CLICK_IN_WORKER = """
    const [notification] = await registration.getNotifications()
    const event = Object.assign(new Event('notificationclick'), { notification, action: args.action, waitUntil () {} })
    setTimeout(() => self.dispatchEvent(event), 0)"""


@case
def a_notification_of_the_service_worker_has_buttons_and_its_click_reaches_the_page(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        tab = window.open(front.origin + "/page")
        tab.run("await navigator.serviceWorker.register('/sdk/worker.js')")
        tab.until("(await navigator.serviceWorker.getRegistration('/sdk/')).active?.state === 'activated'")
        tab.run("begin({...args, worker: await navigator.serviceWorker.getRegistration('/sdk/')})",
                device=device.device_id, secret=device.secret, notifications="always")
        online(tab)
        shown = {"title": "Bill", "click": "/opened#bill", "actions": [{"id": "pay", "title": "Pay", "click": "/opened#pay"}]}
        message = own.push(to(device), notification=shown)["message_id"]
        own.await_state(message, device, "displayed")
        seen = window.in_worker("const [it] = await registration.getNotifications(); return [it.title, it.actions.map((a) => a.title)]")
        equal(seen, ["Bill", ["Pay"]], "notification of the browser")
        window.in_worker(CLICK_IN_WORKER, action="pay")
        tab.until("document.title === 'opened' && location.hash === '#pay' && !!window.begin")
        begin(tab, device)
        own.await_state(message, device, "clicked")


@case
def a_page_registers_with_a_public_key_that_can_do_nothing_else(target):
    with scene(target) as (own, front, window):
        made = own.call("POST", "/v1/apps/default/keys", {"scope": "register"}, key=own.admin_key, expect=201)[1]
        key = made["key"]
        tab = window.open(front.origin + "/page")
        first = tab.run("return postrider.register({key: args.key, attributes: {plan: 'free'}})", key=key)
        again = window.open(front.origin + "/page").run("return postrider.register({key: args.key})", key=key)
        equal(again, first, "what the second tab registers")
        tab.run("begin(args)", **first)
        online(tab)
        status, _ = own.call("POST", "/v1/messages", {"audience": {"device": first["device"]}, "data": 1}, key=key)
        equal(status, 403, "status of a push with the public key")
        code = tab.run("return postrider.register({key: 'prk_wrong'}).catch((why) => why.code)")
        check(code and code != "unreachable", f"code of a wrong key: {code}")


@case
def a_killed_server_that_comes_back_loses_nothing_and_brings_nothing_twice(target):
    with Front(("127.0.0.1", 1), PAGES) as front, own_server(target, origins=front.origin) as server:
        own = server.target()
        front.server = server.places["http"]
        device = own.register(platform="web")
        with browser().window() as window:
            tab = window.open(front.origin + "/page")
            # Straight to the server, as a page of another origin.
            begin(tab, device, server="http://%s:%d" % own.http)
            online(tab)
            sent = []
            for _ in range(3):
                sent += [own.push(to(device), f"n{len(sent)}")["message_id"] for _ in range(20)]
                server.kill()
                tab.until("client.status.state !== 'online'")
                server.start()
                sent.append(own.push(to(device), "after")["message_id"])
                tab.until("new Set(got.map((push) => push.id)).size >= args.n", n=len(sent), timeout=60)
            equal(ids(tab), sent, "messages in the page")
            for message in sent:
                own.await_state(message, device, "delivered")


@case
def a_lost_acknowledgement_brings_nothing_twice_also_over_a_reload(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        tab = connected(front, window, device)
        front.mute = True
        first = [own.push(to(device))["message_id"] for _ in range(5)]
        tab.until("got.length === 5")
        front.mute = False
        front.cut()
        for message in first:
            own.await_state(message, device, "delivered")
        equal(ids(tab), first, "messages after the cut")
        front.mute = True
        more = own.push(to(device))["message_id"]
        tab.until("got.length === 6")
        check(own.delivery(more, device)["state"] in ("queued", "sent"), "state without the acknowledgement")
        front.mute = False
        tab.load()
        begin(tab, device)
        own.await_state(more, device, "delivered")
        last = own.push(to(device), "last")["message_id"]
        tab.until("got.length > 0")
        equal(ids(tab), [last], "messages after the reload")


@case
def a_push_that_no_listener_handled_waits_for_the_next_page(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        tab = window.open(front.origin + "/page")
        tab.run("window.client = postrider.create(args); client.connect()", device=device.device_id, secret=device.secret)
        online(tab)
        message = own.push(to(device))["message_id"]
        own.await_state(message, device, "delivered")
        tab.load()
        begin(tab, device)
        tab.until("got.length === 1")
        equal(ids(tab), [message], "messages")


@case
def without_a_database_a_push_is_acknowledged_only_when_its_listener_has_ended(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        tab = window.open(front.origin + "/without-database")
        tab.run("""window.client = postrider.create(args)
                   client.onPush((push) => { got.push(push); return new Promise((done) => { window.end = done }) })
                   client.connect()""", device=device.device_id, secret=device.secret)
        online(tab)
        message = own.push(to(device))["message_id"]
        tab.until("got.length === 1")
        # What is sent afterwards comes, and shows that the first was not acknowledged meanwhile.
        tab.run("await client.subscribe('public/fence')")
        check(own.delivery(message, device)["state"] in ("queued", "sent"), "state before the listener has ended")
        tab.run("end()")
        own.await_state(message, device, "delivered")


@case
def two_tabs_share_one_connection_and_the_second_takes_over(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        first = connected(front, window, device)
        second = connected(front, window, device)
        equal((front.upgrades, first.value("client.status.leader"), second.value("client.status.leader")), (1, True, False),
              "connections, and who leads")
        message = own.push(to(device))["message_id"]
        for tab in (first, second):
            tab.until("got.length === 1")
            equal(ids(tab), [message], "messages")
        equal(second.run("return client.subscribe('public/tabs')"), [True], "subscription over the other tab")
        second.run("await client.displayed(args.id)", id=message)
        own.await_state(message, device, "displayed")
        first.close()
        second.until("client.status.leader && client.status.state === 'online'")
        after = own.push(to(device))["message_id"]
        second.until("got.length === 2")
        equal(ids(second), [message, after], "messages of the second tab")
        own.await_state(after, device, "delivered")


@case
def without_web_locks_two_tabs_agree_all_the_same(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        front.origin = front.origin.replace("127.0.0.1", "insecure.test")
        first = connected(front, window, device)
        check(first.value("!navigator.locks"), "the page has Web Locks")
        second = connected(front, window, device)
        equal(second.value("client.status.leader"), False, "whether the second tab leads")
        message = own.push(to(device))["message_id"]
        for tab in (first, second):
            tab.until("got.length === 1")
            equal(ids(tab), [message], "messages")
        first.close()
        second.until("client.status.leader && client.status.state === 'online'")
        own.push(to(device))
        second.until("got.length === 2")
        equal(front.upgrades, 2, "connections")


@case
def where_websocket_is_refused_the_stream_serves_and_it_goes_back_up(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        front.refused = {"websocket"}
        tab = connected(front, window, device, "sse")
        sent = [own.push(to(device), f"n{number}")["message_id"] for number in range(50)]
        tab.until("got.length >= 50")
        tab.run("await client.displayed(args.id)", id=sent[0])
        own.await_state(sent[0], device, "displayed")
        code = tab.run("return client.subscribe('a').catch((why) => why.code)")
        equal(code, "needs_websocket", "refusal of a subscription")
        front.refused = set()
        tab.until("client.status.road === 'websocket'", timeout=90)
        sent.append(own.push(to(device))["message_id"])
        tab.until("got.length >= args.n", n=len(sent))
        equal(ids(tab), sent, "messages")
        for message in sent[1:]:
            own.await_state(message, device, "delivered")


@case
def where_the_stream_is_refused_too_the_poll_serves(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        front.refused = {"websocket", "sse"}
        tab = connected(front, window, device, "poll")
        sent = [own.push(to(device), f"n{number}")["message_id"] for number in range(50)]
        tab.until("got.length >= 50")
        for message in sent:
            own.await_state(message, device, "delivered")
        sent.append(own.push(to(device))["message_id"])
        tab.until("got.length >= args.n", n=len(sent))
        tab.run("await client.clicked(args.id)", id=sent[-1])
        own.await_state(sent[-1], device, "clicked")
        equal(ids(tab), sent, "messages")


@case
def a_cut_connection_comes_back_by_itself(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        tab = connected(front, window, device)
        for count in range(1, 4):
            tab.run("statuses.length = 0")
            front.cut()
            tab.until("statuses.includes('waiting')")
            own.push(to(device))
            tab.until("got.length === args.n", n=count)


@case
def without_a_network_it_waits_and_is_back_as_soon_as_there_is_one(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        tab = connected(front, window, device)
        tab.ask("offline", offline=True)
        front.cut()
        tab.until("client.status.state === 'offline'")
        message = own.push(to(device))["message_id"]
        tab.ask("offline", offline=False)
        tab.until("got.length === 1")
        equal(ids(tab), [message], "messages")


@case
def topics_are_subscribed_published_and_left(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        tab = connected(front, window, device)
        granted = tab.run("return client.subscribe(['public/news', 'public/#/wrong'])")
        equal(granted, [True, False], "granted: a topic, and a filter that is none")
        own.call("POST", "/v1/topics/public%2Fnews/publish", {"payload_text": "hello"}, expect=202)
        tab.until("window.messages?.length === 1")
        equal(tab.value("[messages[0].topic, messages[0].text]"), ["public/news", "hello"], "message")
        tab.run("await client.unsubscribe('public/news')")
        refused = tab.run("return client.publish('public/news', {n: 1}).then(() => 'taken', (why) => why.code)")
        equal(refused, "not_allowed", "a publish without the right")


@case
def a_token_that_the_page_fetches_signs_in_on_every_road(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        basic = base64.b64encode(f"{device.device_id}:{device.secret}".encode()).decode()
        made = own.call("POST", f"/v1/devices/{device.device_id}/tickets", headers={"Authorization": f"Basic {basic}"}, expect=201)[1]
        for refused, road in ((set(), "websocket"), ({"websocket"}, "sse"), ({"websocket", "sse"}, "poll")):
            front.refused = refused
            tab = window.open(front.origin + "/page")
            tab.run("begin({device: args.device, token: async () => args.ticket})", device=device.device_id, ticket=made["ticket"])
            online(tab, road)
            message = own.push(to(device))["message_id"]
            own.await_state(message, device, "delivered")
            tab.close()


@case
def a_frozen_page_lets_go_and_catches_up_when_it_wakes(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        tab = connected(front, window, device)
        tab.ask("lifecycle", state="frozen")
        eventually(lambda: not front.links, "the connection of a frozen page is closed")
        message = own.push(to(device))["message_id"]
        tab.ask("lifecycle", state="active")
        tab.until("got.length === 1")
        equal(ids(tab), [message], "messages")
        check("frozen" in tab.value("statuses"), "the page did not say that it was frozen")


@case
def a_refused_sign_in_and_a_deleted_device_are_told_and_not_tried_for_ever(target):
    with scene(target) as (own, front, window):
        device = own.register(platform="web")
        tab = connected(front, window, device)
        own.call("DELETE", f"/v1/devices/{device.device_id}")
        tab.until("client.status.state === 'stopped'")
        equal(tab.value("client.status.reason"), "revoked", "reason")
        other = window.open(front.origin + "/page")
        device.secret = "wrong"
        begin(other, device)
        other.until("client.status.state === 'stopped'")
        equal(other.value("client.status.reason"), "not_authorized", "reason")
        check(other.value("client.describe('zh')").startswith("已停止"), "words")


@case
def a_page_that_opened_its_client_registers_again_when_its_device_was_deleted(target):
    with scene(target) as (own, front, window):
        key = own.call("POST", "/v1/apps/default/keys", {"scope": "register"}, key=own.admin_key, expect=201)[1]["key"]
        tab = window.open(front.origin + "/page")
        tab.run("""window.devices = []; window.titles = []
                   window.opened = postrider.open({key: args.key})
                   opened.on('registered', ({device}) => devices.push(device))
                   opened.onPush((push) => { titles.push(push.notification.title); opened.displayed(push) })
                   opened.connect()""", key=key)
        tab.until("opened.status.state === 'online'")
        own.call("DELETE", f"/v1/devices/{tab.value('devices[0]')}")
        tab.until("devices.length === 2 && opened.status.state === 'online'")
        second = tab.value("opened.device")
        own.push({"device": second}, notification={"title": "again"})
        tab.until("titles.includes('again')")
        own.call("DELETE", f"/v1/devices/{second}")
        tab.until("devices.length === 3 && opened.status.state === 'online'")
        equal(tab.value("devices.indexOf(opened.device)"), 2, "the device in use")


# The live page.

def live_page(own, window, query=""):
    tab = window.open("http://%s:%d/demo%s" % (*own.http, query))
    tab.until("document.body.dataset.connection === 'online'")
    return tab, tab.value("document.getElementById('device').textContent")


def reached(tab, step):
    tab.until("document.querySelector('.steps li.done[data-step=' + args.step + ']')?.dataset.step", step=step)


@case
def the_live_page_goes_from_compose_to_click_in_both_languages(target):
    with own_server(target) as server:
        own = server.target()
        for query, title in (("?lang=en", "Your parcel is on its way"), ("?lang=zh", "您的包裹正在派送")):
            with browser().window() as window:
                tab, device_id = live_page(own, window, query)
                tab.click("#send")
                tab.until("document.querySelector('.note-title')?.textContent === args.title", title=title)
                for step in ("accepted", "queued", "sent", "delivered", "displayed"):
                    reached(tab, step)
                tab.click(".note-open")
                tab.until("location.hash === '#/order/7' && !document.getElementById('app').hidden")
                reached(tab, "clicked")
                message = tab.value("document.querySelector('.steps').dataset.id")
                found = own.call("GET", f"/v1/messages/{message}/deliveries/{device_id}", expect=200)[1]
                equal(found["state"], "clicked", "state in the ledger")
                equal(tab.complaints(), [], "complaints of the page")


@case
def the_live_page_takes_a_reply_and_shows_its_past_when_it_is_loaded_anew(target):
    with own_server(target) as server, browser().window() as window:
        tab, _ = live_page(server.target(), window, "?lang=en")
        tab.click("#send")
        tab.until("document.querySelectorAll('.note').length === 1")
        tab.run("document.querySelectorAll('#examples button')[2].click()")
        tab.click("#send")
        tab.until("document.querySelectorAll('.note').length === 2")
        tab.click(".note-actions button")
        tab.fill(".note-reply input", "On Sunday at ten")
        tab.click(".note-reply button")
        reached(tab, "replied")
        equal(tab.value("document.querySelector('[data-step=replied] .why').textContent"), "“On Sunday at ten”", "reply")
        tab.until("document.querySelectorAll('.note').length === 1")
        tab.load()
        tab.until("document.querySelectorAll('.note').length === 1", "the shade of before")
        reached(tab, "replied")
        equal(tab.value("document.querySelectorAll('#earlier-list li').length"), 1, "earlier messages")
        tab.click("[data-language=zh]")
        equal(tab.value("document.querySelector('[data-step=replied] .name').textContent"), "已回复", "in Chinese")
        equal(tab.complaints(), [], "complaints of the page")


@case
def the_live_page_shows_what_waited_while_it_was_away(target):
    with own_server(target) as server, browser().window() as window:
        tab, _ = live_page(server.target(), window)
        tab.click("#cut")
        tab.until("document.body.dataset.connection === 'idle'")
        tab.click("#send")
        reached(tab, "queued")
        equal(tab.value("document.querySelectorAll('.note').length"), 0, "notifications while away")
        tab.click("#cut")
        reached(tab, "displayed")
        tab.click(".note-dismiss")
        reached(tab, "dismissed")


@case
def the_live_page_registers_anew_where_the_server_has_forgotten_it(target):
    with own_server(target) as server, browser().window() as window:
        own = server.target()
        tab, device_id = live_page(own, window)
        own.call("DELETE", f"/v1/devices/{device_id}")
        tab.load()
        tab.until("document.body.dataset.connection === 'online'")
        check(tab.value("document.getElementById('device').textContent") != device_id, "the device is the deleted one")
        tab.click("#send")
        reached(tab, "displayed")


@case
def a_data_message_is_handed_over_and_shows_nothing(target):
    with own_server(target) as server, browser().window() as window:
        tab, _ = live_page(server.target(), window)
        tab.run("document.querySelector('input[name=kind][value=data]').click()")
        tab.fill("textarea[name=data]", '{"cart": 3}')
        tab.click("#send")
        reached(tab, "delivered")
        tab.until("!document.getElementById('pill').hidden")
        equal(tab.value("document.querySelectorAll('.note').length"), 0, "notifications")


@case
def a_hostile_payload_is_shown_as_text(target):
    with own_server(target) as server, browser().window() as window:
        own = server.target()
        tab, device_id = live_page(own, window)
        for number, words in enumerate(HOSTILE):
            notification = {"title": words, "body": words, "image": "javascript:window.pwned=1", "icon": words,
                            "click": "javascript:window.pwned=1",
                            "actions": [{"id": "a", "title": words, "click": "data:text/html,<script>1</script>"}]}
            own.push({"device": device_id}, notification=notification)
            tab.until("document.querySelectorAll('.note').length === args.n", n=number + 1)
            note = tab.value("""(() => { const note = document.querySelector('.note')
                return [note.querySelector('.note-title').textContent, note.querySelector('.note-body').textContent,
                        note.querySelector('.note-actions').textContent, note.querySelectorAll('script, svg[onload]').length]})()""")
            shown = tab.value("document.querySelector('.note-title').childNodes.length")
            equal((note, shown), ([words] * 3 + [0], 1), "what is shown")
        before = tab.value("location.href")
        tab.click(".note-actions button")
        tab.until("document.querySelectorAll('.note').length === args.n", n=len(HOSTILE) - 1)
        tab.click(".note-open")
        tab.until("document.querySelectorAll('.note').length === args.n", n=len(HOSTILE) - 2)
        equal(tab.value("[location.href, window.pwned ?? null]"), [before, None], "where the page is, and what ran")
        equal(tab.complaints(), [], "complaints of the page")


@case
def the_live_page_is_not_there_unless_it_is_wanted(target):
    for path in ("/demo", "/demo/demo.js"):
        equal(target.call("GET", path)[0], 404, f"status of {path}")
    equal(target.call("POST", "/demo/devices", {})[0], 404, "status of POST /demo/devices")
