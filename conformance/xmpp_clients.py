"""slixmpp as a device, driven from cases that are ordinary functions."""

import asyncio
import inspect
import threading

from harness import NotHere
from xmpp_wire import any_certificate

try:
    import slixmpp
except ImportError:
    slixmpp = None

PLUGINS = ("xep_0030", "xep_0060", "xep_0184", "xep_0198", "xep_0199", "xep_0333", "xep_0352", "xep_0203")


class Client:
    """Signs in on a thread of its own; what comes is kept in `messages`."""

    def __init__(self, target, device, mechanism=None, within=20, plugins=PLUGINS, receipts=True):
        if slixmpp is None:
            raise NotHere("slixmpp is not installed")
        self.messages, self.refused, self.resumptions = [], [], 0
        self.news = threading.Condition()
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.run(self.begin(target, device, mechanism, plugins, receipts), within)
        # The wait ends early where the server refuses.
        while not self.ready.wait(0.02):
            within -= 0.02
            if self.refused or within < 0:
                break

    async def begin(self, target, device, mechanism, plugins, receipts):
        jid = f"{device.device_id}@localhost"
        self.client = client = slixmpp.ClientXMPP(jid, device.secret, sasl_mech=mechanism)
        client.ssl_context = any_certificate()
        client.get_ssl_context = any_certificate
        for plugin in plugins:
            client.register_plugin(plugin)
        if receipts and "xep_0184" in plugins:
            client.plugin["xep_0184"].auto_ack = True
        for event, handler in (("session_start", self.started), ("session_resumed", self.resumed),
                               ("message", self.keep), ("message_error", self.keep),
                               ("pubsub_publish", self.keep)):
            client.add_event_handler(event, handler)
        client.add_event_handler("failed_auth", self.refused.append)
        self.place = target.xmpp
        self.dial()

    def dial(self):
        """COMPAT: slixmpp before 1.9, which Debian has, takes host and port as a pair, and nothing is to be awaited."""
        takes_pair = "address" in inspect.signature(self.client.connect).parameters
        return self.client.connect(self.place) if takes_pair else self.client.connect(*self.place)

    def started(self, _):
        self.client.send_presence()
        self.ready.set()

    def resumed(self, _):
        self.resumptions += 1
        self.ready.set()

    def keep(self, stanza):
        with self.news:
            self.messages.append(stanza)
            self.news.notify_all()

    def run(self, work, within=20):
        """The result of a coroutine on the client's thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(within)

    def call(self, function, *values, **named):
        """A function that must run on the client's thread; what it awaits is awaited."""
        async def go():
            result = function(*values, **named)
            return await result if asyncio.iscoroutine(result) or isinstance(result, asyncio.Future) else result
        return self.run(go())

    def plugin(self, name):
        return self.client.plugin[name]

    def wait_for(self, wanted, words, within=20):
        """The first message for which `wanted` holds; it leaves the list."""
        with self.news:
            found = self.news.wait_for(lambda: next((m for m in self.messages if wanted(m)), None) is not None, within)
            assert found, f"not in {within} s: {words}; there are {self.messages}"
            message = next(m for m in self.messages if wanted(m))
            self.messages.remove(message)
            return message

    def cut(self):
        """The connection goes without a word."""
        self.ready.clear()
        self.loop.call_soon_threadsafe(self.client.abort)

    async def end(self):
        try:
            await asyncio.wait_for(self.client.disconnect(wait=1), 3)
        except (TimeoutError, AttributeError, asyncio.InvalidStateError):
            self.client.abort()
        # What the library leaves running would complain about its loop later.
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def close(self):
        self.run(self.end(), 10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
