//! Times: RFC 3339 outside, epoch milliseconds inside, and the local day of a market's zone.

const DAY_MS: i64 = 86_400_000;

/// Reads an RFC 3339 date-time; a fraction finer than a millisecond is cut.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let b = text.as_bytes();
    let fixed = b.get(..19)?;
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|&(at, byte)| fixed[at] != byte)
        || !matches!(fixed[10], b'T' | b't' | b' ')
    {
        return None;
    }
    let (year, month, day) = (number(&b[..4])?, number(&b[5..7])?, number(&b[8..10])?);
    let (hour, minute, second) = (
        number(&b[11..13])?,
        number(&b[14..16])?,
        number(&b[17..19])?,
    );
    // A leap second (:60) is read as the second after it.
    if !(1..=12).contains(&month)
        || !(1..=days_in_month(year, month)).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let (ms, rest) = fraction_ms(&b[19..])?;
    let offset_minutes = offset_minutes(rest)?;
    let days = days_from_civil(year, month, day);
    let seconds = hour * 3600 + minute * 60 + second - offset_minutes * 60;
    Some(days * DAY_MS + seconds * 1000 + ms)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |value, b| {
        b.is_ascii_digit().then(|| value * 10 + i64::from(b - b'0'))
    })
}

fn fraction_ms(rest: &[u8]) -> Option<(i64, &[u8])> {
    let Some((b'.', digits)) = rest.split_first() else {
        return Some((0, rest));
    };
    let len = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    if len == 0 {
        return None;
    }
    let ms = (0..3).fold(0, |ms, at| {
        ms * 10
            + if at < len {
                i64::from(digits[at] - b'0')
            } else {
                0
            }
    });
    Some((ms, &digits[len..]))
}

fn offset_minutes(rest: &[u8]) -> Option<i64> {
    match rest {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = hours * 60 + minutes;
            Some(if *sign == b'-' { -offset } else { offset })
        }
        _ => None,
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a proleptic Gregorian date, counting years from March so that the
/// leap day comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// Appends `ms` as RFC 3339 in UTC with milliseconds, quotes not included. Years outside
/// 0000..9999 are held to that range.
pub fn write_rfc3339(out: &mut Vec<u8>, ms: i64) {
    const MIN_MS: i64 = -62_167_219_200_000;
    const MAX_MS: i64 = 253_402_300_799_999;
    let ms = ms.clamp(MIN_MS, MAX_MS);
    let (year, month, day) = civil_from_days(ms.div_euclid(DAY_MS));
    let of_day = ms.rem_euclid(DAY_MS);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    put(&mut text, 0, year / 100);
    put(&mut text, 2, year % 100);
    put(&mut text, 5, month);
    put(&mut text, 8, day);
    put(&mut text, 11, of_day / 3_600_000);
    put(&mut text, 14, of_day / 60_000 % 60);
    put(&mut text, 17, of_day / 1_000 % 60);
    put(&mut text, 21, of_day % 100);
    text[20] = PAIRS[of_day as usize % 1_000 / 100][1];
    out.extend_from_slice(&text);
}

/// The decimal digits of 0 to 99.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number] = [b'0' + number as u8 / 10, b'0' + number as u8 % 10];
        number += 1;
    }
    pairs
};

fn put(text: &mut [u8; 24], at: usize, value: i64) {
    // Every value here lies in 0..100.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let pair = PAIRS[value as usize % 100];
    text[at..at + 2].copy_from_slice(&pair);
}

/// A time zone as its changes of UTC offset, worked out beforehand: the engine reads no files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// `(from_ms, offset_ms)`, ascending; the first holds from the beginning of time.
    changes: Vec<(i64, i64)>,
}

impl Zone {
    /// Builds a zone from `(from_ms, offset_ms)` pairs; `None` if they are empty or not ascending.
    #[must_use]
    pub fn new(changes: Vec<(i64, i64)>) -> Option<Self> {
        let ascending = changes.windows(2).all(|pair| pair[0].0 < pair[1].0);
        (ascending && !changes.is_empty()).then_some(Self { changes })
    }

    fn offset_ms(&self, ms: i64) -> i64 {
        // Today's signals fall behind the last change nearly always.
        let mut at = self.changes.len() - 1;
        while at > 0 && self.changes[at].0 > ms {
            at -= 1;
        }
        self.changes[at].1
    }

    /// The local calendar day of a time, in days since 1970-01-01.
    #[must_use]
    pub fn local_day(&self, ms: i64) -> i64 {
        (ms + self.offset_ms(ms)).div_euclid(DAY_MS)
    }

    /// The same local time of day, `days` calendar days later.
    #[must_use]
    pub fn plus_days(&self, ms: i64, days: i64) -> i64 {
        let local = ms + self.offset_ms(ms) + days * DAY_MS;
        let guess = local - self.offset_ms(ms);
        local - self.offset_ms(guess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_rfc3339() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(
            parse_rfc3339("2026-11-24T20:14:43.123Z"),
            Some(1_795_551_283_123)
        );
        assert_eq!(
            parse_rfc3339("2026-11-24T23:14:43.1239+03:00"),
            Some(1_795_551_283_123)
        );
        assert_eq!(
            parse_rfc3339("2024-02-29T00:00:00Z"),
            Some(1_709_164_800_000)
        );
        for bad in [
            "",
            "2026-11-24",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T20:14:43",
            "2026-11-24T20:14:43.Z",
            "2026-11-24T20:14:43+3:00",
            "2026-11-24T20:14:43Zx",
            "2026-11-2éT20:14:43Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(ms in -62_167_219_200_000_i64..253_402_300_800_000) {
            let mut out = Vec::new();
            write_rfc3339(&mut out, ms);
            let text = String::from_utf8(out).expect("ASCII");
            prop_assert_eq!(parse_rfc3339(&text), Some(ms), "{}", text);
        }

        #[test]
        fn any_text_ends_without_panic(text: String) {
            let _ = parse_rfc3339(&text);
        }
    }

    #[test]
    fn the_local_day_turns_at_local_midnight() {
        let nairobi = Zone::new(vec![(i64::MIN, 3 * 3_600_000)]).expect("one change");
        let before = parse_rfc3339("2026-11-24T20:59:59.999Z").expect("valid");
        assert_eq!(nairobi.local_day(before) + 1, nairobi.local_day(before + 1));
    }

    #[test]
    fn a_day_later_keeps_the_local_time_over_a_change_of_offset() {
        let hour = 3_600_000;
        let zone = Zone::new(vec![(i64::MIN, 0), (10 * DAY_MS, hour)]).expect("ascending");
        assert_eq!(
            zone.plus_days(9 * DAY_MS + 12 * hour, 1),
            10 * DAY_MS + 11 * hour
        );
    }
}
