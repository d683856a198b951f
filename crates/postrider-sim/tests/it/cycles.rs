//! The flaw "receives nothing after a long time", in simulated time.

use postrider_core::seeded::{Bug, plant};
use postrider_sim::{Cycles, PROMISED_MS, reconnect_cycles};

#[test]
fn a_thousand_reconnect_cycles() {
    const PHONES: usize = 3;
    let began = std::time::Instant::now();
    let cycles = reconnect_cycles(1, PHONES, 1_000);
    println!("{cycles}, in {:.1} s", began.elapsed().as_secs_f64());
    assert!(cycles.report.violation.is_none(), "{}", cycles.report);
    assert!(cycles.fewest >= 1_000 && cycles.resumed > 100 && cycles.report.lives > 50, "{cycles:?}");
    assert!(cycles.worst_ms <= PROMISED_MS, "{cycles}");
    let Cycles { accepted, delivered, shown, disagreed, connections, connected, .. } = cycles;
    assert!(accepted > 5_000, "{cycles}");
    assert_eq!(
        (delivered, shown, disagreed),
        (accepted, accepted, 0),
        "what the report says, and the phones"
    );
    assert_eq!((connections, connected), (PHONES, PHONES), "nothing is left over");
}

#[test]
fn a_push_that_waits_on_a_good_path_is_noticed() {
    plant(Some(Bug::WakeLost));
    let cycles = reconnect_cycles(1, 3, 100);
    plant(None);
    assert_eq!(cycles.report.violation.map(|violation| violation.rule), Some("in time"));
}
