//! Files of the demonstration and of the browser SDK are inside the binary: a new one makes a new binary.

fn main() {
    println!("cargo::rerun-if-changed=assets");
}
