//! `demo`: the whole platform in one command, told step by step.
//!
//! The server is the real one, on a thread of this process; the device is a real client, on a socket. What is printed is
//! what the server's own report says.

use super::Failure;
use super::remote::{Api, segment};
use super::screen::{Screen, Style, clean, span};
use super::{listen, message, serve};
use crate::app::{self, Listening};
use crate::client::Device;
use crate::config::{Config, Sources};
use crate::dial::Address;
use crate::platform::{OsChance, new_secret};
use postrider_core::port::Chance;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
It takes the usual ports where they are free, and the variables of `serve`, such as POSTRIDER_HTTP_LISTEN.
Examples:
  postrider demo
  postrider demo --lan        open the page on a phone: the address is shown as a link and as a QR code")]
pub struct Args {
    /// Keep the data here; else it goes into a folder that is removed at the end.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// End after the first push and do not go on serving.
    #[arg(long)]
    once: bool,
    /// Listen at this address of the machine, not only for the machine itself; 0.0.0.0 is all of them.
    #[arg(long, value_name = "IP")]
    listen: Option<IpAddr>,
    /// Listen for the machine's network: whoever is in it can open the page.
    #[arg(long, conflicts_with = "listen")]
    lan: bool,
}

impl Args {
    fn address(&self) -> Option<IpAddr> {
        if self.lan { Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) } else { self.listen }
    }
}

/// How long the first steps may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(args: Args, screen: &Screen) -> Result<(), Failure> {
    let folder = Folder::new(args.data.clone())?;
    let (config, key) = configuration(&folder.path, args.address())?;
    serve::start_logging(&config)?;
    let server = Server::start(config)?;
    let toured = tour(&server, &folder, &key, screen).and_then(|phone| {
        finish(&server, &key, &phone.id, args.once, screen)?;
        if !args.once {
            // Goes on until the server ends and takes the connection with it.
            let screen = *screen;
            std::thread::spawn(move || phone.attend(&screen));
        }
        Ok(())
    });
    if args.once || toured.is_err() {
        server.stop.notify_one();
    }
    let served = server.thread.join().map_err(|_| Failure::failed("the server panicked"))?;
    toured.and(served)
}

/// Where the data lies: a folder of the reader's, or one for this time only.
struct Folder {
    path: PathBuf,
    remove: bool,
}

impl Folder {
    fn new(given: Option<PathBuf>) -> Result<Folder, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        if let Some(path) = given {
            return Ok(Folder { path, remove: false });
        }
        let path = std::env::temp_dir().join(format!("postrider-demo-{:08x}", OsChance.bits128() as u32));
        // Nobody else's: the server refuses a folder that others can look into.
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(Failure::failed)?;
        Ok(Folder { path, remove: true })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.remove {
            _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// The defaults, on the usual ports where they are free, and a key that is known here.
fn configuration(dir: &Path, listen: Option<IpAddr>) -> Result<(Config, String), Failure> {
    let mut sources = Sources::of_process();
    sources.data = Some(dir.display().to_string());
    let mut config = Config::load(&sources).map_err(|error| Failure::Usage(error.to_string()))?;
    for address in [&mut config.listen.http, &mut config.listen.mqtt] {
        address.set_ip(listen.unwrap_or(address.ip()));
    }
    for address in [&mut config.listen.http, &mut config.listen.ops, &mut config.listen.mqtt] {
        *address = free(*address);
    }
    config.listen.xmpp = config.listen.xmpp.map(free);
    if std::env::var_os("POSTRIDER_LOG_LEVEL").is_none() && std::env::var_os("POSTRIDER_LOG").is_none() {
        config.log.level = "warn".into();
    }
    // A demonstration must not fail on a disk that is nearly full, nor fill it.
    (config.store.min_free_bytes, config.store.min_free_percent, config.store.reserve_bytes) =
        (1 << 20, 0, 1 << 20);
    config.http.demo = true;
    let key = config.keys.app.get_or_insert_with(|| new_secret("prk_", &OsChance)).clone();
    Ok((config, key))
}

/// The address, or a free port beside it where it is taken.
fn free(address: SocketAddr) -> SocketAddr {
    match TcpListener::bind(address) {
        Ok(_) => address,
        Err(_) => SocketAddr::new(address.ip(), 0),
    }
}

/// An address that others can go to, for one that stands for all of the machine's.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = if address.ip().is_unspecified() { own_address() } else { None };
    SocketAddr::new(ip.unwrap_or(address.ip()), address.port())
}

/// The address by which the machine goes to other networks. Nothing is sent: the target is one that no host has (RFC 5737).
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|own| own.ip()).filter(|ip| !ip.is_unspecified())
}

