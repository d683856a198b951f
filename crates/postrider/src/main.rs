mod gateway;
fn main() {}
