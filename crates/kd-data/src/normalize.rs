//! Normalisation: how pixel bytes become network inputs.

use crate::{Error, Result};

/// Mean and standard deviation of each colour, on a scale from 0 to 1: a byte becomes the input
/// `(byte / 255 - mean) / std`, as torchvision's `ToTensor` and `Normalize` compute it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Mean of red, green and blue.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue; above 0.
    pub std: [f32; 3],
}

impl Default for Normalization {
    /// ImageNet's mean and deviation, which PyTorch's tutorial on knowledge distillation uses.
    fn default() -> Self {
        Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }
}

impl Normalization {
    /// The input for a byte of colour channel `channel`: 0 for red, 1 for green, 2 for blue.
    ///
    /// # Panics
    /// Where `channel` is above 2.
    pub fn apply(&self, channel: usize, byte: u8) -> f32 {
        (f32::from(byte) / 255.0 - self.mean[channel]) / self.std[channel]
    }

    /// The inputs of all 256 bytes, for each channel: looking one up is faster than two divisions.
    pub(crate) fn table(&self) -> Table {
        std::array::from_fn(|channel| std::array::from_fn(|byte| self.apply(channel, byte as u8)))
    }

    /// Refuses figures that would make inputs infinite or NaN.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |field, found: &[f32; 3], expected: &str| {
            Err(Error::Config { field, found: format!("{found:?}"), expected: expected.into() })
        };
        if !self.mean.iter().all(|mean| mean.is_finite()) {
            return wrong("normalization.mean", &self.mean, "three finite numbers");
        }
        if !self.std.iter().all(|std| std.is_finite() && *std > 0.0) {
            return wrong("normalization.std", &self.std, "three finite numbers above 0");
        }
        Ok(())
    }
}

/// The change of each colour channel, `scale * x + shift`, from images of one normalisation to those of another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Renormalize {
    /// The factor of red, green and blue.
    pub scale: [f32; 3],
    /// What is then added.
    pub shift: [f32; 3],
}

impl Renormalize {
    /// From `x = (p - m) / s` to `(p - m') / s' = s / s' * x + (m - m') / s'`; `None` where both normalisations are the same.
    pub fn between(from: Normalization, to: Normalization) -> Option<Self> {
        if from == to {
            return None;
        }
        let f = f64::from;
        let scale = |c: usize| (f(from.std[c]) / f(to.std[c])) as f32;
        let shift = |c: usize| ((f(from.mean[c]) - f(to.mean[c])) / f(to.std[c])) as f32;
        Some(Self { scale: [0, 1, 2].map(scale), shift: [0, 1, 2].map(shift) })
    }
}

/// The input of each byte, by channel.
pub(crate) type Table = [[f32; 256]; 3];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_numbers_worked_out_by_hand() {
        let normalization = Normalization::default();
        // Black: -0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225.
        // White: 0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225. 51 is a fifth of 255.
        let expected = [
            (0, 0, -2.117_904),
            (1, 0, -2.035_714),
            (2, 0, -1.804_444),
            (0, 255, 2.248_908),
            (1, 255, 2.428_571),
            (2, 255, 2.64),
            (0, 51, -1.244_541),
            (1, 51, -1.142_857),
            (2, 51, -0.915_556),
        ];
        let table = normalization.table();
        for (channel, byte, value) in expected {
            let found = table[channel][usize::from(byte)];
            assert!((found - value).abs() < 2e-6, "channel {channel}, byte {byte}: {found}");
            assert_eq!(found, normalization.apply(channel, byte));
        }
    }

    #[test]
    fn a_deviation_of_zero_is_refused() {
        let wrong = Normalization { std: [0.2, 0.0, 0.2], ..Normalization::default() };
        let message = wrong.check().unwrap_err().to_string();
        assert!(message.contains("normalization.std is [0.2, 0.0, 0.2]"), "{message}");
        assert!(Normalization { mean: [f32::NAN; 3], ..Normalization::default() }.check().is_err());
        assert!(Normalization::default().check().is_ok());
    }

    #[test]
    fn every_byte_becomes_the_other_normalisations_input() {
        let from = Normalization { mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] };
        let to = Normalization::default();
        let change = Renormalize::between(from, to).unwrap();
        for channel in 0..3 {
            for byte in 0..=255 {
                let found =
                    change.scale[channel] * from.apply(channel, byte) + change.shift[channel];
                let expected = to.apply(channel, byte);
                assert!((found - expected).abs() < 2e-6, "{channel} {byte}: {found} {expected}");
            }
        }
        assert_eq!(Renormalize::between(to, to), None);
    }
}
