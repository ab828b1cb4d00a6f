//! Convolution against a direct computation in f64: values and all three gradients, over shapes
//! drawn at random.

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::Module;
use kd_ops::{Conv2d, Conv2dConfig, conv2d, conv2d_chain};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    inputs: usize,
    outputs: usize,
    height: usize,
    width: usize,
    kernel: (usize, usize),
    config: Conv2dConfig,
    seed: u64,
}

fn numbers(rng: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0).collect()
}

impl Case {
    fn out(&self) -> Option<(usize, usize)> {
        let Conv2dConfig { stride, padding, dilation, .. } = self.config;
        let out = |size: usize, kernel: usize| {
            Some((size + 2 * padding).checked_sub(dilation * (kernel - 1) + 1)? / stride + 1)
        };
        Some((out(self.height, self.kernel.0)?, out(self.width, self.kernel.1)?))
    }
}

/// The largest difference between the two.
fn difference(found: &Tensor, expected: &[f64]) -> Result<f64> {
    let found = found.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|f| f.is_finite()));
    Ok(largest(found.iter().zip(expected).map(|(&f, e)| f64::from(f) - e)))
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |m, v| m.max(v.abs()))
}

/// Values and gradients of x, weight and bias, in f64, window by window.
///
/// Where rounding may decide (a ReLU's input next to zero, a pool's two largest next to each
/// other) the gradient is ambiguous: such entries of `dy` are set to zero.
struct Reference {
    dy: Vec<f32>,
    y: Vec<f64>,
    dx: Vec<f64>,
    dweight: Vec<f64>,
    dbias: Vec<f64>,
    magnitudes: Magnitudes,
}

/// The largest sums that the terms' absolute values may have: the largest input or gradient, times the sums of the absolute weights
/// that meet it. Rounding grows with them and not with the sums themselves, which may be nearly zero; and a tile of Winograd's has the
/// rounding of all of its pixels in each sum, of which a window at the border may have few.
struct Magnitudes {
    y: f64,
    dx: f64,
    dweight: f64,
    dbias: f64,
}

/// What f32 may be wrong by, over [`Magnitudes`]. In some thousand small maps Winograd's rounding was 8e-7 of them at most.
const OF_SUMS: f64 = 5e-6;
/// The same of a weight's gradient, for which it was 4e-6: its formula has the largest numbers.
const OF_WEIGHTS: f64 = 2e-5;

