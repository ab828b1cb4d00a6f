//! Widths that are a factor times another one's.

use crate::{Error, Result};

/// The largest factor of a width or depth.
const MOST: f64 = 16.0;

/// Checks a factor of a network's width or depth.
pub(super) fn check_factor(field: &'static str, factor: f64) -> Result<()> {
    match factor > 0.0 && factor <= MOST {
        true => Ok(()),
        false => {
            let expected = format!("a number above 0 and at most {MOST}");
            Err(Error::Config { field, found: factor.to_string(), expected })
        }
    }
}

/// The multiple of 8 that is nearest to `channels` times `width`, at least 8 and at least 0.9 times it: `_make_divisible` of
/// TensorFlow's MobileNet (`slim/nets/mobilenet/mobilenet.py`), which torchvision and timm have, too.
pub(super) fn divisible(channels: usize, width: f64) -> usize {
    let wanted = channels as f64 * width;
    let nearest = ((wanted + 4.0) as usize / 8 * 8).max(8);
    if (nearest as f64) < 0.9 * wanted { nearest + 8 } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::divisible;

    /// torchvision's `_make_divisible(channels * width, 8)`.
    #[test]
    fn widths_are_torchvisions() {
        let found = [(32, 1.0), (16, 0.35), (24, 0.35), (32, 0.5), (96, 0.35), (1280, 1.4)];
        let found = found.map(|(channels, width)| divisible(channels, width));
        assert_eq!(found, [32, 8, 8, 16, 32, 1792]);
    }
}
