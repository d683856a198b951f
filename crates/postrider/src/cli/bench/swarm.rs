//! The receiving side of the benchmark: many devices over MQTT in one loop on one thread.

use super::Shared;
use super::publish::Credentials;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use postrider_core::access::INBOX_TOPIC;
use postrider_proto::mqtt::{ClientConfig, ClientConnection, ClientEvent, ClientOutput};
use postrider_proto::{Qos, Subscription};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Connections being opened at once: more would overflow the listener's queue.
const OPENING_MAX: usize = 256;
/// How long connecting may stand still.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// What arrived.
#[derive(Debug, Default)]
pub struct Received {
    /// Messages that arrived, each counted once.
    pub once: u64,
    pub repeated: u64,
    /// Messages at a device that they were not for, or that nobody sent.
    pub strays: u64,
    /// When the last one arrived.
    pub last_micros: u64,
    /// From the request's making to the arrival.
    pub latencies: Vec<u32>,
}

struct Device {
    stream: TcpStream,
    connection: ClientConnection,
    /// Not yet taken by the kernel.
    out: Vec<u8>,
    ready: bool,
}

pub struct Swarm {
    poll: Poll,
    devices: Vec<Device>,
    ready: usize,
    /// A bit for each message.
    arrived: Vec<u64>,
    received: Received,
    start: Instant,
    scratch: Vec<u8>,
    output: ClientOutput,
}

impl Swarm {
    /// Connects all, and subscribes each to its inbox.
    pub fn connect(address: &str, all: &[Credentials], messages: u64) -> io::Result<Swarm> {
        let address = address.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
        let mut swarm = Swarm {
            poll: Poll::new()?,
            devices: Vec::with_capacity(all.len()),
            ready: 0,
            arrived: vec![0; (messages as usize).div_ceil(64)],
            received: Received::default(),
            start: Instant::now(),
            scratch: vec![0; 256 * 1024],
            output: ClientOutput::default(),
        };
        let mut events = Events::with_capacity(1_024);
        let mut progress = (0, Instant::now());
        while swarm.ready < all.len() {
            while swarm.devices.len() < all.len() && swarm.devices.len() - swarm.ready < OPENING_MAX {
                swarm.open(address, &all[swarm.devices.len()])?;
            }
            swarm.turn(&mut events, None)?;
            if swarm.ready > progress.0 {
                progress = (swarm.ready, Instant::now());
            } else if progress.1.elapsed() > CONNECT_PATIENCE {
                return Err(io::Error::other(format!(
                    "only {} of {} devices got connected",
                    swarm.ready,
                    all.len()
                )));
            }
        }
        Ok(swarm)
    }

    fn open(&mut self, address: SocketAddr, who: &Credentials) -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        let token = Token(self.devices.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let config = ClientConfig {
            client_id: who.id.as_str().into(),
            user: Some(who.id.as_str().into()),
            password: Some(who.secret.clone().into_bytes().into()),
            keepalive_secs: 0,
            session_expiry_secs: Some(0),
            ..ClientConfig::default()
        };
        let mut connection = ClientConnection::new(Arc::new(config));
        let mut out = Vec::new();
        connection.connect(0, &mut out);
        self.devices.push(Device { stream, connection, out, ready: false });
        Ok(())
    }

    /// Takes what arrives until all that was accepted is there, or nothing comes any more.
    pub fn receive(&mut self, shared: &Shared, patience: Duration) -> io::Result<Received> {
        let mut events = Events::with_capacity(4_096);
        let mut progress = (0, Instant::now());
        loop {
            self.turn(&mut events, Some(shared))?;
            let done = shared.publishing_done.load(Ordering::Acquire);
            if done && self.received.once >= shared.accepted.load(Ordering::Acquire) {
                return Ok(std::mem::take(&mut self.received));
            }
            if self.received.once > progress.0 || !done {
                progress = (self.received.once, Instant::now());
            } else if progress.1.elapsed() > patience {
                return Ok(std::mem::take(&mut self.received));
            }
        }
    }