fn reference(case: &Case, x: &[f32], weight: &[f32], bias: &[f32], dy: &[f32]) -> Reference {
    let Case { batch, inputs, outputs, height, width, kernel: (kh, kw), config, .. } = *case;
    let (out_height, out_width) = case.out().unwrap();
    let mut full = vec![0.0f64; batch * outputs * out_height * out_width];
    let at = |n: usize, o: usize, y: usize, x: usize| {
        ((n * outputs + o) * out_height + y) * out_width + x
    };
    // Calls `f(output, input, weight)` with the indices of every product.
    let each = |f: &mut dyn FnMut(usize, usize, usize)| {
        for n in 0..batch {
            for o in 0..outputs {
                for y in 0..out_height {
                    for x in 0..out_width {
                        for i in 0..inputs {
                            for ky in 0..kh {
                                for kx in 0..kw {
                                    let iy = y * config.stride + ky * config.dilation;
                                    let ix = x * config.stride + kx * config.dilation;
                                    let (Some(iy), Some(ix)) = (
                                        iy.checked_sub(config.padding).filter(|&iy| iy < height),
                                        ix.checked_sub(config.padding).filter(|&ix| ix < width),
                                    ) else {
                                        continue;
                                    };
                                    f(
                                        at(n, o, y, x),
                                        ((n * inputs + i) * height + iy) * width + ix,
                                        ((o * inputs + i) * kh + ky) * kw + kx,
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    let plane = out_height * out_width;
    for (i, y) in full.iter_mut().enumerate() {
        *y = f64::from(bias[i / plane % outputs]);
    }
    each(&mut |y, i, w| full[y] += f64::from(x[i]) * f64::from(weight[w]));
    // Sums of the absolute weights by output and by input.
    let (mut of_output, mut of_input) = (vec![0.0f64; outputs], vec![0.0f64; inputs]);
    for (w, weight) in weight.iter().enumerate() {
        let weight = f64::from(weight.abs());
        of_output[w / (inputs * kh * kw)] += weight;
        of_input[w / (kh * kw) % inputs] += weight;
    }
    let wide = |values: &[f32]| largest(values.iter().map(|v| f64::from(*v)));
    let y_magnitude = wide(x) * largest(of_output.into_iter()) + wide(bias);
    let close = OF_SUMS * y_magnitude;
    let mut dy = dy.to_vec();
    // The gradient with respect to the full map, through pool and ReLU.
    let mut dfull = vec![0.0f64; full.len()];
    let y = if config.max_pool2 {
        let mut pooled = Vec::new();
        for n in 0..batch {
            for o in 0..outputs {
                for y in 0..out_height / 2 {
                    for x in 0..out_width / 2 {
                        let mut best = at(n, o, 2 * y, 2 * x);
                        let mut second = f64::NEG_INFINITY;
                        for (dy, dx) in [(0, 1), (1, 0), (1, 1)] {
                            let next = at(n, o, 2 * y + dy, 2 * x + dx);
                            second = second.max(full[next].min(full[best]));
                            if full[next] > full[best] {
                                best = next;
                            }
                        }
                        let dead = config.relu && full[best] < -close;
                        if !dead && full[best] - second < 2.0 * close {
                            dy[pooled.len()] = 0.0;
                        }
                        if config.relu && full[best].abs() < close {
                            dy[pooled.len()] = 0.0;
                        }
                        dfull[best] += f64::from(dy[pooled.len()]);
                        pooled.push(full[best]);
                    }
                }
            }
        }
        pooled
    } else {
        for ((dfull, dy), full) in dfull.iter_mut().zip(&mut dy).zip(&full) {
            if config.relu && full.abs() < close {
                *dy = 0.0;
            }
            *dfull = f64::from(*dy);
        }
        full.clone()
    };
    let y = y.into_iter().map(|y| if config.relu { y.max(0.0) } else { y }).collect();
    if config.relu {
        for (dfull, full) in dfull.iter_mut().zip(&full) {
            if *full <= 0.0 {
                *dfull = 0.0;
            }
        }
    }
    let mut dx = vec![0.0; x.len()];
    let mut dweight = vec![0.0; weight.len()];
    let (mut dbias, mut of_gradients) = (vec![0.0; outputs], vec![0.0f64; outputs]);
    each(&mut |y, i, w| {
        dx[i] += dfull[y] * f64::from(weight[w]);
        dweight[w] += dfull[y] * f64::from(x[i]);
    });
    for (i, dfull) in dfull.iter().enumerate() {
        dbias[i / plane % outputs] += dfull;
        of_gradients[i / plane % outputs] += dfull.abs();
    }
    let of_gradients = largest(of_gradients.into_iter());
    let magnitudes = Magnitudes {
        y: y_magnitude,
        dx: largest(dfull.into_iter()) * largest(of_input.into_iter()),
        dweight: wide(x) * of_gradients,
        dbias: of_gradients,
    };
    Reference { dy, y, dx, dweight, dbias, magnitudes }
}

fn check(case: &Case) -> Result<()> {
    let Some((out_height, out_width)) = case.out() else { return Ok(()) };
    let halved = if case.config.max_pool2 { 2 } else { 1 };
    let out_shape = (case.batch, case.outputs, out_height / halved, out_width / halved);
    let mut rng = ChaCha8Rng::seed_from_u64(case.seed);
    let x = numbers(&mut rng, case.batch * case.inputs * case.height * case.width);
    let weight = numbers(&mut rng, case.outputs * case.inputs * case.kernel.0 * case.kernel.1);
    let bias = numbers(&mut rng, case.outputs);
    let dy = numbers(&mut rng, out_shape.0 * out_shape.1 * out_shape.2 * out_shape.3);
    let expected = reference(case, &x, &weight, &bias, &dy);
    let magnitudes = &expected.magnitudes;

    let device = &Device::Cpu;
    let x = Var::from_vec(x, (case.batch, case.inputs, case.height, case.width), device)?;
    let weight =
        Var::from_vec(weight, (case.outputs, case.inputs, case.kernel.0, case.kernel.1), device)?;
    let bias = Var::from_vec(bias, case.outputs, device)?;
    let dy = Tensor::from_vec(expected.dy.clone(), out_shape, device)?;
    let y = conv2d(&x, &weight, Some(bias.as_tensor()), &case.config)?;
    assert_eq!(y.dims(), dy.dims());
    let grads = (y.clone() * dy)?.sum_all()?.backward()?;
    let gradient = |of: &Var, expected| difference(grads.get(of).unwrap(), expected);
    let found = [
        ("y", difference(&y, &expected.y)?, OF_SUMS * magnitudes.y),
        ("dx", gradient(&x, &expected.dx)?, OF_SUMS * magnitudes.dx),
        ("dweight", gradient(&weight, &expected.dweight)?, OF_WEIGHTS * magnitudes.dweight),
        ("dbias", gradient(&bias, &expected.dbias)?, OF_SUMS * magnitudes.dbias),
    ];
    for (name, off, bound) in found {
        assert!(off <= bound, "{name} is off by {off:e}, more than {bound:e}, in {case:?}");
    }
    Ok(())
}

prop_compose! {
    fn cases()(
        batch in 1usize..20,
        inputs in prop_oneof![1usize..6, Just(8), Just(16), 15usize..40],
        outputs in prop_oneof![1usize..6, Just(16), 15usize..40],
        height in 1usize..13,
        width in 1usize..13,
        kernel in prop_oneof![Just((3, 3)), Just((3, 3)), Just((1, 1)), (1usize..5, 1usize..5)],
        stride in prop_oneof![Just(1usize), Just(1), 1usize..4],
        padding in 0usize..4,
        dilation in prop_oneof![Just(1usize), Just(1), 1usize..3],
        relu in any::<bool>(),
        max_pool2 in any::<bool>(),
        seed in any::<u64>(),
    ) -> Case {
        let config =
            Conv2dConfig { stride, padding, dilation, relu, max_pool2, ..Default::default() };
        Case { batch, inputs, outputs, height, width, kernel, config, seed }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_shape_agrees_with_f64(case in cases()) {
        check(&case).unwrap();
    }
}

fn layer(inputs: usize, outputs: usize, side: usize, max_pool2: bool) -> Case {
    let config = Conv2dConfig { padding: 1, relu: true, max_pool2, ..Default::default() };
    let (height, width) = (side, side);
    Case { batch: 3, inputs, outputs, height, width, kernel: (3, 3), config, seed: 7 }
}

#[test]
fn the_tutorials_layers_agree_with_f64() -> Result<()> {
    for (inputs, outputs, side, max_pool2) in [
        (3, 16, 32, true),
        (16, 16, 16, true),
        (3, 128, 32, false),
        (128, 64, 32, true),
        (64, 64, 16, false),
        (64, 32, 16, true),
    ] {
        check(&layer(inputs, outputs, side, max_pool2))?;
    }
    Ok(())
}

/// Three layers with pools, strides and odd sizes: as a chain and one by one.
#[test]
fn a_chain_gives_what_its_layers_give_one_by_one() -> Result<()> {
    let device = &Device::Cpu;
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let pool = |relu| Conv2dConfig { padding: 1, relu, max_pool2: true, ..Default::default() };
    let plain = |stride| Conv2dConfig { padding: 1, relu: true, stride, ..Default::default() };
    for (channels, configs) in [
        ([3, 20, 17, 16], [plain(1), plain(1), pool(true)]),
        ([3, 8, 16, 24], [pool(true), pool(false), plain(1)]),
        ([2, 5, 7, 3], [plain(2), pool(true), plain(1)]),
        ([16, 16, 16, 16], [plain(1), plain(2), plain(1)]),
    ] {
        let x = Var::from_vec(
            numbers(&mut rng, 9 * channels[0] * 17 * 15),
            (9, channels[0], 17, 15),
            device,
        )?;
        let mut variables = vec![x.clone()];
        let mut layers = Vec::new();
        for (l, config) in configs.into_iter().enumerate() {
            let (i, o) = (channels[l], channels[l + 1]);
            let weight = Var::from_vec(numbers(&mut rng, o * i * 9), (o, i, 3, 3), device)?;
            let bias = Var::from_vec(numbers(&mut rng, o), o, device)?;
            layers.push(Conv2d {
                weight: weight.as_tensor().clone(),
                bias: Some(bias.as_tensor().clone()),
                config,
            });
            variables.extend([weight, bias]);
        }
        let chained = conv2d_chain(&x, &layers.iter().collect::<Vec<_>>())?;
        let mut single = x.as_tensor().clone();
        for layer in &layers {
            single = layer.forward(&single)?;
        }
        let as_f64 = |t: &Tensor| -> Result<Vec<f64>> {
            Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
        };
        let expected = as_f64(&single)?;
        assert!(difference(&chained, &expected)? < 1e-5 * largest(expected.into_iter()));
        let weights =
            Tensor::from_vec(numbers(&mut rng, single.elem_count()), single.shape(), device)?;
        let chained = (chained * &weights)?.sum_all()?.backward()?;
        let single = (single * &weights)?.sum_all()?.backward()?;
        for variable in &variables {
            let expected = as_f64(single.get(variable).unwrap())?;
            let distance = difference(chained.get(variable).unwrap(), &expected)?;
            let distance = distance / largest(expected.into_iter());
            assert!(distance < 1e-5, "{:?} is off by {distance:e}", variable.shape());
        }
    }
    Ok(())
}
