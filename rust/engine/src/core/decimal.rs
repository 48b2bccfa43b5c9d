//! Exact decimals: text to integers of a unit's smallest part and back, no binary float.

/// Why a number cannot be held exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecimalError {
    /// It has more decimals than the unit.
    TooFine,
    /// It does not fit 64 bits.
    TooLarge,
    /// It is no JSON number.
    Malformed,
}

/// `text` (a JSON number) in units of 10^-`digits`: `"344.5"` with 3 digits is 344500.
///
/// # Errors
/// [`DecimalError`] when the value is not a whole number of those units, or too large.
pub fn parse(text: &str, digits: u32) -> Result<i64, DecimalError> {
    read(text, digits, false)
}

/// The same, but what is finer than the unit is cut off: for measurements, where it says nothing.
///
/// # Errors
/// [`DecimalError`] when the value is too large.
pub fn parse_cut(text: &str, digits: u32) -> Result<i64, DecimalError> {
    read(text, digits, true)
}

fn read(text: &str, digits: u32, cut: bool) -> Result<i64, DecimalError> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent)?),
        None => (text, 0),
    };
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() {
        return Err(DecimalError::Malformed);
    }
    let mut value: i128 = 0;
    let mut scale = i64::from(digits) + exponent;
    for digit in whole.bytes() {
        value = push_digit(value, digit)?;
    }
    let fraction = fraction.trim_end_matches('0');
    // A float's digits may be more than fit; cut, only the unit's own are read.
    let kept = usize::try_from(scale.max(0)).unwrap_or(usize::MAX);
    let fraction = fraction.get(..kept).filter(|_| cut).unwrap_or(fraction);
    for digit in fraction.bytes() {
        value = push_digit(value, digit)?;
        scale -= 1;
    }
    scaled(value, scale, cut).map(|value| if negative { -value } else { value })
}

fn parse_exponent(text: &str) -> Result<i64, DecimalError> {
    // Beyond four digits no value but 0 fits; the clamp keeps "0e999999" readable.
    let digits = text.trim_start_matches(['+', '-']);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(DecimalError::Malformed);
    }
    let size = digits.parse::<i64>().unwrap_or(9999).min(9999);
    Ok(if text.starts_with('-') { -size } else { size })
}

fn push_digit(value: i128, digit: u8) -> Result<i128, DecimalError> {
    if !digit.is_ascii_digit() {
        return Err(DecimalError::Malformed);
    }
    let value = value * 10 + i128::from(digit - b'0');
    // Room for 18 more digits of scaling in 128 bits.
    if value > 10_i128.pow(20) {
        Err(DecimalError::TooLarge)
    } else {
        Ok(value)
    }
}

fn scaled(value: i128, scale: i64, cut: bool) -> Result<i64, DecimalError> {
    if value == 0 {
        return Ok(0);
    }
    let power = u32::try_from(scale.unsigned_abs()).unwrap_or(u32::MAX);
    let value = if scale >= 0 {
        if power > 18 {
            return Err(DecimalError::TooLarge);
        }
        value * 10_i128.pow(power)
    } else {
        let unit = if power > 30 {
            i128::MAX
        } else {
            10_i128.pow(power)
        };
        if value % unit != 0 && !cut {
            return Err(DecimalError::TooFine);
        }
        value / unit
    };
    i64::try_from(value).map_err(|_| DecimalError::TooLarge)
}

/// Appends `value` units of 10^-`digits` as a JSON number without trailing zeros.
pub fn write(out: &mut Vec<u8>, value: i64, digits: u32) {
    if value < 0 {
        out.push(b'-');
    }
    let unit = 10_u64.pow(digits.min(18));
    let value = value.unsigned_abs();
    super::json::write_digits(out, value / unit);
    let mut fraction = value % unit;
    if fraction == 0 {
        return;
    }
    out.push(b'.');
    let mut place = unit / 10;
    while fraction > 0 {
        super::json::write_digits(out, fraction / place);
        fraction %= place;
        place /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_exactly() {
        assert_eq!(parse("344.5", 3), Ok(344_500));
        assert_eq!(parse("0.1", 3), Ok(100));
        assert_eq!(parse("1e2", 2), Ok(10_000));
        assert_eq!(parse("12.3400", 2), Ok(1_234));
        assert_eq!(parse("-2.50", 2), Ok(-250));
        assert_eq!(parse("9223372036854775807", 0), Ok(i64::MAX));
        assert_eq!(parse("0e99999999999999999999", 2), Ok(0));
        assert_eq!(parse("1.001", 2), Err(DecimalError::TooFine));
        assert_eq!(parse("9223372036854775808", 0), Err(DecimalError::TooLarge));
        assert_eq!(parse("1e400", 0), Err(DecimalError::TooLarge));
        assert_eq!(parse("1e-400", 0), Err(DecimalError::TooFine));
        assert_eq!(parse("12a", 0), Err(DecimalError::Malformed));
    }

    #[test]
    fn cuts_what_is_finer_than_the_unit() {
        assert_eq!(parse_cut("2.1999999999999957", 3), Ok(2_199));
        assert_eq!(parse_cut("0.30000000000000004440892098500626", 3), Ok(300));
        assert_eq!(parse_cut("21999e-4", 3), Ok(2_199));
        assert_eq!(parse_cut("1.2345e2", 3), Ok(123_450));
        assert_eq!(parse_cut("-0.0004", 3), Ok(0));
        assert_eq!(parse_cut("1e-400", 3), Ok(0));
        assert_eq!(parse_cut("7", 3), Ok(7_000));
        assert_eq!(parse_cut("1e400", 3), Err(DecimalError::TooLarge));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(value in i64::MIN + 1..=i64::MAX, digits in 0u32..7) {
            let mut out = Vec::new();
            write(&mut out, value, digits);
            let text = String::from_utf8(out).expect("ASCII");
            prop_assert_eq!(parse(&text, digits), Ok(value), "{}", text);
            prop_assert_eq!(parse_cut(&text, digits), Ok(value), "{}", text);
        }
    }
}