/// The server on its thread.
struct Server {
    at: Listening,
    stop: Arc<Notify>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Server {
    fn start(config: Config) -> Result<Server, Failure> {
        let (tell, told) = mpsc::channel();
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let serve = move || {
            let ready = move |listening: &Listening| _ = tell.send(listening.clone());
            app::serve(config, stopped, ready).map_err(Failure::failed)
        };
        let thread =
            std::thread::Builder::new().name("server".into()).spawn(serve).map_err(Failure::failed)?;
        match told.recv() {
            Ok(mut at) => {
                (at.http, at.mqtt) = (reachable(at.http), reachable(at.mqtt));
                Ok(Server { at, stop, thread })
            }
            // It ended before it was ready, and says why.
            Err(_) => match thread.join() {
                Ok(Err(failure)) => Err(failure),
                _ => Err(Failure::failed("the server ended before it was ready")),
            },
        }
    }
}

/// The simulated device.
struct Phone {
    id: String,
    device: Device,
}

impl Phone {
    /// Takes one push as a phone does: show, acknowledge, report.
    fn take(&mut self, wait: Duration, screen: &Screen) -> Result<bool, Failure> {
        let Some(push) = self.device.next(wait).map_err(Failure::failed)? else { return Ok(false) };
        if !push.repeated {
            listen::show(&push, screen);
        }
        self.device.ack(&push).map_err(Failure::failed)?;
        if let Some(id) = push.id() {
            self.device.report(id, "displayed").map_err(Failure::failed)?;
        }
        Ok(true)
    }

