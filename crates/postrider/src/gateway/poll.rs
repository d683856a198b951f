//! A request that waits for something to read. It has no session and gets no message here: it sleeps at the price of a
//! connection, and goes back to where it came from when the inbox has something for it, or its time is over.

use postrider_core::id::DeviceRef;
use postrider_core::port::Position;
use postrider_proto::{
    Close, Deliver, Delivered, Fanned, Goodbye, Millis, Output, Reply as ProtoReply, ServerProtocol,
};
use std::net::TcpStream;

/// Takes the socket back; false: it did not wait, since too many of its device do already (L29).
pub type GiveBack = Box<dyn FnOnce(TcpStream, bool) + Send>;

/// What waits, and for what.
pub struct Wait {
    pub device: DeviceRef,
    /// Something behind this place.
    pub position: Position,
    pub wait_ms: Millis,
    pub give_back: GiveBack,
}

/// A waiting request in a worker.
pub struct WaitingPoll {
    pub wait: Wait,
    pub until: Millis,
}

/// The whole answer to a request that the end of the server overtook.
const STOPPING: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

impl ServerProtocol for WaitingPoll {
    /// A client that does not wait for its answer is not worth a buffer.
    fn handle_bytes(&mut self, _: &[u8], _: Millis, out: &mut Output) {
        out.close = Some(Close { kind: "spoke_while_waiting", gentle: false });
    }

    fn handle_reply(&mut self, _: ProtoReply, _: Millis, _: &mut Output) {}

    fn handle_deliver(&mut self, _: &mut Fanned, _: Deliver<'_>, _: Millis, _: &mut Vec<u8>) -> Delivered {
        Delivered::NotReady
    }

    /// The driver gives it back at this time.
    fn handle_timeout(&mut self, _: Millis, _: &mut Output) {}

    fn handle_goodbye(&mut self, _: Goodbye, _: Millis, out: &mut Output) {
        out.bytes.extend_from_slice(STOPPING);
        out.close = Some(Close { kind: "shutting_down", gentle: true });
    }

    fn next_timeout(&self) -> Option<Millis> {
        Some(self.until)
    }

    fn window(&self) -> usize {
        0
    }
}
