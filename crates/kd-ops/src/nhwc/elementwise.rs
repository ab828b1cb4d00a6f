//! Operations that take each number by itself: a normalisation's scale and shift, sums, activations and their masks, on maps and on
//! their way into a frame and out of one.

use super::{Activation, Affine, Frame, Isa, Map, Read};
use crate::simd::{Simd, kernel};

/// The scale and shift of a value that is read as it is.
const PLAIN: Affine<'static> = Affine { scale: &[], shift: &[] };

/// `to = x * scale + shift + residual`, then the activation: the parts that are given. `residual` has a scale and a shift
/// of its own where it is the input of another batch normalisation. All are maps of `channels` padded channels.
pub fn activate(
    isa: Isa,
    channels: usize,
    Read { x, affine, activation }: Read<'_>,
    residual: Option<(&[f32], Option<Affine<'_>>)>,
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
    unsafe { activate_kernel(isa, channels, (x, affine), residual, activation.bounds(), to) }
}

kernel! {
    fn activate_kernel(
        channels: usize, x: (&[f32], Option<Affine<'_>>), residual: Option<(&[f32], Option<Affine<'_>>)>,
        bounds: [f32; 2], to: &mut [f32],
    ) = activate_body;
}

#[inline(always)]
unsafe fn activate_body<S: Simd>(
    channels: usize,
    (x, affine): (&[f32], Option<Affine<'_>>),
    residual: Option<(&[f32], Option<Affine<'_>>)>,
    bounds: [f32; 2],
    to: &mut [f32],
) {
    let (other, other_affine) = residual.unwrap_or((&[], None));
    let pixels = to.len() / channels.max(1);
    let (x, other, to) = (x.as_ptr(), other.as_ptr(), to.as_mut_ptr());
    let (a, b) = (affine.unwrap_or(PLAIN), other_affine.unwrap_or(PLAIN));
    macro_rules! line {
        ($x:literal, $other:literal) => {
            activate_line::<S, $x, $other>(x, a, other, b, to, bounds, [pixels, channels])
        };
    }
    // SAFETY: passed on from the caller.
    unsafe {
        match (affine.is_some(), residual.map(|(_, affine)| affine.is_some())) {
            (false, None) => line!(false, 0),
            (true, None) => line!(true, 0),
            (false, Some(false)) => line!(false, 1),
            (true, Some(false)) => line!(true, 1),
            (false, Some(true)) => line!(false, 2),
            (true, Some(true)) => line!(true, 2),
        }
    }
}

/// `pixels` neighbouring pixels. `OTHER` is 0 without a residual, 1 for one that is read as it is, 2 for one with an affine.
#[inline(always)]
unsafe fn activate_line<S: Simd, const AFFINE: bool, const OTHER: u8>(
    x: *const f32,
    a: Affine<'_>,
    other: *const f32,
    b: Affine<'_>,
    to: *mut f32,
    [low, high]: [f32; 2],
    [pixels, channels]: [usize; 2],
) {
    // SAFETY: it reads no memory.
    let (low, high) = unsafe { (S::splat(low), S::splat(high)) };
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
                S::store(to.add(at), S::clamp(v, low, high));
            }
        }
    }
}

