//! placeholder
pub fn same_as_checked_in(path: &str, text: &str) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
    let file = format!("{root}{path}");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let checked_in = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        checked_in == text,
        "{path} is not what the code says; UPDATE=1 cargo test -p postrider writes it"
    );
}
