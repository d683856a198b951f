//! Times of queries.

use super::Time;
use super::error::{ApiError, Code};
use postrider_core::id::UnixMillis;

/// A time in a query: RFC 3339, or milliseconds since 1970.
pub fn read_time(name: &'static str, text: Option<&str>) -> Result<Option<UnixMillis>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    parse_time(text).map(Some).ok_or_else(|| {
        let some = Time(1_795_867_200_000);
        Code::InvalidParameter
            .at(name, format!("`{name}` is a time like {some}, or milliseconds since 1970."))
    })
}

/// RFC 3339, or milliseconds since 1970.
pub fn parse_time(text: &str) -> Option<UnixMillis> {
    text.parse().ok().or_else(|| rfc3339(text))
}

fn rfc3339(text: &str) -> Option<UnixMillis> {
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_it_is_shown() {
        for ms in [0, 951_782_400_000, 951_868_800_000, 1_709_164_800_001, 4_107_542_400_000] {
            assert_eq!(rfc3339(&Time(ms).to_string()), Some(ms));
        }
        assert_eq!(rfc3339("2026-08-01T00:00:00Z"), Some(1_785_542_400_000));
        for bad in ["", "Z", "2026-08-01", "2026-13-01T00:00:00Z", "2026-08-01T25:00:00Z", "-1-1-1T0:0:0Z"] {
            assert_eq!(rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_read_in_both_forms() {
        let read = |text: &str| read_time("since", Some(text)).ok().flatten();
        assert_eq!(read("1795867200000"), Some(1_795_867_200_000));
        assert_eq!(read("2026-11-28T12:00:00Z"), Some(1_795_867_200_000));
        assert_eq!(read("2026-11-28T20:00:00.5+08:00"), Some(1_795_867_200_500));
        assert_eq!(read(&Time(1_795_867_200_123).to_string()), Some(1_795_867_200_123));
        assert_eq!(read("2024-02-29T00:00:00.000Z"), Some(1_709_164_800_000));
        assert!(read_time("since", None).is_ok_and(|time| time.is_none()));
        for wrong in ["yesterday", "1969-01-01T00:00:00Z", "2026-02-29T00:00:00Z", "2026-11-28T24:30:00Z", ""]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
