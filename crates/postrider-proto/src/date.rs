//! Times as text.

/// Milliseconds since 1970 as a date and time in UTC, to the millisecond (RFC 3339; XEP-0082).
pub fn date_time(millis: u64) -> String {
    let (days, in_day) = ((millis / 86_400_000) as i64, millis % 86_400_000);
    // Days since 0000-03-01, so that the leap day is the last of its year; in eras of 400 years, which have 146,097 days.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // March is 0; months from there have 153 days in each five.
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, ms) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day % 60_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:03}Z", ms / 1_000, ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_utc() {
        assert_eq!(date_time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(date_time(951_827_696_789), "2000-02-29T12:34:56.789Z");
        assert_eq!(date_time(4_107_542_399_999), "2100-02-28T23:59:59.999Z");
    }
}