    /// Goes on as a device until the connection ends.
    fn attend(mut self, screen: &Screen) {
        while self.take(Duration::from_secs(3_600), screen).is_ok() {}
    }
}

/// The first push, from the registration to the report.
fn tour(server: &Server, folder: &Folder, key: &str, screen: &Screen) -> Result<Phone, Failure> {
    let api = Api::new(&format!("http://{}", server.at.http), key)?;
    let say = |number: u32, text: &str| {
        if !screen.json {
            screen.line(format!("\n{} {text}", screen.style(Style::Accent, format!("{number}."))));
        }
    };
    let at = format!("HTTP API http://{}, MQTT {}", server.at.http, server.at.mqtt);
    let kept = if folder.remove { "for this time only" } else { "kept" };
    say(1, &format!("A server runs: {at}.\n   Its data is in {} ({kept}).", folder.path.display()));
    let (id, secret) = register(&api, "phone")?;
    say(2, &format!("A simulated phone registered with the app `default`: device {id}  (POST /v1/devices)."));
    let mqtt = Address::parse(&server.at.mqtt.to_string(), None).map_err(Failure::Failed)?;
    let device = Device::connect(&mqtt, &id, &secret).map_err(Failure::failed)?;
    let mut phone = Phone { id, device };
    say(3, "It connected by MQTT, signed in with its secret, and subscribed to its inbox, $push/inbox.");
    let request = json!({
        "audience": { "device": phone.id },
        "notification": { "title": "Hello", "body": "This is the first push of your own platform." },
    });
    let accepted = api.post("/v1/messages", &request)?;
    let id = clean(accepted["message_id"].as_str().unwrap_or_default()).into_owned();
    say(
        4,
        &format!("An app server sent it a push  (POST /v1/messages): message {id}.\n   The phone shows:\n"),
    );
    if !phone.take(PATIENCE, screen)? {
        return Err(Failure::failed("the push did not arrive"));
    }
    let delivery = displayed(&api, &id, &phone.id)?;
    if screen.json {
        screen.value(&json!({
            "http": server.at.http.to_string(), "mqtt": server.at.mqtt.to_string(), "app_key": key,
            "device_id": phone.id, "accepted": accepted, "delivery": delivery,
        }));
        return Ok(phone);
    }
    say(5, "What became of it, as the server's report has it:\n");
    steps(&delivery, screen);
    Ok(phone)
}

/// What the reader can do after the first push.
fn finish(server: &Server, key: &str, phone: &str, once: bool, screen: &Screen) -> Result<(), Failure> {
    if screen.json {
        return Ok(());
    }
    if once {
        let next = "That was all; the server ends. `postrider demo` goes on serving and tells how to send pushes of your own,\n\
            and `postrider serve --data ./data` is a server to keep.";
        screen.line(format!("\n{next}"));
        return Ok(());
    }
    let api = Api::new(&format!("http://{}", server.at.http), key)?;
    your_turn(server, &api, key, phone, screen)
}

/// The page's address, and where others can go to it, as a picture for their cameras.
fn page_link(http: SocketAddr, screen: &Screen) {
    let link = format!("http://{http}/demo");
    screen.line(format!("\n  {link}"));
    if http.ip().is_loopback() {
        let hint = "For a phone in your network: postrider demo --lan";
        return screen.line(screen.style(Style::Dim, format!("\n  {hint}")));
    }
    screen.line("\n  Whoever is in this network can open it, and send pushes to the own device only.\n");
    if let Ok(code) = qrcode::QrCode::new(&link) {
        let picture = code.render::<qrcode::render::unicode::Dense1x2>().build();
        // Cameras want dark on light, whatever the terminal's colours are.
        let (on, off) = if screen.color { ("\x1b[30;107m", "\x1b[0m") } else { ("", "") };
        picture.lines().for_each(|line| screen.line(format!("  {on}{line}{off}")));
    }
}

fn register(api: &Api, name: &str) -> Result<(String, String), Failure> {
    let id = format!("{name}-{:04x}", OsChance.bits128() as u16);
    let answer =
        api.post("/v1/devices", &json!({ "device_id": id, "platform": "android", "tags": ["demo"] }))?;
    Ok((id, answer["device_secret"].as_str().unwrap_or_default().to_owned()))
}

/// The delivery, once the report of the phone is in it.
fn displayed(api: &Api, message: &str, device: &str) -> Result<Value, Failure> {
    let start = Instant::now();
    loop {
        let delivery = api.get(&format!("{}/deliveries/{}", message::path(message), segment(device)))?;
        if delivery["state"] == "displayed" || start.elapsed() > PATIENCE {
            return Ok(delivery);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The ladder with times and what each rung means.
fn steps(delivery: &Value, screen: &Screen) {
    let moments: Vec<&Value> = delivery["timeline"].as_array().into_iter().flatten().collect();
    let at = |moment: &Value| moment["at_unix_ms"].as_u64().unwrap_or(0);
    let start = moments.first().map_or(0, |first| at(first));
    for moment in &moments {
        let step = moment["step"].as_str().unwrap_or_default();
        let after = format!("+{}", span(at(moment).saturating_sub(start)));
        screen.line(format!("   {:>9}  {}{}", after, screen.state(step), meaning(step)));
    }
}

/// What a step means, after its name, in a column.
fn meaning(step: &str) -> String {
    let text = match step {
        "accepted" => "the server has it on disk, and only then said 202",
        "queued" => "it lies in the device's inbox, whether the device is there or not",
        "sent" => "it was written to the device's connection",
        "delivered" => "the device acknowledged it, and that is on disk too",
        "displayed" => "the app on the device says that it was shown",
        _ => "",
    };
    format!("{}{text}", " ".repeat(12_usize.saturating_sub(step.len())))
}

/// What the reader can do now, ready to be pasted.
fn your_turn(server: &Server, api: &Api, key: &str, phone: &str, screen: &Screen) -> Result<(), Failure> {
    let (own, secret) = register(api, "mine")?;
    let (http, mqtt) = (server.at.http, server.at.mqtt);
    let program = std::env::args().next().unwrap_or_else(|| "postrider".into());
    let head = |text: &str| screen.line(format!("\n{}", screen.style(Style::Bold, text)));
    let curl = |device: &str| {
        format!(
            "curl http://{http}/v1/messages -H 'Authorization: Bearer {key}' \\\n    -H 'Content-Type: application/json' \\\n    \
             -d '{{\"audience\":{{\"device\":\"{device}\"}},\"notification\":{{\"title\":\"Hi\",\"body\":\"Sent by hand\"}}}}'"
        )
    };
    head("Now you. Make your browser a device: open this page, and send yourself a push:");
    page_link(http, screen);
    head("Send the simulated phone a push of your own; it will show up here:");
    screen.line(format!("\n  {}", curl(phone)));
    head("Be a device yourself, in another terminal (it is registered already):");
    let host = mqtt.ip();
    screen.line(format!(
        "\n  mosquitto_sub -h {host} -p {} -V 5 -i {own} -u {own} -P {secret} -q 1 -t '$push/inbox'",
        mqtt.port()
    ));
    screen.line(screen.style(Style::Dim, "\n  or, without mosquitto:\n"));
    screen.line(format!("  {program} listen --mqtt {mqtt} --device {own} --secret {secret}"));
    head("and send that one something, even before it connects:");
    screen.line(format!("\n  {}", curl(&own)));
    head("See what became of a message (its id is in curl's answer):");
    screen.line(format!("\n  {program} message trace MESSAGE_ID --server http://{http} --key {key}"));
    screen.line(format!("\n{}\n", screen.style(Style::Dim, "The server goes on until you press Ctrl-C.")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_replaced_by_a_free_one() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(free(address).port(), 0);
    }

    #[test]
    fn an_address_for_all_of_the_machines_is_shown_as_one_to_go_to() {
        let shown = reachable("0.0.0.0:8080".parse().unwrap());
        assert_eq!(shown.port(), 8080);
        assert!(own_address().is_none_or(|own| own == shown.ip()));
        assert_eq!(reachable("127.0.0.1:1".parse().unwrap()), "127.0.0.1:1".parse().unwrap());
    }

    #[test]
    fn every_step_of_a_good_delivery_is_explained_in_one_column() {
        for step in ["accepted", "queued", "sent", "delivered", "displayed"] {
            let text = meaning(step);
            assert!(text.trim().len() > 10, "{step}");
            assert_eq!(step.len() + text.len() - text.trim_start().len(), 12, "{step}");
        }
    }
}
