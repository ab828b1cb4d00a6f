//! Depthwise convolution on the CPU: each channel has a window of its own.
//!
//! A block is as many channels as a vector has numbers. Each block of each image is turned into NHWC in scratch memory, where
//! a vector is one pixel, worked on there, and turned back. Blocks don't depend on each other, so a single image has work
//! for several threads, too.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::geometry::Geometry;
use super::images::{Nhwc, Size, to_nchw, to_nhwc};
use super::memory::carve;
use super::pointwise::add_pixels;
use crate::cpu::{self, with_scratch};
use crate::simd::{Isa, Simd, kernel};

/// Parts of a batch whose sums of the weight's gradient are kept apart, at most.
const PARTS: usize = 16;
/// Output pixels of a line that are computed at once, so that a weight is loaded once for all of them and the processor has
/// as many independent sums.
const COLUMNS: usize = 8;

/// The sizes of a depthwise convolution.
pub(super) struct Depthwise {
    isa: Isa,
    /// Of a single input channel and all output channels.
    g: Geometry,
    /// Where the taps of a window lie in a block's padded image, from the window's first pixel.
    taps: Vec<usize>,
}

/// The convolution of `x` `[N, C, H, W]` with `weight` `[C, 1, kh, kw]`, which fit together, plus `bias` `[C]`.
pub(super) fn depthwise(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    sizes: Depthwise,
) -> Result<Tensor> {
    let bias = super::bias_or_zeros(weight, bias)?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, sizes)
}

/// What a window moves over: the numbers of a line of the padded image, and between neighbouring windows.
#[derive(Clone, Copy)]
struct Steps {
    height: usize,
    width: usize,
    down: usize,
    right: usize,
}

/// A backward pass's share: some images of one block.
struct Task<'a> {
    part: usize,
    block: usize,
    /// Where each image's gradient goes; empty where that is not asked for.
    dx: Vec<&'a mut [f32]>,
}

