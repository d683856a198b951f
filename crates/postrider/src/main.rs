//! The postrider binary: everything begins in `cli`.

mod api;
mod app;
mod bootstrap;
mod cli;
mod client;
mod config;
mod dial;
mod gateway;
mod http;
mod names;
mod networks;
mod opened;
mod planted;
mod platform;
mod proof;
mod secrets;
mod supervise;
mod tls;
mod tokens;

fn main() -> std::process::ExitCode {
    cli::run()
}
