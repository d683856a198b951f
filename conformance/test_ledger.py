"""The judge is judged first: `python3 -m unittest test_ledger`."""

import unittest

from ledger import FAULTS, Ledger, Sight, balanced


def intent(number, device="d", publisher=0):
    return publisher, device, number


def ledger_of(*numbers):
    made = Ledger()
    for number in numbers:
        made.intend(intent(number))
        made.accept(intent(number), f"m{number}")
    return made


def see(ledger, number, epoch=0, connection=0, message_id=None, device="d"):
    ledger.receive(device, Sight(intent(number), message_id or f"m{number}", epoch, connection))


class LedgerTest(unittest.TestCase):
    def assert_balance(self, ledger, **wanted):
        got = ledger.balance()
        self.assertEqual({name: got[name] for name in FAULTS}, {**dict.fromkeys(FAULTS, 0), **wanted})

    def test_all_received_once_balances(self):
        ledger = ledger_of(1, 2)
        see(ledger, 1)
        see(ledger, 2)
        self.assert_balance(ledger)
        self.assertTrue(balanced(ledger.balance()))

    def test_accepted_and_never_seen_is_lost(self):
        self.assert_balance(ledger_of(1), lost=1)

    def test_intended_but_not_accepted_may_come_or_not(self):
        ledger = ledger_of()
        ledger.intend(intent(1))
        self.assert_balance(ledger)
        see(ledger, 1)
        self.assert_balance(ledger)

    def test_never_intended_is_a_phantom(self):
        ledger = ledger_of()
        see(ledger, 9)
        self.assert_balance(ledger, phantom=1)

    def test_a_second_message_of_one_intent_is_a_phantom(self):
        ledger = ledger_of(1)
        see(ledger, 1)
        see(ledger, 1, epoch=1, connection=1, message_id="other")
        self.assert_balance(ledger, phantom=1)

    def test_repeat_after_a_crash_is_explained(self):
        ledger = ledger_of(1)
        see(ledger, 1)
        see(ledger, 1, epoch=1, connection=1)
        self.assert_balance(ledger)

    def test_repeat_on_the_same_connection_is_not(self):
        ledger = ledger_of(1)
        see(ledger, 1)
        see(ledger, 1)
        self.assert_balance(ledger, dup_unexplained=1)

    def test_repeat_after_the_confirmation_is_not(self):
        ledger = ledger_of(1)
        see(ledger, 1)
        ledger.confirm("d", intent(1), 0)
        see(ledger, 1, epoch=1, connection=1)
        self.assert_balance(ledger, dup_unexplained=1)

    def test_without_a_key_two_attempts_may_come_twice_and_not_three_times(self):
        ledger = Ledger()
        for _ in range(2):
            ledger.intend(intent(1))
        ledger.accept(intent(1), "")
        for copies, doubles in ((1, 0), (2, 0), (3, 1)):
            ledger.receive("d", Sight(intent(1), None, 0, 0))
            self.assert_balance(ledger, dup_unexplained=doubles)

    def test_more_repeats_than_the_window_are_not(self):
        ledger = ledger_of(*range(40))
        for epoch in (0, 1):
            for number in range(40):
                see(ledger, number, epoch, epoch)
        self.assert_balance(ledger, dup_unexplained=8)

    def test_order_counts_first_receptions_only(self):
        ledger = ledger_of(1, 2, 3)
        for number, epoch in ((1, 0), (2, 0), (1, 1), (2, 1), (3, 1)):
            see(ledger, number, epoch, epoch)
        self.assert_balance(ledger)
        late = ledger_of(1, 2)
        see(late, 2)
        see(late, 1)
        self.assert_balance(late, misorder=1)

    def short_lived(self):
        ledger = Ledger()
        ledger.intend(intent(1), ttl=3, now=100)
        ledger.accept(intent(1), "m1", now=101)
        return ledger

    def test_a_short_life_that_ended_in_time_is_no_loss(self):
        ledger = self.short_lived()
        ledger.expire(intent(1), now=103.5)
        self.assert_balance(ledger)
        self.assertEqual(ledger.balance()["expired"], 1)

    def test_an_end_before_its_time_is_early(self):
        ledger = self.short_lived()
        ledger.expire(intent(1), now=102.9)
        self.assert_balance(ledger, early=1)
        long_lived = ledger_of(1)
        long_lived.expire(intent(1))
        self.assert_balance(long_lived, early=1, lost=1)

    def test_on_a_connection_opened_after_its_end_it_is_late(self):
        ledger = self.short_lived()
        ledger.receive("d", Sight(intent(1), "m1", 0, 0, opened=104.9))
        self.assert_balance(ledger)
        ledger.receive("d", Sight(intent(1), "m1", 0, 1, opened=105.1))
        self.assert_balance(ledger, late=1)


if __name__ == "__main__":
    unittest.main()
