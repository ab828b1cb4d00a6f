//! A depthwise convolution: each channel has a window of its own.
//!
//! It goes line by line. The last few lines of the input, zeros beside them, lie in a ring of `kernel` lines, so that a line
//! is read through its normalisation once and is in the cache for all windows that it belongs to; so do the lines of the
//! gradient on the way back. The gradient of the input is computed as a convolution, too: its windows see the result's
//! gradient, with zeros between its pixels where the stride is above 1, and the weight turned by half a turn.

use candle_core::{Result, bail};

use super::conv::{ConvSizes, Incoming, Outgoing, Output, WeightSums};
use super::elementwise::{add, bias_activation, copy_read};
use super::statistics::add_pixels;
use super::{Activation, Isa, Map, Moments, Read};
use crate::conv::Pads;
use crate::conv::memory::{carve, zeros};
use crate::simd::{Simd, kernel};

/// The largest height of a window.
pub(super) const MOST_LINES: usize = 15;

pub(super) struct Depthwise {
    isa: Isa,
    from: Map,
    to: Map,
    kernel: usize,
    stride: usize,
    pads: Pads,
}

/// A line of windows: the pixels and the weights of one line of each.
#[derive(Clone, Copy)]
struct Line<'a> {
    x: &'a [f32],
    weight: &'a [f32],
}

impl<'a> Line<'a> {
    /// The same from some number on.
    fn from(self, first: usize) -> Self {
        Self { x: self.x.get(first..).unwrap_or(&[]), ..self }
    }
}