    fn turn(&mut self, events: &mut Events, shared: Option<&Shared>) -> io::Result<()> {
        // Short, since the end of the publishing is told by a flag and not by an event.
        match self.poll.poll(events, Some(Duration::from_millis(2))) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in events.iter() {
            let index = event.token().0;
            if event.is_readable() {
                self.read(index, shared)?;
            }
            self.flush(index)?;
        }
        Ok(())
    }

    /// Reads until the kernel has no more: readiness is told once only.
    fn read(&mut self, index: usize, shared: Option<&Shared>) -> io::Result<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = loop {
            match self.devices[index].stream.read(&mut scratch) {
                Ok(0) => break Err(lost(index, "the server closed the connection")),
                Ok(n) => {
                    if let Err(error) = self.take(index, &scratch[..n], shared) {
                        break Err(error);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.scratch = scratch;
        result
    }

    fn take(&mut self, index: usize, bytes: &[u8], shared: Option<&Shared>) -> io::Result<()> {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut output = std::mem::take(&mut self.output);
        let device = &mut self.devices[index];
        device.connection.handle_bytes(bytes, now, &mut output);
        device.out.append(&mut output.bytes);
        let closed = output.close.take();
        for event in output.events.drain(..) {
            self.note(index, event, now, shared)?;
        }
        self.output = output;
        closed.map_or(Ok(()), |why| Err(lost(index, why)))
    }

    fn note(
        &mut self,
        index: usize,
        event: ClientEvent,
        now: u64,
        shared: Option<&Shared>,
    ) -> io::Result<()> {
        match event {
            ClientEvent::Connected { .. } => {
                let device = &mut self.devices[index];
                let filter = vec![Subscription::new(INBOX_TOPIC, Qos::AtLeastOnce)];
                device.connection.subscribe(filter, None, now, &mut device.out);
            }
            ClientEvent::Subscribed { codes, .. } => {
                if codes.first().is_none_or(|code| *code >= 0x80) {
                    return Err(lost(index, "the subscription was refused"));
                }
                self.ready += usize::from(!std::mem::replace(&mut self.devices[index].ready, true));
            }
            ClientEvent::Refused { code, .. } => {
                return Err(lost(index, &format!("refused with code {code:#04x}")));
            }
            ClientEvent::Disconnected { code, .. } => {
                return Err(lost(index, &format!("sent away with code {code:#04x}")));
            }
            ClientEvent::Message { publish, .. } => {
                if let Some(shared) = shared {
                    self.arrived(index, &publish.payload, shared.now_micros());
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn arrived(&mut self, index: usize, payload: &[u8], now: u64) {
        let received = &mut self.received;
        let number = field(payload, b"\"n\":").filter(|n| (*n as usize) < self.arrived.len() * 64);
        let Some(number) = number.filter(|n| n % self.devices.len() as u64 == index as u64) else {
            received.strays += 1;
            return;
        };
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if self.arrived[word] & bit != 0 {
            received.repeated += 1;
            return;
        }
        self.arrived[word] |= bit;
        received.once += 1;
        received.last_micros = now;
        if let Some(sent) = field(payload, b"\"t\":") {
            received.latencies.push(u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX));
        }
    }

    fn flush(&mut self, index: usize) -> io::Result<()> {
        let device = &mut self.devices[index];
        while !device.out.is_empty() {
            match device.stream.write(&device.out) {
                Ok(n) => drop(device.out.drain(..n)),
                // Not connected yet, or full: the next event comes when it is not.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn lost(index: usize, why: &str) -> io::Error {
    io::Error::other(format!("device {index}: {why}"))
}

/// The number after a name in JSON that was written here, and is known to have it once.
fn field(payload: &[u8], name: &[u8]) -> Option<u64> {
    let at = payload.windows(name.len()).position(|window| window == name)?;
    let digits = payload[at + name.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |number, digit| Some(number.unwrap_or(0_u64) * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_an_envelope() {
        let payload = br#"{"app":"default","data":{"n":120,"t":7,"x":"xx"},"id":"5"}"#;
        assert_eq!((field(payload, b"\"n\":"), field(payload, b"\"t\":")), (Some(120), Some(7)));
        assert_eq!(field(payload, b"\"q\":"), None);
        assert_eq!(field(b"\"n\":x", b"\"n\":"), None);
    }
}
