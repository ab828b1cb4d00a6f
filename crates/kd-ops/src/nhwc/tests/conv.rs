//! Convolutions of all kinds against sums written out in f64: values, moments, and the gradients of input, weight, bias and
//! the normalisations on both sides.

use super::super::*;
use super::numbers;

/// A convolution with what surrounds it, as f64 computes it.
struct Case {
    isa: Isa,
    sizes: ConvSizes,
    from: Map,
    to: Map,
    /// The input's scale, shift and mean, and the activation behind them.
    input: [Vec<f32>; 3],
    activation: Activation,
    /// The factors of the gradient of the normalisation behind the result.
    behind: [Vec<f32>; 4],
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    gradient: Vec<f32>,
}

/// A weight as a convolution takes it.
fn packed(conv: &Conv, weight: &[f32], gradient: bool) -> Vec<f32> {
    // What was there before doesn't matter.
    let mut packed = vec![f32::NAN; 7];
    conv.pack(weight, gradient, &mut packed);
    packed
}

/// Numbers by padded channel or of a map, zeros in the padding channels.
fn padded(map: &Map, len: usize, seed: u32) -> Vec<f32> {
    let mut values = numbers(len, seed);
    for pixel in values.chunks_exact_mut(map.padded) {
        pixel[map.channels..].fill(0.0);
    }
    values
}

impl Case {
    fn new(isa: Isa, sizes: ConvSizes) -> Self {
        let ConvSizes { inputs, outputs, height, width, kernel, stride, pads, groups } = sizes;
        let side = |side: usize, zeros: usize| (side + zeros - kernel) / stride + 1;
        let (rows, columns) =
            (side(height, pads.top + pads.bottom), side(width, pads.left + pads.right));
        let from = Map::new(isa, [inputs, height, width]);
        let to = Map::new(isa, [outputs, rows, columns]);
        let by_channel = |map: &Map, seed| padded(map, map.padded, seed);
        // Scales near 2, so that ReLU6 is met at both ends.
        let scale =
            by_channel(&from, 1).iter().map(|s| if *s == 0.0 { 0.0 } else { 4.0 + s }).collect();
        Self {
            isa,
            sizes,
            input: [scale, by_channel(&from, 2), by_channel(&from, 3)],
            activation: Activation::Relu6,
            behind: [4, 5, 6, 7].map(|seed| by_channel(&to, seed)),
            x: padded(&from, from.len(), 8).iter().map(|x| x * 2.0).collect(),
            weight: numbers(outputs * inputs / groups * kernel * kernel, 9),
            bias: by_channel(&to, 10),
            gradient: padded(&to, to.len(), 11),
            from,
            to,
        }
    }

    /// The input as the windows see it, and the derivative of what is read in the normalised value.
    fn read(&self, at: usize) -> (f64, f64) {
        let c = at % self.from.padded;
        let [scale, shift, _] = self.input.each_ref().map(|of| f64::from(of[c]));
        let y = f64::from(self.x[at]) * scale + shift;
        (y.clamp(0.0, 6.0), f64::from(u8::from(y > 0.0 && y < 6.0)))
    }

    /// Calls `each` with every product of the convolution: the positions in the result, the input and the weight.
    fn products(&self, mut each: impl FnMut(usize, usize, usize)) {
        let ConvSizes { inputs, outputs, kernel, stride, pads, groups, .. } = self.sizes;
        let of_group = inputs / groups;
        for (oy, ox) in (0..self.to.height).flat_map(|y| (0..self.to.width).map(move |x| (y, x))) {
            for (ky, kx) in (0..kernel).flat_map(|y| (0..kernel).map(move |x| (y, x))) {
                let (y, x) = (
                    (oy * stride + ky).wrapping_sub(pads.top),
                    (ox * stride + kx).wrapping_sub(pads.left),
                );
                if y >= self.from.height || x >= self.from.width {
                    continue;
                }
                for o in 0..outputs {
                    for i in 0..of_group {
                        let channel = o / (outputs / groups) * of_group + i;
                        each(
                            (oy * self.to.width + ox) * self.to.padded + o,
                            (y * self.from.width + x) * self.from.padded + channel,
                            ((o * of_group + i) * kernel + ky) * kernel + kx,
                        );
                    }
                }
            }
        }
    }

