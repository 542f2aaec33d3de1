//! Whether a payload is compressed: from what a sample of it came to, how fast the compressor was, and how fast the link is. Pure.
//!
//! ```text
//!   raw          bytes / link
//!   compressed   bytes / compressor  +  ratio * bytes / link
//! ```
//!
//! The two times are compared as if one followed the other, also where the next payload is compressed while this one is on its way: a
//! guest may wait for this one, and the processor has other work. So a link faster than the compressor never gets anything
//! compressed, and a slow one whatever shrinks.

use std::time::Duration;

/// What does not shrink to this is sent as it is: expanding it costs the receiver time, too.
pub const RATIO_MAX: f64 = 0.9;

/// Bytes per second of the compressor before it was measured: zstd's fastest level, on a slow machine.
pub const COMPRESSOR_ASSUMED: f64 = 200e6;

/// From this round trip on a link that was not measured is taken for one between providers.
const FAR: Duration = Duration::from_millis(5);

/// Bytes per second of a link between providers before it was measured.
const FAR_ASSUMED: f64 = 12.5e6;

/// Bytes per second of a link within a provider before it was measured.
const NEAR_ASSUMED: f64 = 1.25e9;

/// How fast a link is, in bytes per second: as measured, else by its round trip.
#[must_use]
pub fn link_rate(measured: Option<f64>, rtt: Option<Duration>) -> f64 {
    let assumed = if rtt.is_some_and(|rtt| rtt >= FAR) { FAR_ASSUMED } else { NEAR_ASSUMED };
    measured.unwrap_or(assumed)
}

/// Whether compressing pays that makes `ratio` of each byte, at `compressor` bytes per second if that was measured, for a link of
/// `link` bytes per second.
#[must_use]
pub fn pays(ratio: f64, compressor: Option<f64>, link: f64) -> bool {
    let compressor = compressor.unwrap_or(COMPRESSOR_ASSUMED);
    ratio < RATIO_MAX && 1.0 / compressor + ratio / link < 1.0 / link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shrinks_is_compressed_where_the_compressor_is_faster_than_the_link() {
        for (ratio, compressor, link, expected) in [
            (0.3, Some(500e6), 12e6, true),
            (0.3, Some(500e6), 300e6, true),
            (0.3, Some(500e6), 400e6, false),
            (0.3, Some(500e6), 1e9, false),
            (0.85, Some(500e6), 12e6, true),
            (0.85, Some(500e6), 100e6, false),
            (0.95, Some(500e6), 1e3, false),
            (1.01, Some(500e6), 1e3, false),
            (0.3, None, 12e6, true),
            (0.3, None, 190e6, false),
        ] {
            assert_eq!(pays(ratio, compressor, link), expected, "{ratio}, {compressor:?}, {link}");
        }
    }

    #[test]
    fn a_link_that_was_not_measured_is_judged_by_its_distance() {
        let ms = Duration::from_millis;
        assert_eq!(link_rate(Some(7.0), Some(ms(60))), 7.0);
        assert!(pays(0.5, None, link_rate(None, Some(ms(60)))), "between providers");
        assert!(!pays(0.5, None, link_rate(None, Some(ms(1)))) && !pays(0.5, None, link_rate(None, None)));
    }
}
