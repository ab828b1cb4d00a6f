//! Operations that take each number by itself: a normalisation's scale and shift, sums, ReLU and its mask, on maps and on
//! their way into a frame and out of one.

use super::{Frame, Isa, Map};
use crate::simd::{Simd, kernel};

/// `x * scale + shift` by channel: a batch normalisation whose statistics are known.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// The factor of each channel, as many as the map's padded channels.
    pub scale: &'a [f32],
    /// What is added to each channel.
    pub shift: &'a [f32],
}

/// The scale and shift of a value that is read as it is.
const PLAIN: Affine<'static> = Affine { scale: &[], shift: &[] };

impl Affine<'_> {
    fn fits(&self, channels: usize) -> bool {
        self.scale.len() == channels && self.shift.len() == channels
    }
}

/// `to = x * scale + shift + residual`, then ReLU where asked: the parts that are given. `residual` has a scale and a shift
/// of its own where it is the input of another batch normalisation. All are maps of `channels` padded channels.
pub fn activate(
    isa: Isa,
    channels: usize,
    (x, affine): (&[f32], Option<Affine<'_>>),
    residual: Option<(&[f32], Option<Affine<'_>>)>,
    relu: bool,
    to: &mut [f32],
) {
    assert!(channels.is_multiple_of(isa.lanes()) && to.len().is_multiple_of(channels.max(1)));
    assert!(x.len() == to.len());
    assert!(affine.is_none_or(|affine| affine.fits(channels)));
    if let Some((residual, affine)) = residual {
        assert!(residual.len() == to.len());
        assert!(affine.is_none_or(|affine| affine.fits(channels)));
    }
    // SAFETY: whole vectors and equal lengths, as asserted.
    unsafe { activate_kernel(isa, channels, (x, affine), residual, relu, to) }
}

kernel! {
    fn activate_kernel(
        channels: usize, x: (&[f32], Option<Affine<'_>>), residual: Option<(&[f32], Option<Affine<'_>>)>, relu: bool,
        to: &mut [f32],
    ) = activate_body;
}

#[inline(always)]
unsafe fn activate_body<S: Simd>(
    channels: usize,
    (x, affine): (&[f32], Option<Affine<'_>>),
    residual: Option<(&[f32], Option<Affine<'_>>)>,
    relu: bool,
    to: &mut [f32],
) {
    let (other, other_affine) = residual.unwrap_or((&[], None));
    let pixels = to.len() / channels.max(1);
    let (x, other, to) = (x.as_ptr(), other.as_ptr(), to.as_mut_ptr());
    let (a, b) = (affine.unwrap_or(PLAIN), other_affine.unwrap_or(PLAIN));
    macro_rules! line {
        ($x:literal, $other:literal, $relu:literal) => {
            activate_line::<S, $x, $other, $relu>(x, a, other, b, to, pixels, channels)
        };
    }
    // SAFETY: passed on from the caller.
    unsafe {
        match (affine.is_some(), residual.map(|(_, affine)| affine.is_some()), relu) {
            (false, None, false) => line!(false, 0, false),
            (false, None, true) => line!(false, 0, true),
            (true, None, false) => line!(true, 0, false),
            (true, None, true) => line!(true, 0, true),
            (false, Some(false), false) => line!(false, 1, false),
            (false, Some(false), true) => line!(false, 1, true),
            (true, Some(false), false) => line!(true, 1, false),
            (true, Some(false), true) => line!(true, 1, true),
            (false, Some(true), false) => line!(false, 2, false),
            (false, Some(true), true) => line!(false, 2, true),
            (true, Some(true), false) => line!(true, 2, false),
            (true, Some(true), true) => line!(true, 2, true),
        }
    }
}

/// `pixels` neighbouring pixels. `OTHER` is 0 without a residual, 1 for one that is read as it is, 2 for one with an affine.
#[inline(always)]
unsafe fn activate_line<S: Simd, const AFFINE: bool, const OTHER: u8, const RELU: bool>(
    x: *const f32,
    a: Affine<'_>,
    other: *const f32,
    b: Affine<'_>,
    to: *mut f32,
    pixels: usize,
    channels: usize,
) {
    for pixel in 0..pixels {
        for c in (0..channels).step_by(S::LANES) {
            // SAFETY: the caller has `pixels` times `channels` numbers behind each pointer, and `channels` in each affine
            // that is used.
            unsafe {
                let at = pixel * channels + c;
                let mut v = S::load(x.add(at));
                if AFFINE {
                    v = S::mul_add(
                        v,
                        S::load(a.scale.as_ptr().add(c)),
                        S::load(a.shift.as_ptr().add(c)),
                    );
                }
                match OTHER {
                    1 => v = S::add(v, S::load(other.add(at))),
                    2 => {
                        let scale = S::load(b.scale.as_ptr().add(c));
                        let shifted = S::add(v, S::load(b.shift.as_ptr().add(c)));
                        v = S::mul_add(S::load(other.add(at)), scale, shifted);
                    }
                    _ => {}
                }
                S::store(to.add(at), if RELU { S::relu(v) } else { v });
            }
        }
    }
}

/// Lays a map out in a frame, through `affine` and ReLU where they are asked for; the rest of the frame becomes zero.
pub fn frame(
    isa: Isa,
    (x, map): (&[f32], &Map),
    affine: Option<Affine<'_>>,
    relu: bool,
    to: &mut [f32],
    frame: &Frame,
) {
    let to = &mut to[..frame.len()];
    assert!(x.len() == map.len() && frame.holds(map));
    assert!(frame.channels >= map.channels && affine.is_none_or(|affine| affine.fits(map.padded)));
    let (before, row) = (frame.corner * frame.channels, map.width * frame.channels);
    let mut rows = to.chunks_exact_mut(frame.line * frame.channels);
    for line in rows.by_ref().take(frame.corner) {
        line.fill(0.0);
    }
    // The frame's rows come second: `zip` asks the first iterator once more than it has.
    for (x, line) in x.chunks_exact(map.width * map.padded).zip(rows.by_ref()) {
        line[..before].fill(0.0);
        line[before + row..].fill(0.0);
        let line = &mut line[before..before + row];
        if frame.channels == map.padded {
            line_into(isa, map.padded, x, affine, relu, line);
            continue;
        }
        for (x, to) in x.chunks_exact(map.padded).zip(line.chunks_exact_mut(frame.channels)) {
            let (to, beyond) = to.split_at_mut(map.channels);
            for (c, (to, &x)) in to.iter_mut().zip(x).enumerate() {
                let y = affine.map_or(x, |affine| multiply_add(isa, x, affine, c));
                *to = if relu && y < 0.0 { 0.0 } else { y };
            }
            beyond.fill(0.0);
        }
    }
    for line in rows {
        line.fill(0.0);
    }
}

/// One number as the vectors compute it, so that a mask that is computed again is the same.
fn multiply_add(isa: Isa, x: f32, affine: Affine<'_>, c: usize) -> f32 {
    match isa {
        Isa::Portable => x * affine.scale[c] + affine.shift[c],
        #[cfg(target_arch = "x86_64")]
        _ => x.mul_add(affine.scale[c], affine.shift[c]),
    }
}

fn line_into(
    isa: Isa,
    channels: usize,
    x: &[f32],
    affine: Option<Affine<'_>>,
    relu: bool,
    to: &mut [f32],
) {
    if affine.is_none() && !relu {
        to.copy_from_slice(x);
    } else {
        activate(isa, channels, (x, affine), None, relu, to);
    }
}

/// Takes a map out of a frame: adds `bias` by channel where one is given, then ReLU where asked; with `add` the result is
/// added to what `to` holds.
pub fn unframe(
    isa: Isa,
    (from, frame): (&[f32], &Frame),
    bias: Option<&[f32]>,
    relu: bool,
    (to, map): (&mut [f32], &Map),
    add_to: bool,
) {
    assert!(to.len() == map.len() && frame.holds(map) && frame.channels >= map.channels);
    assert!(from.len() >= frame.len() && bias.is_none_or(|bias| bias.len() == map.padded));
    assert!(!(add_to && (relu || bias.is_some())));
    let lines = from.chunks_exact(frame.line * frame.channels).skip(frame.corner);
    for (to, line) in to.chunks_exact_mut(map.width * map.padded).zip(lines) {
        let line = &line[frame.corner * frame.channels..][..map.width * frame.channels];
        if frame.channels == map.padded {
            match (bias, relu, add_to) {
                (_, _, true) => add(isa, to, line),
                (None, false, false) => to.copy_from_slice(line),
                (None, true, false) => activate(isa, map.padded, (line, None), None, true, to),
                // SAFETY: whole vectors and equal lengths, as asserted above.
                (Some(bias), _, false) => unsafe { bias_kernel(isa, line, bias, relu, to) },
            }
            continue;
        }
        for (to, line) in to.chunks_exact_mut(map.padded).zip(line.chunks_exact(frame.channels)) {
            let (to, beyond) = to.split_at_mut(map.channels);
            for (c, (to, &x)) in to.iter_mut().zip(line).enumerate() {
                let y = bias.map_or(x, |bias| x + bias[c]);
                let y = if relu && y < 0.0 { 0.0 } else { y };
                *to = if add_to { *to + y } else { y };
            }
            if !add_to {
                beyond.fill(0.0);
            }
        }
    }
}

kernel! {
    fn bias_kernel(x: &[f32], bias: &[f32], relu: bool, to: &mut [f32]) = bias_body;
}

#[inline(always)]
unsafe fn bias_body<S: Simd>(x: &[f32], bias: &[f32], relu: bool, to: &mut [f32]) {
    for (x, to) in x.chunks_exact(bias.len()).zip(to.chunks_exact_mut(bias.len())) {
        for c in (0..bias.len()).step_by(S::LANES) {
            // SAFETY: `c + LANES <= bias.len()`, which both pixels have.
            unsafe {
                let v = S::add(S::load(x.as_ptr().add(c)), S::load(bias.as_ptr().add(c)));
                S::store(to.as_mut_ptr().add(c), if relu { S::relu(v) } else { v });
            }
        }
    }
}

/// `to += x`.
pub fn add(isa: Isa, to: &mut [f32], x: &[f32]) {
    assert!(x.len() == to.len());
    // SAFETY: equal lengths.
    unsafe { add_kernel(isa, to, x) }
}

kernel! {
    fn add_kernel(to: &mut [f32], x: &[f32]) = add_body;
}

#[inline(always)]
unsafe fn add_body<S: Simd>(to: &mut [f32], x: &[f32]) {
    let whole = to.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES <= len`.
        unsafe {
            let at = to.as_mut_ptr().add(i);
            S::store(at, S::add(S::load(at), S::load(x.as_ptr().add(i))));
        }
    }
    for (to, x) in to[whole..].iter_mut().zip(&x[whole..]) {
        *to += x;
    }
}

/// `max(x, 0)` in place; NaN stays NaN.
pub fn relu(isa: Isa, x: &mut [f32]) {
    // SAFETY: the kernel stays within the slice.
    unsafe { relu_kernel(isa, x) }
}

kernel! {
    fn relu_kernel(x: &mut [f32]) = relu_body;
}

#[inline(always)]
unsafe fn relu_body<S: Simd>(x: &mut [f32]) {
    let whole = x.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES <= len`.
        unsafe {
            let at = x.as_mut_ptr().add(i);
            S::store(at, S::relu(S::load(at)));
        }
    }
    for x in &mut x[whole..] {
        *x = if *x < 0.0 { 0.0 } else { *x };
    }
}

/// The gradient before a ReLU whose result was `y`: zero where `y` is not above zero.
pub fn mask_by_value(isa: Isa, gradient: &mut [f32], y: &[f32]) {
    crate::conv::pointwise::mask(isa, y, gradient);
}

/// The gradient before a ReLU that was applied to `x * scale + shift`: zero where that is not above zero.
pub fn mask_by_affine(isa: Isa, gradient: &mut [f32], x: &[f32], affine: Affine<'_>) {
    let channels = affine.scale.len();
    assert!(channels.is_multiple_of(isa.lanes()) && affine.fits(channels));
    assert!(x.len() == gradient.len() && x.len().is_multiple_of(channels.max(1)));
    // SAFETY: whole vectors and equal lengths, as asserted.
    unsafe { mask_by_affine_kernel(isa, gradient, x, affine) }
}

kernel! {
    fn mask_by_affine_kernel(gradient: &mut [f32], x: &[f32], affine: Affine<'_>) = mask_by_affine_body;
}

#[inline(always)]
unsafe fn mask_by_affine_body<S: Simd>(gradient: &mut [f32], x: &[f32], affine: Affine<'_>) {
    let channels = affine.scale.len();
    for (g, x) in gradient.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
        for c in (0..channels).step_by(S::LANES) {
            // SAFETY: `c + LANES <= channels`, which all have.
            unsafe {
                let scale = S::load(affine.scale.as_ptr().add(c));
                let shift = S::load(affine.shift.as_ptr().add(c));
                let y = S::mul_add(S::load(x.as_ptr().add(c)), scale, shift);
                let at = g.as_mut_ptr().add(c);
                S::store(at, S::where_positive(y, S::load(at)));
            }
        }
    }
}