/// Lays a map out in a frame as it is read; the rest of the frame becomes zero.
pub(super) fn frame(isa: Isa, (read, map): (Read<'_>, &Map), to: &mut [f32], frame: &Frame) {
    let to = &mut to[..frame.len()];
    let Read { x, affine, activation } = read;
    assert!(x.len() == map.len() && frame.holds(map));
    assert!(frame.channels >= map.channels && affine.is_none_or(|affine| affine.fits(map.padded)));
    let (before, row) = (frame.left * frame.channels, map.width * frame.channels);
    let mut rows = to.chunks_exact_mut(frame.line * frame.channels);
    for line in rows.by_ref().take(frame.top) {
        line.fill(0.0);
    }
    // The frame's rows come second: `zip` asks the first iterator once more than it has.
    for (x, line) in x.chunks_exact(map.width * map.padded).zip(rows.by_ref()) {
        line[..before].fill(0.0);
        line[before + row..].fill(0.0);
        let line = &mut line[before..before + row];
        if frame.channels == map.padded {
            copy_read(isa, map.padded, Read { x, ..read }, line);
            continue;
        }
        for (x, to) in x.chunks_exact(map.padded).zip(line.chunks_exact_mut(frame.channels)) {
            let (to, beyond) = to.split_at_mut(map.channels);
            for (c, (to, &x)) in to.iter_mut().zip(x).enumerate() {
                let y = affine.map_or(x, |affine| multiply_add(isa, x, affine, c));
                *to = activation.of(y);
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

/// Some pixels of a value as it is read.
pub(super) fn copy_read(isa: Isa, channels: usize, read: Read<'_>, to: &mut [f32]) {
    match read.is_plain() {
        true => to.copy_from_slice(read.x),
        false => activate(isa, channels, read, None, to),
    }
}

/// Takes a map out of a frame: adds `bias` by channel where one is given, then the activation; with `add_to` the result is
/// added to what `to` holds.
pub(super) fn unframe(
    isa: Isa,
    (from, frame): (&[f32], &Frame),
    (bias, activation): (Option<&[f32]>, Activation),
    (to, map): (&mut [f32], &Map),
    add_to: bool,
) {
    let plain = activation == Activation::Identity;
    assert!(to.len() == map.len() && frame.holds(map) && frame.channels >= map.channels);
    assert!(from.len() >= frame.len() && bias.is_none_or(|bias| bias.len() == map.padded));
    assert!(!add_to || (plain && bias.is_none()));
    let lines = from.chunks_exact(frame.line * frame.channels).skip(frame.top);
    for (to, line) in to.chunks_exact_mut(map.width * map.padded).zip(lines) {
        let line = &line[frame.left * frame.channels..][..map.width * frame.channels];
        if frame.channels == map.padded {
            match add_to {
                true => add(isa, to, line),
                false if bias.is_none() && plain => to.copy_from_slice(line),
                false => {
                    to.copy_from_slice(line);
                    bias_activation(isa, map.padded, bias, activation, to);
                }
            }
            continue;
        }
        for (to, line) in to.chunks_exact_mut(map.padded).zip(line.chunks_exact(frame.channels)) {
            let (to, beyond) = to.split_at_mut(map.channels);
            for (c, (to, &x)) in to.iter_mut().zip(line).enumerate() {
                let y = bias.map_or(x, |bias| x + bias[c]);
                *to = if add_to { *to + y } else { activation.of(y) };
            }
            if !add_to {
                beyond.fill(0.0);
            }
        }
    }
}

/// Adds `bias` by channel where one is given, then the activation, in place.
pub(super) fn bias_activation(
    isa: Isa,
    channels: usize,
    bias: Option<&[f32]>,
    activation: Activation,
    x: &mut [f32],
) {
    assert!(channels.is_multiple_of(isa.lanes()) && x.len().is_multiple_of(channels.max(1)));
    assert!(bias.is_none_or(|bias| bias.len() == channels));
    match bias {
        // SAFETY: whole vectors, as asserted.
        Some(bias) => unsafe { bias_kernel(isa, bias, activation.bounds(), x) },
        None => self::activation(isa, activation, x),
    }
}

kernel! {
    fn bias_kernel(bias: &[f32], bounds: [f32; 2], x: &mut [f32]) = bias_body;
}

#[inline(always)]
unsafe fn bias_body<S: Simd>(bias: &[f32], [low, high]: [f32; 2], x: &mut [f32]) {
    // SAFETY: it reads no memory.
    let (low, high) = unsafe { (S::splat(low), S::splat(high)) };
    for x in x.chunks_exact_mut(bias.len()) {
        for c in (0..bias.len()).step_by(S::LANES) {
            // SAFETY: `c + LANES <= bias.len()`, which the pixel has.
            unsafe {
                let at = x.as_mut_ptr().add(c);
                let v = S::add(S::load(at), S::load(bias.as_ptr().add(c)));
                S::store(at, S::clamp(v, low, high));
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

/// An activation in place; NaN stays NaN.
pub fn activation(isa: Isa, activation: Activation, x: &mut [f32]) {
    if activation != Activation::Identity {
        // SAFETY: the kernel stays within the slice.
        unsafe { activation_kernel(isa, activation, x) }
    }
}

kernel! {
    fn activation_kernel(activation: Activation, x: &mut [f32]) = activation_body;
}

#[inline(always)]
unsafe fn activation_body<S: Simd>(activation: Activation, x: &mut [f32]) {
    let [low, high] = activation.bounds();
    let whole = x.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES <= len`.
        unsafe {
            let at = x.as_mut_ptr().add(i);
            S::store(at, S::clamp(S::load(at), S::splat(low), S::splat(high)));
        }
    }
    for x in &mut x[whole..] {
        *x = activation.of(*x);
    }
}

/// The gradient before an activation whose result was `y`: zero where `y` is not within its bounds.
pub fn mask_by_value(isa: Isa, gradient: &mut [f32], y: &[f32], activation: Activation) {
    assert!(y.len() == gradient.len() && y.len().is_multiple_of(isa.lanes()));
    if activation != Activation::Identity {
        // SAFETY: whole vectors and equal lengths.
        unsafe { mask_by_value_kernel(isa, gradient, y, activation.bounds()) }
    }
}

kernel! {
    fn mask_by_value_kernel(gradient: &mut [f32], y: &[f32], bounds: [f32; 2]) = mask_by_value_body;
}

#[inline(always)]
unsafe fn mask_by_value_body<S: Simd>(gradient: &mut [f32], y: &[f32], [low, high]: [f32; 2]) {
    for i in (0..y.len()).step_by(S::LANES) {
        // SAFETY: the length is of whole vectors.
        unsafe {
            let (at, y) = (gradient.as_mut_ptr().add(i), S::load(y.as_ptr().add(i)));
            S::store(at, S::where_within(y, S::splat(low), S::splat(high), S::load(at)));
        }
    }
}