/// Rows of a result, the bias and the activation behind them, and the result's moments.
type Rows<'a, 'b> =
    (std::ops::Range<usize>, (Option<&'a [f32]>, Activation), Option<&'a mut Moments<'b>>);

/// How windows lie along a line.
#[derive(Clone, Copy)]
struct Steps {
    /// Pixels of a window's line.
    kernel: usize,
    /// Numbers between neighbouring windows.
    step: usize,
    channels: usize,
    /// Windows of a line.
    width: usize,
}

impl Depthwise {
    pub(super) fn new(isa: Isa, sizes: ConvSizes) -> Result<Self> {
        let ConvSizes { inputs, height, width, kernel, stride, pads, .. } = sizes;
        let count = |side: usize, zeros: usize| {
            Some((side + zeros).checked_sub(kernel)?.checked_div(stride)? + 1)
        };
        let (rows, columns) =
            (count(height, pads.top + pads.bottom), count(width, pads.left + pads.right));
        let (Some(rows), Some(columns), 1..=MOST_LINES) = (rows, columns, kernel) else {
            bail!(
                "conv: windows of at most {MOST_LINES} pixels that fit into the image were expected; got {sizes:?}"
            )
        };
        let (from, to) =
            (Map::new(isa, [inputs, height, width]), Map::new(isa, [inputs, rows, columns]));
        Ok(Self { isa, from, to, kernel, stride, pads })
    }

    /// Numbers of a line of the input with its zeros, and of a line of the result's gradient as the gradient of the input sees
    /// it.
    fn lines(&self) -> (usize, usize) {
        let Pads { left, right, .. } = self.pads;
        let channels = self.from.padded;
        (
            (self.from.width + left + right) * channels,
            (self.from.width + self.kernel - 1) * channels,
        )
    }

    pub(super) fn scratch_len(&self) -> usize {
        let (line, gradient_line) = self.lines();
        let channels = self.from.padded;
        self.kernel * (line + gradient_line) + (self.from.width + self.to.width) * channels
    }

    /// Sums are kept as the weight is packed.
    pub(super) fn sums_len(&self) -> usize {
        self.kernel * self.kernel * self.from.padded
    }

    /// A vector of all channels for each tap; for the gradient each line is turned round.
    pub(super) fn pack(&self, weight: &[f32], gradient: bool, packed: &mut Vec<f32>) {
        let (taps, channels) = (self.kernel * self.kernel, self.from.padded);
        zeros(packed, taps * channels);
        for (c, window) in weight.chunks_exact(taps).enumerate() {
            for (tap, &value) in window.iter().enumerate() {
                let (ky, kx) = (tap / self.kernel, tap % self.kernel);
                let kx = if gradient { self.kernel - 1 - kx } else { kx };
                packed[(ky * self.kernel + kx) * channels + c] = value;
            }
        }
    }

    pub(super) fn finish_weight(&self, sums: &[f32]) -> Vec<f32> {
        let (taps, channels) = (self.kernel * self.kernel, self.from.padded);
        let of_channel = |c: usize| (0..taps).map(move |tap| sums[tap * channels + c]);
        let mut weight = Vec::with_capacity(taps * self.from.channels);
        weight.extend((0..self.from.channels).flat_map(of_channel));
        weight
    }

    /// The input's rows that the windows of row `y` see.
    fn rows(&self, y: usize) -> std::ops::Range<usize> {
        let first = y * self.stride;
        let row = |row: usize| row.saturating_sub(self.pads.top).min(self.from.height);
        row(first)..row(first + self.kernel)
    }

    /// The windows of a line that see no zeros beside the map. Where it is read as it is they read it where it lies, and what
    /// they alone see is not laid out.
    fn inner(&self) -> std::ops::Range<usize> {
        let start = self.pads.left.div_ceil(self.stride).min(self.to.width);
        let last = (self.from.width + self.pads.left).checked_sub(self.kernel);
        let end = last.map_or(0, |last| last / self.stride + 1).min(self.to.width);
        start..end.max(start)
    }

    /// Lays the rows up to the end of `rows` that are not in the ring yet into it; `next` is the first of them. What the windows
    /// `inner` alone see is left out.
    fn fill_ring(
        &self,
        read: Read<'_>,
        (rows, inner): (std::ops::Range<usize>, &std::ops::Range<usize>),
        next: &mut usize,
        ring: &mut [f32],
    ) {
        let (line, _) = self.lines();
        let (channels, row) = (self.from.padded, self.from.width * self.from.padded);
        for y in (*next).max(rows.start)..rows.end {
            let to = &mut ring[y % self.kernel * line..][..line];
            let (before, rest) = to.split_at_mut(self.pads.left * channels);
            let (pixels, behind) = rest.split_at_mut(row);
            before.fill(0.0);
            behind.fill(0.0);
            // The pixels that the windows at both ends see.
            let seen = |window: usize| (window * self.stride).saturating_sub(self.pads.left);
            let (left, right) = match inner.is_empty() {
                true => (self.from.width, self.from.width),
                false => {
                    let left = seen(inner.start) + self.kernel;
                    (left.min(self.from.width), seen(inner.end).min(self.from.width))
                }
            };
            for part in [0..left, right.max(left)..self.from.width] {
                let part = part.start * channels..part.end * channels;
                let of_row = y * row + part.start..y * row + part.end;
                copy_read(self.isa, channels, read.part(of_row), &mut pixels[part]);
            }
        }
        *next = (*next).max(rows.end);
    }

    pub(super) fn forward(
        &self,
        read: Read<'_>,
        packed: &[f32],
        scratch: &mut [f32],
        output: &mut Output<'_>,
    ) {
        let Output { bias, activation, to, moments } = output;
        let behind = (*bias, *activation);
        let rows = 0..self.to.height;
        self.forward_rows(read, packed, scratch, (rows, behind, moments.as_mut()), to);
    }

    /// The rows of a result, and how many are best computed at once.
    pub(super) fn rows_at_once(&self) -> (usize, usize) {
        (self.to.height, 1)
    }

    /// Some rows of the result, which go to `to`; with the moments, where these are all rows.
    pub(super) fn forward_rows(
        &self,
        read: Read<'_>,
        packed: &[f32],
        mut scratch: &mut [f32],
        (of, (bias, activation), mut moments): Rows<'_, '_>,
        to: &mut [f32],
    ) {
        let (channels, row) = (self.to.padded, self.to.width * self.to.padded);
        assert!(read.x.len() == self.from.len() && to.len() == of.len() * row);
        assert!(of.end <= self.to.height && (moments.is_none() || of.len() == self.to.height));
        let (line, _) = self.lines();
        let ring = carve(&mut scratch, self.kernel * line);
        let taps = self.kernel * channels;
        let step = self.stride * channels;
        let steps = Steps { kernel: self.kernel, step, channels, width: self.to.width };
        if let Some(moments) = &mut moments {
            moments.start();
        }
        let inner = if read.is_plain() { self.inner() } else { 0..0 };
        let mut next = 0;
        for y in of.clone() {
            let rows = self.rows(y);
            self.fill_ring(read, (rows.clone(), &inner), &mut next, ring);
            let mut lines = [Line { x: &[], weight: &[] }; MOST_LINES];
            let count = rows.len();
            for (of, row) in lines.iter_mut().zip(rows) {
                let ky = row + self.pads.top - y * self.stride;
                let x = &ring[row % self.kernel * line..][..line];
                *of = Line { x, weight: &packed[ky * taps..(ky + 1) * taps] };
            }
            let (before, rest) = to.split_at_mut((y - of.start) * row);
            let out = &mut rest[..row];
            for edge in [0..inner.start, inner.end..self.to.width] {
                let lines = lines.map(|line| line.from(edge.start * step));
                let steps = Steps { width: edge.len(), ..steps };
                let out = &mut out[edge.start * channels..edge.end * channels];
                windows(self.isa, &lines[..count], steps, out);
            }
            if !inner.is_empty() {
                let first = (inner.start * self.stride - self.pads.left) * channels;
                let from = self.from.width * channels;
                let rows = self.rows(y).map(|row| &read.x[row * from..(row + 1) * from]);
                for (line, x) in lines.iter_mut().zip(rows) {
                    line.x = &x[first..];
                }
                let steps = Steps { width: inner.len(), ..steps };
                let out = &mut out[inner.start * channels..inner.end * channels];
                windows(self.isa, &lines[..count], steps, out);
            }
            bias_activation(self.isa, channels, bias, activation, out);
            if let Some(moments) = &mut moments {
                let origin = if y == 0 { &*out } else { &*before };
                moments.add(self.isa, origin, out);
            }
        }
        if let Some(moments) = moments {
            moments.finish(to, self.to.pixels());
        }
    }

    pub(super) fn backward(
        &self,
        read: Option<Read<'_>>,
        incoming: Incoming<'_>,
        (packed, data): (&[f32], &mut Option<Outgoing<'_>>),
        mut scratch: &mut [f32],
        mut weight: Option<&mut WeightSums<'_>>,
    ) {
        assert!(incoming.gradient.is_none_or(|gradient| gradient.len() == self.to.len()));
        let (line, gradient_line) = self.lines();
        let ring = carve(&mut scratch, self.kernel * line);
        let gradient_ring = carve(&mut scratch, self.kernel * gradient_line);
        let dx = carve(&mut scratch, self.from.width * self.from.padded);
        let dz = carve(&mut scratch, self.to.width * self.to.padded);
        let (channels, row) = (self.to.padded, self.to.width * self.to.padded);
        let taps = self.kernel * channels;
        let step = self.stride * channels;
        let steps = Steps { kernel: self.kernel, step, channels, width: self.to.width };
        if let Some(Outgoing { norm: Some(norm), .. }) = data {
            norm.start();
        }
        let (mut next, mut done) = (0, 0);
        for y in 0..self.to.height {
            incoming.copy(self.isa, data.as_ref(), y * row..(y + 1) * row, dz);
            if let (Some(sums), Some(read)) = (&mut weight, read) {
                let rows = self.rows(y);
                self.fill_ring(read, (rows.clone(), &(0..0)), &mut next, ring);
                for row in rows {
                    let ky = row + self.pads.top - y * self.stride;
                    let x = &ring[row % self.kernel * line..][..line];
                    let sums = &mut sums.weight[ky * taps..(ky + 1) * taps];
                    add_weight_gradient(self.isa, x, steps, dz, sums);
                }
                if let Some(bias) = &mut sums.bias {
                    add_pixels(self.isa, dz, bias);
                }
            }
            let Some(data) = data else { continue };
            self.spread(dz, &mut gradient_ring[y % self.kernel * gradient_line..][..gradient_line]);
            // The rows that no later window sees.
            while done < self.from.height && (done + self.pads.top) / self.stride <= y {
                self.data_row((done, y), gradient_ring, read, (packed, &mut *data), dx);
                done += 1;
            }
        }
        let (Some(data), Some(last)) = (data, self.to.height.checked_sub(1)) else { return };
        for y in done..self.from.height {
            self.data_row((y, last), gradient_ring, read, (packed, &mut *data), dx);
        }
    }

    /// A row of the result's gradient as the windows of the gradient of the input see it.
    fn spread(&self, dz: &[f32], to: &mut [f32]) {
        let channels = self.to.padded;
        to.fill(0.0);
        let first = (self.kernel - 1 - self.pads.left) * channels;
        if self.stride == 1 {
            to[first..first + dz.len()].copy_from_slice(dz);
            return;
        }
        let places = to[first..].chunks_mut(self.stride * channels);
        for (to, pixel) in places.zip(dz.chunks_exact(channels)) {
            to[..channels].copy_from_slice(pixel);
        }
    }

    /// Row `y` of the input's gradient; rows up to `last` of the result's are in the ring.
    fn data_row(
        &self,
        (y, last): (usize, usize),
        ring: &[f32],
        read: Option<Read<'_>>,
        (packed, data): (&[f32], &mut Outgoing<'_>),
        dx: &mut [f32],
    ) {
        let (_, line) = self.lines();
        let (channels, row) = (self.from.padded, self.from.width * self.from.padded);
        let taps = self.kernel * channels;
        let mut lines = [Line { x: &[], weight: &[] }; MOST_LINES];
        let mut count = 0;
        for ky in 0..self.kernel.min(y + self.pads.top + 1) {
            let from = y + self.pads.top - ky;
            let (from, between) = (from / self.stride, from % self.stride);
            if between == 0 && from <= last {
                let x = &ring[from % self.kernel * line..][..line];
                lines[count] = Line { x, weight: &packed[ky * taps..(ky + 1) * taps] };
                count += 1;
            }
        }
        let steps = Steps { kernel: self.kernel, step: channels, channels, width: self.from.width };
        let range = y * row..(y + 1) * row;
        let to = &mut data.to[range.clone()];
        if data.add {
            windows(self.isa, &lines[..count], steps, dx);
            add(self.isa, to, dx);
        } else {
            windows(self.isa, &lines[..count], steps, to);
        }
        if let (Some(norm), Some(read)) = (&mut data.norm, read) {
            norm.take(self.isa, to, read.part(range));
        }
    }
}

/// Windows side by side that lie within `len` numbers.
fn fit(steps: Steps, len: usize) -> bool {
    steps.width == 0 || (steps.width - 1) * steps.step + steps.kernel * steps.channels <= len
}

/// A line of results: each is the sum of its windows' lines.
fn windows(isa: Isa, lines: &[Line<'_>], steps: Steps, out: &mut [f32]) {
    assert!(steps.channels.is_multiple_of(isa.lanes()));
    assert!(out.len() == steps.width * steps.channels);
    for line in lines {
        assert!(fit(steps, line.x.len()) && line.weight.len() == steps.kernel * steps.channels);
    }
    // SAFETY: sizes as asserted.
    unsafe { windows_kernel(isa, lines, steps, out.as_mut_ptr()) }
}

kernel! {
    fn windows_kernel(lines: &[Line<'_>], steps: Steps, out: *mut f32) = windows_body;
}

#[inline(always)]
unsafe fn windows_body<S: Simd>(lines: &[Line<'_>], steps: Steps, out: *mut f32) {
    let mut c = 0;
    while c < steps.channels {
        // Two vectors side by side are a whole cache line of AVX2.
        let two = c + 2 * S::LANES <= steps.channels;
        let mut x = 0;
        while x < steps.width {
            let left = steps.width - x;
            // SAFETY: the windows from `x` on lie within the lines, as the caller has asserted.
            unsafe {
                let out = out.add(x * steps.channels + c);
                match (two, left) {
                    (true, 5..) => tile::<S, 5, 2>(lines, steps, x, c, out),
                    (true, 2..) => tile::<S, 2, 2>(lines, steps, x, c, out),
                    (true, _) => tile::<S, 1, 2>(lines, steps, x, c, out),
                    (false, 5..) => tile::<S, 5, 1>(lines, steps, x, c, out),
                    (false, 2..) => tile::<S, 2, 1>(lines, steps, x, c, out),
                    (false, _) => tile::<S, 1, 1>(lines, steps, x, c, out),
                }
            }
            x += match left {
                5.. => 5,
                2.. => 2,
                _ => 1,
            };
        }
        c += if two { 2 * S::LANES } else { S::LANES };
    }
}

/// `X` windows of `C` vectors of channels.
#[inline(always)]
unsafe fn tile<S: Simd, const X: usize, const C: usize>(
    lines: &[Line<'_>],
    steps: Steps,
    x: usize,
    c: usize,
    out: *mut f32,
) {
    // SAFETY: as in `windows_body`.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; X];
        for line in lines {
            let pixels = line.x.as_ptr().add(x * steps.step + c);
            let weight = line.weight.as_ptr().add(c);
            for tap in 0..steps.kernel {
                let mut w = [S::splat(0.0); C];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = S::load(weight.add(tap * steps.channels + v * S::LANES));
                }
                let pixels = pixels.add(tap * steps.channels);
                for (window, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let pixel = S::load(pixels.add(window * steps.step + v * S::LANES));
                        *sum = S::mul_add(pixel, w[v], *sum);
                    }
                }
            }
        }
        for (window, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                S::store(out.add(window * steps.channels + v * S::LANES), sum);
            }
        }
    }
}

/// A line's share of the weight's gradient: to each tap of one line of the window is added the sum over all windows of the
/// pixel that it sees times the gradient of the window's result.
fn add_weight_gradient(isa: Isa, x: &[f32], steps: Steps, dz: &[f32], sums: &mut [f32]) {
    assert!(steps.channels.is_multiple_of(isa.lanes()) && fit(steps, x.len()));
    assert!(dz.len() == steps.width * steps.channels);
    assert!(sums.len() == steps.kernel * steps.channels);
    // SAFETY: sizes as asserted.
    unsafe { weight_kernel(isa, x.as_ptr(), steps, dz.as_ptr(), sums.as_mut_ptr()) }
}

kernel! {
    fn weight_kernel(x: *const f32, steps: Steps, dz: *const f32, sums: *mut f32) = weight_body;
}

#[inline(always)]
unsafe fn weight_body<S: Simd>(x: *const f32, steps: Steps, dz: *const f32, sums: *mut f32) {
    let mut c = 0;
    while c < steps.channels {
        let two = c + 2 * S::LANES <= steps.channels;
        let mut tap = 0;
        while tap < steps.kernel {
            let left = steps.kernel - tap;
            // SAFETY: taps from `tap` on and channels from `c` on are there, as the caller has asserted.
            unsafe {
                let at = tap * steps.channels + c;
                let (x, dz, sums) = (x.add(at), dz.add(c), sums.add(at));
                match (two, left) {
                    (true, 5..) => taps::<S, 5, 2>(x, steps, dz, sums),
                    (true, 3..) => taps::<S, 3, 2>(x, steps, dz, sums),
                    (true, _) => taps::<S, 1, 2>(x, steps, dz, sums),
                    (false, 5..) => taps::<S, 5, 1>(x, steps, dz, sums),
                    (false, 3..) => taps::<S, 3, 1>(x, steps, dz, sums),
                    (false, _) => taps::<S, 1, 1>(x, steps, dz, sums),
                }
            }
            tap += match left {
                5.. => 5,
                3.. => 3,
                _ => 1,
            };
        }
        c += if two { 2 * S::LANES } else { S::LANES };
    }
}

/// `T` neighbouring taps of `C` vectors of channels.
#[inline(always)]
unsafe fn taps<S: Simd, const T: usize, const C: usize>(
    x: *const f32,
    steps: Steps,
    dz: *const f32,
    sums: *mut f32,
) {
    // SAFETY: as in `weight_body`.
    unsafe {
        let mut totals = [[S::splat(0.0); C]; T];
        for window in 0..steps.width {
            let x = x.add(window * steps.step);
            let dz = dz.add(window * steps.channels);
            for v in 0..C {
                let dz = S::load(dz.add(v * S::LANES));
                for (tap, totals) in totals.iter_mut().enumerate() {
                    let x = S::load(x.add(tap * steps.channels + v * S::LANES));
                    totals[v] = S::mul_add(x, dz, totals[v]);
                }
            }
        }
        for (tap, totals) in totals.into_iter().enumerate() {
            for (v, total) in totals.into_iter().enumerate() {
                let at = sums.add(tap * steps.channels + v * S::LANES);
                S::store(at, S::add(S::load(at), total));
            }
        }
    }
}
