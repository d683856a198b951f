"""The oracle of the abuse tests: what was intended, accepted and received, and what that adds up to.

It knows nothing of sockets. An *intent* is (publisher, device, number); numbers of one publisher to one device
grow and the next is sent only when the one before was accepted, so they show order. The *epoch* counts the
server's lives: a repeat within one connection has no excuse. Times are of the judge's monotonic clock, which no
test moves.
"""

import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

# What a balance must have none of.
FAULTS = ("lost", "phantom", "dup_unexplained", "misorder", "early", "late", "gap")
# A message may be sent so many seconds after its end (P6).
TOLERANCE_SECS = 1.0


@dataclass
class Sight:
    """One reception at a device."""
    intent: tuple
    # None where the sender had no idempotency key and the message no id: what it sends twice comes twice.
    message_id: str
    epoch: int
    connection: int
    # When the connection was opened on which it came; what came was sent no earlier.
    opened: float = 0.0


@dataclass
class Terms:
    """What was asked for an intent."""
    first_tried: float
    # Seconds to live; None: so long that no test ends it.
    ttl: float = None
    accepted: float = None

    def may_end(self):
        return self.ttl is not None


@dataclass
class Ledger:
    # In-flight window of a connection: so many acknowledgements may die with it.
    window: int = 32
    intents: Counter = field(default_factory=Counter)
    terms: dict = field(default_factory=dict)
    accepted: dict = field(default_factory=dict)
    seen: dict = field(default_factory=lambda: defaultdict(list))
    confirmed: dict = field(default_factory=dict)
    early: set = field(default_factory=set)
    open_at_end: int = 0

    def __post_init__(self):
        self.lock = threading.Lock()

    def intend(self, intent, ttl=None, now=None):
        """Before each attempt: a repeat of the attempt counts, it may excuse a double where no key guards it."""
        with self.lock:
            self.intents[intent] += 1
            self.terms.setdefault(intent, Terms(time.monotonic() if now is None else now, ttl))

    def accept(self, intent, message_id, now=None):
        with self.lock:
            self.accepted[intent] = message_id
            self.terms[intent].accepted = time.monotonic() if now is None else now

    def receive(self, device, sight):
        with self.lock:
            self.seen[device].append(sight)

    def confirm(self, device, intent, epoch):
        """The server itself said that this delivery is delivered."""
        with self.lock:
            self.confirmed.setdefault((device, intent), epoch)

    def expire(self, intent, now=None):
        """The server itself said that this delivery has expired; it may not have before its time."""
        now = time.monotonic() if now is None else now
        with self.lock:
            terms = self.terms[intent]
            if terms.ttl is None or now < terms.first_tried + terms.ttl:
                self.early.add(intent)

    def received_intents(self, device):
        return {sight.intent for sight in self.seen[device]}

    def unseen(self):
        """Accepted and never received."""
        with self.lock:
            got = {sight.intent for sights in self.seen.values() for sight in sights}
            return [intent for intent in self.accepted if intent not in got]

    def missing(self):
        """Accepted, never received, and without the excuse of a short life."""
        return [intent for intent in self.unseen() if not self.terms[intent].may_end()]

    # The balance.

    def phantoms(self):
        """Received and never intended, at the wrong device, or as a second message of one intent."""
        count = 0
        for device, sights in self.seen.items():
            first_id = {}
            for sight in sights:
                foreign = sight.intent not in self.intents or sight.intent[1] != device
                known = self.accepted.get(sight.intent) or first_id.setdefault(sight.intent, sight.message_id)
                count += foreign or (known is not None and known != sight.message_id)
        return count

    def unexplained_doubles(self):
        count = 0
        for device, sights in self.seen.items():
            last, repeats = {}, Counter()
            copies = Counter()
            for sight in sights:
                before = last.get(sight.intent)
                last[sight.intent] = sight
                # Each attempt may have become a message, and each of those may come again on each connection.
                life = (sight.epoch, sight.connection)
                copies[life, sight.intent] += 1
                if before is None:
                    continue
                if sight.message_id is None and copies[life, sight.intent] <= self.intents[sight.intent]:
                    continue
                repeats[life] += 1
                count += self.has_no_excuse(device, sight, before) or repeats[life] > self.window
        return count

    def has_no_excuse(self, device, sight, before):
        confirmed = self.confirmed.get((device, sight.intent))
        same_life = sight.epoch == before.epoch and sight.connection == before.connection
        return same_life or (confirmed is not None and confirmed < sight.epoch)

    def misorders(self):
        """First receptions of one publisher at one device must have growing numbers."""
        count = 0
        for sights in self.seen.values():
            highest, known = {}, set()
            for sight in sights:
                if sight.intent in known:
                    continue
                known.add(sight.intent)
                lane, number = sight.intent[:2], sight.intent[2]
                count += number < highest.get(lane, -1)
                highest[lane] = max(number, highest.get(lane, -1))
        return count

    def late_sends(self):
        """Came on a connection that was opened only after the message's end: no slow reader can be the reason."""
        count = 0
        for sights in self.seen.values():
            for sight in sights:
                terms = self.terms.get(sight.intent)
                if terms and terms.may_end() and terms.accepted is not None:
                    count += sight.opened > terms.accepted + terms.ttl + TOLERANCE_SECS
        return count

    def balance(self):
        unseen, lost = len(self.unseen()), len(self.missing())
        return {
            "accepted": len(self.accepted),
            "delivered": len(self.accepted) - unseen,
            "expired": unseen - lost,
            "lost": lost,
            "phantom": self.phantoms(),
            "dup_unexplained": self.unexplained_doubles(),
            "misorder": self.misorders(),
            "early": len(self.early),
            "late": self.late_sends(),
            "gap": self.open_at_end,
        }


def balanced(balance):
    return all(balance[name] == 0 for name in FAULTS)


def words(balance):
    return "balance " + " ".join(f"{name}={value}" for name, value in balance.items())