    fn check(&self) {
        let conv = Conv::new(self.isa, self.sizes).unwrap();
        let what = format!("{:?} {:?}", self.isa, self.sizes);
        let near = |found: &[f32], expected: &[f64], of: &str| {
            let largest = expected.iter().fold(1.0f64, |most, x| most.max(x.abs()));
            assert_eq!(found.len(), expected.len(), "{what}: {of}");
            for (found, expected) in found.iter().zip(expected) {
                let apart = (f64::from(*found) - expected).abs();
                assert!(apart <= 2e-5 * largest, "{what}: {of}: {found} for {expected}");
            }
        };
        let [scale, shift, mean] = &self.input;
        let affine = Some(Affine { scale, shift });
        let read = Read { x: &self.x, affine, activation: self.activation };
        let mut scratch = vec![f32::NAN; conv.scratch_len()];

        // Forward.
        let mut z = vec![0.0; self.to.len()];
        self.products(|to, from, w| z[to] += self.read(from).0 * f64::from(self.weight[w]));
        let mut found = vec![f32::NAN; self.to.len()];
        let (mut means, mut squares) =
            (vec![f64::NAN; self.to.padded], vec![f64::NAN; self.to.padded]);
        let output = Output {
            bias: None,
            activation: Activation::Identity,
            to: &mut found,
            moments: Some(Moments { mean: &mut means, squares: &mut squares }),
        };
        let packed = self::packed(&conv, &self.weight, false);
        conv.forward(&mut [Forward { input: Input::Map(read), output }], &packed, &mut scratch);
        near(&found, &z, "values");
        for (c, (mean, squares)) in means.iter().zip(&squares).enumerate().take(self.to.channels) {
            let channel = || z.iter().skip(c).step_by(self.to.padded);
            let expected = channel().sum::<f64>() / self.to.pixels() as f64;
            let spread: f64 = channel().map(|z| (z - expected).powi(2)).sum();
            assert!((mean - expected).abs() < 1e-4 * expected.abs().max(1.0), "{what}: mean");
            assert!((squares - spread).abs() < 1e-4 * spread.max(1.0), "{what}: squares");
        }
        let mut with_bias = vec![f32::NAN; self.to.len()];
        let (bias, activation) = (Some(&self.bias[..]), Activation::Relu);
        let output = Output { bias, activation, to: &mut with_bias, moments: None };
        conv.forward(&mut [Forward { input: Input::Map(read), output }], &packed, &mut scratch);
        let biased = z.iter().enumerate();
        let biased = biased.map(|(at, z)| (z + f64::from(self.bias[at % self.to.padded])).max(0.0));
        near(&with_bias, &biased.collect::<Vec<f64>>(), "values with bias and ReLU");

        // A value that is read as it is, with bias and ReLU6 behind.
        let mut plain = vec![0.0; self.to.len()];
        self.products(|to, from, w| {
            plain[to] += f64::from(self.x[from]) * f64::from(self.weight[w])
        });
        let mut found = vec![f32::NAN; self.to.len()];
        let (bias, activation) = (Some(&self.bias[..]), Activation::Relu6);
        let output = Output { bias, activation, to: &mut found, moments: None };
        let input = Input::Map(Read::plain(&self.x));
        conv.forward(&mut [Forward { input, output }], &packed, &mut scratch);
        let biased = plain.iter().enumerate();
        let biased =
            biased.map(|(at, z)| (z + f64::from(self.bias[at % self.to.padded])).clamp(0.0, 6.0));
        near(&found, &biased.collect::<Vec<f64>>(), "values of what is read as it is");
        for threads in 1..=3 {
            let mut shared = vec![f32::NAN; self.to.len()];
            let output = Output { bias, activation, to: &mut shared, moments: None };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| conv.forward_by_threads(&mut Forward { input, output }, &packed));
            assert!(shared == found, "{what}: {threads} threads share its rows");
        }