/// Sums over a part's images for one block: a vector for each tap, and one for the bias.
struct Sums {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// What a backward pass gives; `data` is empty where it was not asked for.
struct Gradients {
    data: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Depthwise {
    /// For the convolution of one input channel with all output channels that `g` describes.
    pub(super) fn new(g: Geometry) -> Self {
        Self::on(Isa::detect(), g)
    }

    fn on(isa: Isa, g: Geometry) -> Self {
        let line = g.width + 2 * g.padding;
        let tap = |ky: usize, kx: usize| g.dilation * (ky * line + kx) * isa.lanes();
        let taps = (0..g.kernel_height)
            .flat_map(|ky| (0..g.kernel_width).map(move |kx| tap(ky, kx)))
            .collect();
        Self { isa, g, taps }
    }

    /// The layout of a block's padded input.
    fn input(&self) -> Nhwc {
        let (rows, line) = (self.g.height + 2 * self.g.padding, self.g.width + 2 * self.g.padding);
        Nhwc { rows, line, channels: self.isa.lanes() }
    }

    /// The layout of a block's output.
    fn output(&self) -> Nhwc {
        let (rows, line) = (self.g.out_height, self.g.out_width);
        Nhwc { rows, line, channels: self.isa.lanes() }
    }

    fn steps(&self) -> Steps {
        let lanes = self.isa.lanes();
        Steps {
            height: self.g.out_height,
            width: self.g.out_width,
            down: self.g.stride * self.input().line * lanes,
            right: self.g.stride * lanes,
        }
    }

    fn blocks(&self) -> usize {
        self.g.out_channels.div_ceil(self.isa.lanes())
    }

    /// Pixels of a channel of the input and of the output.
    fn planes(&self) -> (usize, usize) {
        (self.g.height * self.g.width, self.g.out_pixels())
    }

    /// The weight `[C, 1, kh, kw]` as a vector for each block and tap; channels that are not there have zeros.
    fn pack(&self, weight: &[f32]) -> Vec<f32> {
        let (lanes, taps) = (self.isa.lanes(), self.taps.len());
        let mut packed = vec![0.0; self.blocks() * taps * lanes];
        for (channel, window) in weight.chunks_exact(taps).enumerate() {
            for (tap, value) in window.iter().enumerate() {
                packed[(channel / lanes * taps + tap) * lanes + channel % lanes] = *value;
            }
        }
        packed
    }

    fn input_size(&self, plane: &[f32]) -> Size {
        let Geometry { height, width, .. } = self.g;
        Size { channels: plane.len() / (height * width), height, width }
    }

    fn output_size(&self, plane: &[f32]) -> Size {
        let Geometry { out_height: height, out_width: width, .. } = self.g;
        Size { channels: plane.len() / (height * width), height, width }
    }

    /// The convolution of a batch; blocks in parallel.
    fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let (lanes, channels, (plane, out_plane)) =
            (self.isa.lanes(), self.g.out_channels, self.planes());
        let packed = self.pack(weight);
        let mut padded_bias = bias.to_vec();
        padded_bias.resize(self.blocks() * lanes, 0.0);
        let mut y = vec![0.0; self.g.batch * channels * out_plane];
        let block = |block: usize, x: &[f32], y: &mut [f32]| {
            with_scratch(self.input().len() + self.output().len(), |mut scratch| {
                let image = carve(&mut scratch, self.input().len());
                let output = carve(&mut scratch, self.output().len());
                to_nhwc(
                    self.isa,
                    x,
                    self.input_size(x),
                    image,
                    self.input(),
                    (self.g.padding, self.g.padding),
                );
                let window = self.taps.len() * lanes;
                let weight = &packed[block * window..(block + 1) * window];
                let bias = &padded_bias[block * lanes..(block + 1) * lanes];
                self.windows(image, weight, bias, output);
                let size = self.output_size(y);
                to_nchw(self.isa, output, self.output(), (0, 0), y, size);
            });
        };
        y.par_chunks_mut(channels * out_plane).zip(x.par_chunks(channels * plane)).for_each(
            |(y, x)| {
                let blocks = y.par_chunks_mut(lanes * out_plane).zip(x.par_chunks(lanes * plane));
                blocks.enumerate().for_each(|(b, (y, x))| block(b, x, y));
            },
        );
        y
    }

    /// All gradients from that of the result; parts of the batch and blocks in parallel.
    fn backward(&self, x: &[f32], weight: &[f32], dy: &[f32], ask_data: bool) -> Gradients {
        let (lanes, channels, (plane, _)) = (self.isa.lanes(), self.g.out_channels, self.planes());
        let packed = self.pack(weight);
        // By the batch's size alone, so that the sums don't depend on the number of threads.
        let images_per_part = self.g.batch.div_ceil(PARTS).max(1);
        let parts = self.g.batch.div_ceil(images_per_part);
        let mut data = vec![0.0; if ask_data { x.len() } else { 0 }];
        let mut tasks: Vec<Task<'_>> = (0..parts)
            .flat_map(|part| (0..self.blocks()).map(move |block| (part, block)))
            .map(|(part, block)| Task { part, block, dx: Vec::new() })
            .collect();
        for (image, dx) in data.chunks_mut(channels * plane).enumerate() {
            let first = image / images_per_part * self.blocks();
            for (task, dx) in tasks[first..].iter_mut().zip(dx.chunks_mut(lanes * plane)) {
                task.dx.push(dx);
            }
        }
        let sums: Vec<Sums> = tasks
            .into_par_iter()
            .map(|task| self.task(task, images_per_part, x, &packed, dy))
            .collect();
        self.finish(data, sums)
    }

