//! The postrider binary.

mod api;
mod app;
mod bootstrap;
mod config;
mod gateway;
mod http;
mod platform;
mod tls;

fn main() {
    let mut sources = config::Sources::of_process();
    let args: Vec<String> = std::env::args().collect();
    let option = |n: &str| args.iter().position(|a| a == n).and_then(|i| args.get(i + 1)).cloned();
    sources.file = option("--config").map(Into::into);
    sources.data = option("--data");
    let config = config::Config::load(&sources).expect("config");
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    app::serve(config, Default::default(), |l| println!("{l}")).unwrap();
}