        // Backward, through the normalisation behind the result.
        let z: Vec<f32> = z.iter().map(|z| *z as f32).collect();
        let dz = |at: usize| {
            let [scale, slope, mean, shift] =
                self.behind.each_ref().map(|of| f64::from(of[at % self.to.padded]));
            f64::from(self.gradient[at]) * scale + (f64::from(z[at]) - mean) * slope + shift
        };
        let mut dx = vec![0.0; self.from.len()];
        let mut dw = vec![0.0; self.weight.len()];
        self.products(|to, from, w| {
            dx[from] += dz(to) * f64::from(self.weight[w]);
            dw[w] += dz(to) * self.read(from).0;
        });
        let mut db = vec![0.0; self.to.padded];
        (0..self.to.len()).for_each(|at| db[at % self.to.padded] += dz(at));
        let mut masked = dx.clone();
        let (mut sum, mut product) = (vec![0.0; self.from.padded], vec![0.0; self.from.padded]);
        for (at, dx) in masked.iter_mut().enumerate() {
            *dx *= self.read(at).1;
            let c = at % self.from.padded;
            sum[c] += *dx;
            product[c] += *dx * (f64::from(self.x[at]) - f64::from(mean[c]));
        }
        let [scale, slope, behind_mean, shift] = &self.behind;
        let by = NormGradient { scale, slope, mean: behind_mean, shift };
        let incoming = Incoming { gradient: Some(&self.gradient), norm: Some((&z, by)) };
        let packed = self::packed(&conv, &self.weight, true);
        let (mut weight, mut bias) = (vec![0.0; conv.sums_len()], vec![0.0; self.to.padded]);
        let mut found = vec![f32::NAN; self.from.len()];
        let (mut sums, mut products) =
            (vec![f64::NAN; self.from.padded], vec![f64::NAN; self.from.padded]);
        let norm = NormSums { mean, sums: &mut sums, products: &mut products };
        let outgoing = Some(Outgoing { to: &mut found, add: false, norm: Some(norm) });
        let sums_of_weight = WeightSums { weight: &mut weight, bias: Some(&mut bias) };
        conv.backward(
            &mut [Backward { input: Some(Input::Map(read)), incoming, outgoing }],
            &packed,
            &mut scratch,
            Some(sums_of_weight),
        );
        near(&found, &masked, "the input's gradient behind its activation");
        near(&conv.finish_weight(&weight), &dw, "the weight's gradient");
        near(&bias, &db, "the bias's gradient");
        let single = |sums: &[f64]| sums.iter().map(|&sum| sum as f32).collect::<Vec<f32>>();
        near(&single(&sums), &sum, "the normalisation's sums");
        near(&single(&products), &product, "the normalisation's products");

        // The input's gradient alone, added to what is there.
        let mut found = vec![1.0; self.from.len()];
        let outgoing = Some(Outgoing { to: &mut found, add: true, norm: None });
        let image = Backward { input: None, incoming, outgoing };
        conv.backward(&mut [image], &packed, &mut scratch, None);
        near(&found, &dx.iter().map(|dx| dx + 1.0).collect::<Vec<f64>>(), "what is added");

        // The same, where the gradient lies in that very place.
        if self.from == self.to {
            let mut found = self.gradient.clone();
            let outgoing = Some(Outgoing { to: &mut found, add: true, norm: None });
            let incoming = Incoming { gradient: None, ..incoming };
            let image = Backward { input: None, incoming, outgoing };
            conv.backward(&mut [image], &packed, &mut scratch, None);
            let sum = dx.iter().zip(&self.gradient).map(|(dx, g)| dx + f64::from(*g));
            near(&found, &sum.collect::<Vec<f64>>(), "what is added in place");
        }
    }
}

/// Of every vector unit that this processor has.
fn check(sizes: ConvSizes) {
    for isa in Isa::available() {
        Case::new(isa, sizes).check();
    }
}

const SIZES: ConvSizes = ConvSizes {
    inputs: 19,
    outputs: 37,
    height: 9,
    width: 12,
    kernel: 1,
    stride: 1,
    pads: Pads { top: 0, bottom: 0, left: 0, right: 0 },
    groups: 1,
};

fn around(zeros: usize) -> Pads {
    Pads { top: zeros, bottom: zeros, left: zeros, right: zeros }
}

#[test]
fn a_pointwise_convolution_is_the_product_of_its_pixels_and_the_weight() {
    for (inputs, outputs, height, width) in
        [(1, 1, 1, 1), (8, 16, 7, 7), (19, 37, 9, 12), (40, 3, 23, 31)]
    {
        check(ConvSizes { inputs, outputs, height, width, ..SIZES });
    }
}

#[test]
fn a_depthwise_convolution_of_any_window_stride_and_zeros() {
    for (kernel, stride, pads) in [
        (3, 1, around(1)),
        (3, 2, around(1)),
        (5, 1, around(2)),
        (5, 2, around(2)),
        (3, 2, Pads::same([9, 12], 3, 2)),
        (5, 2, Pads::same([9, 12], 5, 2)),
        (3, 1, around(0)),
        (2, 3, around(1)),
        (7, 2, around(3)),
        (4, 3, Pads { top: 3, bottom: 0, left: 1, right: 2 }),
        (1, 1, around(0)),
        (1, 2, around(0)),
        (1, 4, around(0)),
    ] {
        for channels in [1, 16, 19, 40] {
            let (inputs, outputs, groups) = (channels, channels, channels);
            check(ConvSizes { inputs, outputs, groups, kernel, stride, pads, ..SIZES });
        }
    }
}

