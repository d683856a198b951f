//! Every way that this server closes a WebSocket: the one table.

use crate::Goodbye;

/// A close code (RFC 6455 §7.4), the word for logs and metrics, and what the client should make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode {
    pub code: u16,
    /// Also sent as the reason.
    pub word: &'static str,
    /// Connecting again (after a wait, with jitter) may help.
    pub may_retry: bool,
}

impl CloseCode {
    pub const NORMAL: CloseCode = CloseCode::new(1000, "normal", false);
    pub const GOING_AWAY: CloseCode = CloseCode::new(1001, "shutting_down", true);
    pub const PROTOCOL_ERROR: CloseCode = CloseCode::new(1002, "protocol_error", false);
    pub const UNSUPPORTED_DATA: CloseCode = CloseCode::new(1003, "unsupported_data", false);
    pub const INVALID_UTF8: CloseCode = CloseCode::new(1007, "invalid_utf8", false);
    pub const POLICY: CloseCode = CloseCode::new(1008, "policy", false);
    pub const TOO_LARGE: CloseCode = CloseCode::new(1009, "too_large", false);
    pub const INTERNAL_ERROR: CloseCode = CloseCode::new(1011, "internal_error", true);
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode::new(1013, "unavailable", true);
    pub const TAKEN_OVER: CloseCode = CloseCode::new(4000, "taken_over", false);
    pub const REVOKED: CloseCode = CloseCode::new(4001, "revoked", false);
    pub const NOT_AUTHORIZED: CloseCode = CloseCode::new(4002, "not_authorized", false);
    pub const KEEPALIVE: CloseCode = CloseCode::new(4003, "keepalive", true);
    pub const SLOW_READER: CloseCode = CloseCode::new(4004, "slow_reader", true);
    pub const SESSION_EXPIRED: CloseCode = CloseCode::new(4005, "session_expired", true);
    pub const QUOTA_EXCEEDED: CloseCode = CloseCode::new(4006, "quota_exceeded", false);
    pub const TOO_OFTEN: CloseCode = CloseCode::new(4007, "too_often", true);

    const fn new(code: u16, word: &'static str, may_retry: bool) -> Self {
        CloseCode { code, word, may_retry }
    }
}

/// All of them, for the documentation.
pub const CLOSE_CODES: &[CloseCode] = &[
    CloseCode::NORMAL,
    CloseCode::GOING_AWAY,
    CloseCode::PROTOCOL_ERROR,
    CloseCode::UNSUPPORTED_DATA,
    CloseCode::INVALID_UTF8,
    CloseCode::POLICY,
    CloseCode::TOO_LARGE,
    CloseCode::INTERNAL_ERROR,
    CloseCode::TRY_AGAIN_LATER,
    CloseCode::TAKEN_OVER,
    CloseCode::REVOKED,
    CloseCode::NOT_AUTHORIZED,
    CloseCode::KEEPALIVE,
    CloseCode::SLOW_READER,
    CloseCode::SESSION_EXPIRED,
    CloseCode::QUOTA_EXCEEDED,
    CloseCode::TOO_OFTEN,
];

impl From<Goodbye> for CloseCode {
    fn from(why: Goodbye) -> CloseCode {
        match why {
            Goodbye::TakenOver => CloseCode::TAKEN_OVER,
            Goodbye::ServerShuttingDown => CloseCode::GOING_AWAY,
            Goodbye::Revoked => CloseCode::REVOKED,
            Goodbye::QuotaExceeded => CloseCode::QUOTA_EXCEEDED,
            Goodbye::SlowReader => CloseCode::SLOW_READER,
            Goodbye::BadAcks => CloseCode::POLICY,
            Goodbye::Unavailable | Goodbye::Busy => CloseCode::TRY_AGAIN_LATER,
            Goodbye::SessionExpired => CloseCode::SESSION_EXPIRED,
        }
    }
}

/// Whether a peer may put this code into a close frame (§7.4.1, §7.4.2): not those that are only for reporting.
pub(super) fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_close_code_and_word_is_listed_once_and_may_be_sent() {
        for (index, one) in CLOSE_CODES.iter().enumerate() {
            assert!(may_be_sent(one.code), "{one:?}");
            for other in &CLOSE_CODES[index + 1..] {
                assert!(one.code != other.code && one.word != other.word, "{one:?} {other:?}");
            }
        }
    }
}
