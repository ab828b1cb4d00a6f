//! How a layer reads a value: through the scale and shift of a normalisation, then through an activation.

/// `x * scale + shift` by channel: a batch normalisation whose statistics are known.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// The factor of each channel, as many as the map's padded channels.
    pub scale: &'a [f32],
    /// What is added to each channel.
    pub shift: &'a [f32],
}

impl Affine<'_> {
    pub(super) fn fits(&self, channels: usize) -> bool {
        self.scale.len() == channels && self.shift.len() == channels
    }
}

/// What is applied to each number behind a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// The number stays as it is.
    #[default]
    Identity,
    /// `max(x, 0)`; its derivative at 0 is 0.
    Relu,
    /// `min(max(x, 0), 6)`; its derivative at 0 and at 6 is 0.
    Relu6,
}

impl Activation {
    /// The bounds of its results; NaN for a bound that is none.
    pub(super) fn bounds(self) -> [f32; 2] {
        match self {
            Self::Identity => [f32::NAN, f32::NAN],
            Self::Relu => [0.0, f32::NAN],
            Self::Relu6 => [0.0, 6.0],
        }
    }

    /// Of one number.
    pub(super) fn of(self, x: f32) -> f32 {
        let [low, high] = self.bounds();
        if x < low {
            low
        } else if x > high {
            high
        } else {
            x
        }
    }
}

/// A value as a layer reads it: through a normalisation's scale and shift where there is one, then through an activation.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// The value as it is stored, a map.
    pub x: &'a [f32],
    /// The normalisation's scale and shift.
    pub affine: Option<Affine<'a>>,
    /// What follows them.
    pub activation: Activation,
}

impl<'a> Read<'a> {
    /// A value that is read as it is.
    pub fn plain(x: &'a [f32]) -> Self {
        Self { x, affine: None, activation: Activation::Identity }
    }

    /// Whether it is read as it is.
    pub(super) fn is_plain(&self) -> bool {
        self.affine.is_none() && self.activation == Activation::Identity
    }

    /// Some of its numbers.
    pub(super) fn part(&self, range: std::ops::Range<usize>) -> Self {
        Self { x: &self.x[range], ..*self }
    }
}