#[test]
fn a_depthwise_convolution_of_a_small_map() {
    for (height, width) in [(1, 1), (1, 5), (2, 2), (4, 1)] {
        for (kernel, stride) in [(3, 1), (3, 2), (5, 2), (7, 1)] {
            let sizes = ConvSizes {
                inputs: 9,
                outputs: 9,
                groups: 9,
                height,
                width,
                kernel,
                stride,
                ..SIZES
            };
            check(ConvSizes { pads: around(kernel / 2), ..sizes });
            check(ConvSizes { pads: Pads::same([height, width], kernel, stride), ..sizes });
        }
    }
}

#[test]
fn any_other_convolution_by_windows_and_by_winograd() {
    for (inputs, outputs, kernel, stride, pads) in [
        (16, 24, 3, 1, around(1)),
        (17, 17, 3, 1, around(1)),
        (5, 5, 3, 1, around(1)),
        (17, 33, 3, 1, Pads { top: 0, bottom: 1, left: 1, right: 0 }),
        (3, 20, 3, 2, Pads::same([9, 12], 3, 2)),
        (5, 9, 7, 2, around(3)),
        (5, 9, 1, 2, around(0)),
        (4, 8, 2, 1, around(0)),
        (4, 8, 5, 1, around(2)),
    ] {
        check(ConvSizes { inputs, outputs, kernel, stride, pads, ..SIZES });
    }
}

#[test]
fn several_images_at_once_give_what_each_gives_alone() {
    let sizes = ConvSizes { inputs: 48, outputs: 40, height: 5, width: 7, ..SIZES };
    let sizes = ConvSizes { kernel: 3, pads: around(1), ..sizes };
    for isa in Isa::available() {
        let conv = Conv::new(isa, sizes).unwrap();
        assert!(conv.images() >= 5);
        let (from, to) = (Map::new(isa, [48, 5, 7]), Map::new(isa, [40, 5, 7]));
        let images = |map: &Map, seed: u32| {
            (0..5).map(|i| padded(map, map.len(), seed + 1000 * i)).collect()
        };
        let (xs, gradients): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (images(&from, 1), images(&to, 2));
        let weight = numbers(48 * 40 * 9, 3);
        let (forward, backward) = (packed(&conv, &weight, false), packed(&conv, &weight, true));
        let mut scratch = vec![f32::NAN; conv.scratch_len()];
        let mut run = |at_once: usize| {
            let (mut ys, mut dxs) = (vec![vec![0.0; to.len()]; 5], vec![vec![0.0; from.len()]; 5]);
            let (mut dw, mut db) = (vec![0.0; conv.sums_len()], vec![0.0; to.padded]);
            for first in (0..5).step_by(at_once) {
                let of = first..(first + at_once).min(5);
                let input = |x| Input::Map(Read::plain(x));
                let passes = xs[of.clone()].iter().zip(&mut ys[of.clone()]);
                let mut passes: Vec<Forward<'_>> = passes
                    .map(|(x, to)| {
                        let activation = Activation::Identity;
                        let output = Output { bias: None, activation, to, moments: None };
                        Forward { input: input(x), output }
                    })
                    .collect();
                conv.forward(&mut passes, &forward, &mut scratch);
                let passes = xs[of.clone()].iter().zip(&gradients[of.clone()]).zip(&mut dxs[of]);
                let mut passes: Vec<Backward<'_>> = passes
                    .map(|((x, gradient), to)| Backward {
                        input: Some(input(x)),
                        incoming: Incoming { gradient: Some(gradient), norm: None },
                        outgoing: Some(Outgoing { to, add: false, norm: None }),
                    })
                    .collect();
                let sums = WeightSums { weight: &mut dw, bias: Some(&mut db) };
                conv.backward(&mut passes, &backward, &mut scratch, Some(sums));
            }
            (ys, dxs, conv.finish_weight(&dw), db)
        };
        let (ys, dxs, dw, db) = run(1);
        for at_once in [2, 5] {
            let together = run(at_once);
            assert!(together.0 == ys && together.1 == dxs, "{isa:?}: {at_once} images at once");
            for (found, expected) in [(&together.2, &dw), (&together.3, &db)] {
                let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    assert!((found - expected).abs() <= 1e-5 * largest, "{isa:?}: {at_once}");
                }
            }
        }
    }
}
