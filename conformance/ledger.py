"""The oracle of the crash tests: what was intended, accepted and received, and what that adds up to.

It knows nothing of sockets. An *intent* is (publisher, device, number); numbers of one publisher to one device
grow and the next is sent only when the one before was accepted, so they show order. The *epoch* counts the
server's lives: a repeat within one life has no excuse.
"""

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass
class Sight:
    """One reception at a device."""
    intent: tuple
    message_id: str
    epoch: int
    connection: int


@dataclass
class Ledger:
    # In-flight window of a connection: so many acknowledgements may die with the server.
    window: int = 32
    intents: Counter = field(default_factory=Counter)
    accepted: dict = field(default_factory=dict)
    seen: dict = field(default_factory=lambda: defaultdict(list))
    confirmed: dict = field(default_factory=dict)
    open_at_end: int = 0

    def __post_init__(self):
        self.lock = threading.Lock()

    def intend(self, intent):
        """Before each attempt: a repeat of the attempt counts, it may excuse a double where no key guards it."""
        with self.lock:
            self.intents[intent] += 1

    def accept(self, intent, message_id):
        with self.lock:
            self.accepted[intent] = message_id

    def receive(self, device, sight):
        with self.lock:
            self.seen[device].append(sight)

    def confirm(self, device, intent, epoch):
        """The server itself said that this delivery is delivered."""
        with self.lock:
            self.confirmed.setdefault((device, intent), epoch)

    def received_intents(self, device):
        return {sight.intent for sight in self.seen[device]}

    def missing(self):
        with self.lock:
            got = {sight.intent for sights in self.seen.values() for sight in sights}
            return [intent for intent in self.accepted if intent not in got]

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

    def unexplained_doubles(self, attempts_excuse):
        """`attempts_excuse`: without an idempotency key a publisher that asks twice gets two."""
        count = 0
        for device, sights in self.seen.items():
            last, by_crash = {}, Counter()
            copies = Counter()
            for sight in sights:
                before = last.get(sight.intent)
                last[sight.intent] = sight
                # Each attempt may have become a message, and each of those may come again in each life of the connection.
                life = (sight.intent, sight.epoch, sight.connection)
                copies[life] += 1
                if before is None:
                    continue
                if attempts_excuse and copies[life] <= self.intents[sight.intent]:
                    continue
                by_crash[sight.epoch] += 1
                count += self.has_no_excuse(device, sight, before) or by_crash[sight.epoch] > self.window
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

    def balance(self, attempts_excuse=False):
        lost = self.missing()
        return {
            "accepted": len(self.accepted),
            "delivered": len(self.accepted) - len(lost),
            "lost": len(lost),
            "phantom": self.phantoms(),
            "dup_unexplained": self.unexplained_doubles(attempts_excuse),
            "misorder": self.misorders(),
            "gap": self.open_at_end,
        }


def balanced(balance):
    return all(balance[name] == 0 for name in ("lost", "phantom", "dup_unexplained", "misorder", "gap"))


def words(balance):
    return "balance " + " ".join(f"{name}={value}" for name, value in balance.items())