    /// One task: the sums over its images, and their gradients.
    fn task(
        &self,
        mut task: Task<'_>,
        images_per_part: usize,
        x: &[f32],
        packed: &[f32],
        dy: &[f32],
    ) -> Sums {
        let (lanes, channels, (plane, out_plane)) =
            (self.isa.lanes(), self.g.out_channels, self.planes());
        let window = self.taps.len() * lanes;
        let weight = &packed[task.block * window..(task.block + 1) * window];
        let mut sums = Sums { weight: vec![0.0; window], bias: vec![0.0; lanes] };
        let first = task.part * images_per_part;
        let images = first..(first + images_per_part).min(self.g.batch);
        let of_block = task.block * lanes..((task.block + 1) * lanes).min(channels);
        let len = 2 * self.input().len() + self.output().len();
        with_scratch(len, |mut scratch| {
            let image = carve(&mut scratch, self.input().len());
            let dimage = carve(&mut scratch, self.input().len());
            let dz = carve(&mut scratch, self.output().len());
            for n in images {
                let of = |plane: usize| {
                    (n * channels + of_block.start) * plane..(n * channels + of_block.end) * plane
                };
                let (x, dy) = (&x[of(plane)], &dy[of(out_plane)]);
                to_nhwc(
                    self.isa,
                    x,
                    self.input_size(x),
                    image,
                    self.input(),
                    (self.g.padding, self.g.padding),
                );
                to_nhwc(self.isa, dy, self.output_size(dy), dz, self.output(), (0, 0));
                add_pixels(self.isa, dz, &mut sums.bias);
                self.add_weight_gradient(image, dz, &mut sums.weight);
                if let Some(dx) = task.dx.get_mut(n - first) {
                    dimage.fill(0.0);
                    self.add_data_gradient(dz, weight, dimage);
                    let size = self.input_size(dx);
                    to_nchw(
                        self.isa,
                        dimage,
                        self.input(),
                        (self.g.padding, self.g.padding),
                        dx,
                        size,
                    );
                }
            }
        });
        sums
    }

    /// Adds up the parts' sums, part after part, and puts them into the weight's order.
    fn finish(&self, data: Vec<f32>, sums: Vec<Sums>) -> Gradients {
        let (lanes, taps, blocks) = (self.isa.lanes(), self.taps.len(), self.blocks());
        let mut weight = vec![0.0; self.g.out_channels * taps];
        let mut bias = vec![0.0; self.g.out_channels];
        for (task, sums) in sums.iter().enumerate() {
            let first = task % blocks * lanes;
            for (lane, bias) in bias[first..].iter_mut().take(lanes).enumerate() {
                *bias += sums.bias[lane];
            }
            let windows = weight[first * taps..].chunks_exact_mut(taps).take(lanes);
            for (lane, window) in windows.enumerate() {
                for (tap, weight) in window.iter_mut().enumerate() {
                    *weight += sums.weight[tap * lanes + lane];
                }
            }
        }
        Gradients { data, weight, bias }
    }

    /// That `image` and `out` are a block's padded input and output, and every window lies within the input.
    fn check(&self, image: &[f32], weight: &[f32], out: &[f32]) {
        let (steps, lanes) = (self.steps(), self.isa.lanes());
        assert!(image.len() == self.input().len() && out.len() == self.output().len());
        assert!(weight.len() == self.taps.len() * lanes);
        let last = steps.height.saturating_sub(1) * steps.down
            + steps.width.saturating_sub(1) * steps.right
            + self.taps.iter().max().copied().unwrap_or(0);
        assert!(out.is_empty() || last + lanes <= image.len());
    }

    fn windows(&self, image: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        self.check(image, weight, out);
        assert!(bias.len() == self.isa.lanes());
        let (steps, image, weight) = (self.steps(), image.as_ptr(), weight.as_ptr());
        // SAFETY: sizes checked above.
        unsafe {
            windows_kernel(
                self.isa,
                image,
                &self.taps,
                steps,
                weight,
                bias.as_ptr(),
                out.as_mut_ptr(),
            );
        }
    }

    fn add_weight_gradient(&self, image: &[f32], dz: &[f32], sums: &mut [f32]) {
        self.check(image, sums, dz);
        let (steps, image) = (self.steps(), image.as_ptr());
        // SAFETY: sizes checked above.
        unsafe {
            weight_kernel(self.isa, image, &self.taps, steps, dz.as_ptr(), sums.as_mut_ptr());
        }
    }

