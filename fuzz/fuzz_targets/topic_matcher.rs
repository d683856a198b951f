//! The matcher agrees with a slow one that is obviously right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_proto::mqtt::topic;

fn matches_slowly(filter: &[&str], name: &[&str]) -> bool {
    match (filter, name) {
        (["#"], _) => true,
        ([], []) => true,
        (["+", filter @ ..], [_, name @ ..]) => matches_slowly(filter, name),
        ([wanted, filter @ ..], [level, name @ ..]) => wanted == level && matches_slowly(filter, name),
        _ => false,
    }
}

fuzz_target!(|data: (&str, &str)| {
    let (filter, name) = data;
    if topic::check_filter(filter, 512, 16).is_err() || topic::check_name(name, 512, 16).is_err() {
        return;
    }
    let is_hidden = name.starts_with('$') && filter.starts_with(['#', '+']);
    let (filter_levels, name_levels): (Vec<&str>, Vec<&str>) =
        (filter.split('/').collect(), name.split('/').collect());
    assert_eq!(topic::matches(filter, name), !is_hidden && matches_slowly(&filter_levels, &name_levels));
});