    fn add_data_gradient(&self, dz: &[f32], weight: &[f32], dimage: &mut [f32]) {
        self.check(dimage, weight, dz);
        let (steps, weight) = (self.steps(), weight.as_ptr());
        // SAFETY: sizes checked above.
        unsafe {
            data_kernel(self.isa, dz.as_ptr(), &self.taps, steps, weight, dimage.as_mut_ptr());
        }
    }
}

kernel! {
    fn windows_kernel(
        image: *const f32, taps: &[usize], steps: Steps, weight: *const f32, bias: *const f32, out: *mut f32,
    ) = windows_body;
}

/// Each output pixel is the bias plus its window's taps, one after the other.
#[inline(always)]
unsafe fn windows_body<S: Simd>(
    image: *const f32,
    taps: &[usize],
    steps: Steps,
    weight: *const f32,
    bias: *const f32,
    out: *mut f32,
) {
    // SAFETY: the caller has checked that all windows and pixels lie within their images.
    unsafe {
        let bias = S::load(bias);
        for y in 0..steps.height {
            let line = image.add(y * steps.down);
            let out = out.add(y * steps.width * S::LANES);
            let mut x = 0;
            while x + COLUMNS <= steps.width {
                let mut sums = [bias; COLUMNS];
                for (tap, &offset) in taps.iter().enumerate() {
                    let weight = S::load(weight.add(tap * S::LANES));
                    let pixels = line.add(x * steps.right + offset);
                    for (column, sum) in sums.iter_mut().enumerate() {
                        let pixel = S::load(pixels.add(column * steps.right));
                        *sum = S::mul_add(pixel, weight, *sum);
                    }
                }
                for (column, sum) in sums.into_iter().enumerate() {
                    S::store(out.add((x + column) * S::LANES), sum);
                }
                x += COLUMNS;
            }
            for x in x..steps.width {
                let mut sum = bias;
                for (tap, &offset) in taps.iter().enumerate() {
                    let weight = S::load(weight.add(tap * S::LANES));
                    sum = S::mul_add(S::load(line.add(x * steps.right + offset)), weight, sum);
                }
                S::store(out.add(x * S::LANES), sum);
            }
        }
    }
}

kernel! {
    fn weight_kernel(image: *const f32, taps: &[usize], steps: Steps, dz: *const f32, sums: *mut f32) = weight_body;
}

/// A line's pixels are added up by themselves, in four sums, before they are added to a tap's.
#[inline(always)]
unsafe fn weight_body<S: Simd>(
    image: *const f32,
    taps: &[usize],
    steps: Steps,
    dz: *const f32,
    sums: *mut f32,
) {
    // SAFETY: the caller has checked that all windows and pixels lie within their images.
    unsafe {
        for y in 0..steps.height {
            let line = image.add(y * steps.down);
            let dz = dz.add(y * steps.width * S::LANES);
            for (tap, &offset) in taps.iter().enumerate() {
                let pixels = line.add(offset);
                let mut parts = [S::splat(0.0); 4];
                let mut x = 0;
                while x + 4 <= steps.width {
                    for (column, part) in parts.iter_mut().enumerate() {
                        let pixel = S::load(pixels.add((x + column) * steps.right));
                        *part = S::mul_add(pixel, S::load(dz.add((x + column) * S::LANES)), *part);
                    }
                    x += 4;
                }
                for x in x..steps.width {
                    let pixel = S::load(pixels.add(x * steps.right));
                    parts[0] = S::mul_add(pixel, S::load(dz.add(x * S::LANES)), parts[0]);
                }
                let sum = S::add(S::add(parts[0], parts[1]), S::add(parts[2], parts[3]));
                let at = sums.add(tap * S::LANES);
                S::store(at, S::add(S::load(at), sum));
            }
        }
    }
}

kernel! {
    fn data_kernel(dz: *const f32, taps: &[usize], steps: Steps, weight: *const f32, dimage: *mut f32) = data_body;
}

/// Each output pixel's gradient is added to the pixels of its window.
#[inline(always)]
unsafe fn data_body<S: Simd>(
    dz: *const f32,
    taps: &[usize],
    steps: Steps,
    weight: *const f32,
    dimage: *mut f32,
) {
    // SAFETY: the caller has checked that all windows and pixels lie within their images.
    unsafe {
        for y in 0..steps.height {
            let line = dimage.add(y * steps.down);
            let dz = dz.add(y * steps.width * S::LANES);
            for (tap, &offset) in taps.iter().enumerate() {
                let weight = S::load(weight.add(tap * S::LANES));
                for x in 0..steps.width {
                    let at = line.add(x * steps.right + offset);
                    S::store(at, S::mul_add(S::load(dz.add(x * S::LANES)), weight, S::load(at)));
                }
            }
        }
    }
}

impl CustomOp3 for Depthwise {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = cpu::slice(self.name(), x, x_layout)?;
        let weight = cpu::slice(self.name(), weight, weight_layout)?;
        let bias = cpu::slice(self.name(), bias, bias_layout)?;
        let Geometry { batch, out_channels, out_height, out_width, .. } = self.g;
        let shape = Shape::from((batch, out_channels, out_height, out_width));
        Ok((CpuStorage::F32(self.forward(x, weight, bias)), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (name, ask_data) = (self.name(), x.track_op());
        let gradients = cpu::with_slice(name, x, |x| {
            cpu::with_slice(name, weight, |weight| {
                cpu::with_slice(name, dy, |dy| Ok(self.backward(x, weight, dy, ask_data)))
            })
        })?;
        let data = match ask_data {
            true => Some(cpu::tensor(gradients.data, x.shape())?),
            false => None,
        };
        let weight = cpu::tensor(gradients.weight, weight.shape())?;
        Ok((data, Some(weight), Some(cpu::tensor(gradients.bias, bias.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::geometry::Conv2dConfig;
    use super::*;

    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let hash = |i: u32| (i.wrapping_add(seed).wrapping_mul(2654435761) >> 8) as f32;
        (0..len as u32).map(|i| hash(i) / (1 << 23) as f32 - 1.0).collect()
    }

    /// Values and gradients on the vector unit `isa`.
    fn run(isa: Isa, channels: usize, kernel: usize, config: &Conv2dConfig) -> Vec<Vec<f32>> {
        let (x, weight) = ([5, 1, 10, 19], [channels, 1, kernel, kernel]);
        let sizes = Depthwise::on(isa, Geometry::new(&x, &weight, config).unwrap());
        let x = numbers(5 * channels * 190, 1);
        let (weight, bias) = (numbers(channels * kernel * kernel, 2), numbers(channels, 3));
        let y = sizes.forward(&x, &weight, &bias);
        let gradients = sizes.backward(&x, &weight, &numbers(y.len(), 4), true);
        vec![y, gradients.data, gradients.weight, gradients.bias]
    }

    #[test]
    fn every_vector_unit_of_this_processor_agrees_with_portable_code() {
        for (channels, kernel) in [(1, 3), (17, 3), (40, 5), (16, 7)] {
            for (stride, padding) in [(1, kernel / 2), (2, kernel / 2), (2, 0)] {
                let config = Conv2dConfig { stride, padding, ..Default::default() };
                let expected = run(Isa::Portable, channels, kernel, &config);
                for isa in Isa::available() {
                    let found = run(isa, channels, kernel, &config);
                    for (found, expected) in found.iter().zip(&expected) {
                        let largest = expected.iter().fold(0.0f32, |m, e| m.max(e.abs()));
                        for (found, expected) in found.iter().zip(expected) {
                            assert!(
                                (found - expected).abs() <= 1e-5 * largest,
                                "{isa:?} {channels} {config:?}: {found} for {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}
