//! Operations against direct computations in f64, over shapes drawn at random, and gradients against finite differences.
//! (Convolution's f64 reference has a file of its own, conv2d.rs.)

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::Module;
use kd_ops::adam::{Adam, AdamConfig};
use kd_ops::{
    Conv2d, Conv2dConfig, DropoutKey, conv2d, conv2d_chain, dropout, linear, max_pool2d,
    max_pool2d_padded, relu, relu6,
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// In [-1, 1).
fn numbers(seed: u64, tag: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(tag);
    (0..len).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn var(seed: u64, tag: u64, shape: &[usize]) -> Var {
    let values = numbers(seed, tag, shape.iter().product());
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn to_f64(tensor: &Tensor) -> Vec<f64> {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f64::from).collect()
}

/// The largest absolute value.
fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |max, x| max.max(x.abs()))
}

/// The largest difference is at most `share` of `magnitude`. Where numbers are summed, `magnitude` is the largest sum of the terms'
/// absolute values: rounding grows with it, and not with the sum, which may be nearly zero.
fn assert_near(what: &str, found: &Tensor, expected: &[f64], (share, magnitude): (f64, f64)) {
    let found = to_f64(found);
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let near = (found - expected).abs() <= share * magnitude;
        assert!(near, "{what}[{i}] is {found}, in f64 {expected}, of terms of {magnitude}");
    }
}

/// Gradients of `sum(y * dy)`.
fn gradients(y: &Tensor, dy: &Tensor, of: &[&Var]) -> Vec<Tensor> {
    let grads = (y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    of.iter().map(|var| grads.get(var).unwrap().clone()).collect()
}

/// Sums in f64, and the sums of their terms' absolute values.
struct Sums {
    values: Vec<f64>,
    magnitudes: Vec<f64>,
}

impl Sums {
    fn zeros(len: usize) -> Self {
        Self { values: vec![0.0; len], magnitudes: vec![0.0; len] }
    }

    fn add(&mut self, at: usize, term: f64) {
        self.values[at] += term;
        self.magnitudes[at] += term.abs();
    }

    fn assert_near(&self, what: &str, found: &Tensor) {
        assert_near(what, found, &self.values, (OF_SUMS, largest(&self.magnitudes)));
    }
}

/// What a sum in f32 may be wrong by, over the sum of its terms' absolute values.
const OF_SUMS: f64 = 4e-6;

fn check_linear(batch: usize, inputs: usize, outputs: usize, with_relu: bool, seed: u64) {
    let (x, weight) = (var(seed, 0, &[batch, inputs]), var(seed, 1, &[outputs, inputs]));
    let bias = var(seed, 2, &[outputs]);
    let (xs, weights, biases) = (to_f64(&x), to_f64(&weight), to_f64(&bias));
    let mut dys = numbers(seed, 3, batch * outputs);
    let mut y = Sums::zeros(batch * outputs);
    for b in 0..batch {
        for o in 0..outputs {
            let at = b * outputs + o;
            y.add(at, biases[o]);
            (0..inputs).for_each(|i| y.add(at, xs[b * inputs + i] * weights[o * inputs + i]));
        }
    }
    let close = OF_SUMS * largest(&y.magnitudes);
    let (mut dx, mut dweight) = (Sums::zeros(xs.len()), Sums::zeros(weights.len()));
    let mut dbias = Sums::zeros(outputs);
    for b in 0..batch {
        for o in 0..outputs {
            let at = b * outputs + o;
            // Next to zero rounding decides whether the ReLU lets through.
            if with_relu && y.values[at].abs() <= close {
                dys[at] = 0.0;
            }
            if with_relu && y.values[at] < 0.0 {
                y.values[at] = 0.0;
                continue;
            }
            let dy = f64::from(dys[at]);
            dbias.add(o, dy);
            for i in 0..inputs {
                dx.add(b * inputs + i, dy * weights[o * inputs + i]);
                dweight.add(o * inputs + i, dy * xs[b * inputs + i]);
            }
        }
    }
    let found = linear(&x, &weight, Some(&bias), with_relu).unwrap();
    y.assert_near("y", &found);
    let dy = Tensor::from_vec(dys, (batch, outputs), &Device::Cpu).unwrap();
    let found = gradients(&found, &dy, &[&x, &weight, &bias]);
    for ((what, found), expected) in
        ["dx", "dweight", "dbias"].iter().zip(&found).zip([&dx, &dweight, &dbias])
    {
        expected.assert_near(what, found);
    }
}

#[test]
fn the_tutorials_linear_layers_agree_with_f64() {
    check_linear(7, 2048, 512, true, 1);
    check_linear(128, 256, 10, false, 2);
}

/// `y` and `dx` of windows of the plane, by the definition.
fn pooled(
    x: &[f64],
    (planes, height, width): (usize, usize, usize),
    (kernel, stride): (usize, usize),
    dy: &[f32],
) -> (Vec<f64>, Sums) {
    let (mut y, mut dx) = (Vec::new(), Sums::zeros(x.len()));
    for plane in 0..planes {
        for top in (0..=height - kernel).step_by(stride) {
            for left in (0..=width - kernel).step_by(stride) {
                let at = |i: usize| {
                    plane * height * width + (top + i / kernel) * width + left + i % kernel
                };
                let first_max = (0..kernel * kernel)
                    .rev()
                    .max_by(|&a, &b| x[at(a)].partial_cmp(&x[at(b)]).unwrap());
                let best = at(first_max.unwrap());
                dx.add(best, f64::from(dy[y.len()]));
                y.push(x[best]);
            }
        }
    }
    (y, dx)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_linear_layer_agrees_with_f64(
        batch in 1usize..20, inputs in 1usize..70, outputs in 1usize..40, with_relu in any::<bool>(), seed in any::<u64>(),
    ) {
        check_linear(batch, inputs, outputs, with_relu, seed);
    }

    /// Few different values, so that windows have ties.
    #[test]
    fn any_max_pool_agrees_with_its_definition(
        batch in 1usize..4, channels in 1usize..20, (kernel, height, width) in
            (1usize..5).prop_flat_map(|kernel| (Just(kernel), kernel..14, kernel..14)),
        stride in 1usize..5, seed in any::<u64>(),
    ) {
        let values = numbers(seed, 0, batch * channels * height * width);
        let values: Vec<f32> = values.into_iter().map(|x| (x * 4.0).round()).collect();
        let x = Var::from_vec(values, (batch, channels, height, width), &Device::Cpu).unwrap();
        let y = max_pool2d(&x, kernel, stride).unwrap();
        let dy = numbers(seed, 1, y.elem_count());
        let planes = (batch * channels, height, width);
        let (expected, dx) = pooled(&to_f64(&x), planes, (kernel, stride), &dy);
        let dy = Tensor::from_vec(dy, y.shape(), &Device::Cpu).unwrap();
        let found = gradients(&y, &dy, &[&x]);
        prop_assert_eq!(to_f64(&y), expected);
        dx.assert_near("dx", &found[0]);
    }

    #[test]
    fn dropout_and_relu_scale_by_the_same_factor_both_ways(len in 1usize..300, p in 0.0f64..0.95, seed in any::<u64>()) {
        let x = var(seed, 0, &[len]);
        let dy = Tensor::from_vec(numbers(seed, 1, len), len, &Device::Cpu).unwrap();
        // The mask, read off ones.
        let ones = Tensor::ones(len, DType::F32, &Device::Cpu).unwrap();
        let key = DropoutKey { seed, step: 3 };
        let mask = to_f64(&dropout(&ones, p, key, 1).unwrap());
        prop_assert!(mask.iter().all(|&m| m == 0.0 || (m - 1.0 / (1.0 - p)).abs() < 1e-5 * m));
        let y = dropout(&x, p, key, 1).unwrap();
        let times = |values: &[f64], by: &[f64]| values.iter().zip(by).map(|(a, b)| a * b).collect::<Vec<_>>();
        let near = |what, found: &Tensor, expected: Vec<f64>| {
            assert_near(what, found, &expected, (1e-6, largest(&expected)));
        };
        near("y", &y, times(&to_f64(&x), &mask));
        near("dx", &gradients(&y, &dy, &[&x])[0], times(&to_f64(&dy), &mask));

        let mask: Vec<f64> = to_f64(&x).iter().map(|&x| f64::from(u8::from(x > 0.0))).collect();
        let y = relu(&x).unwrap();
        prop_assert_eq!(to_f64(&y), times(&to_f64(&x), &mask));
        prop_assert_eq!(to_f64(&gradients(&y, &dy, &[&x])[0]), times(&to_f64(&dy), &mask));
    }

    /// Kingma and Ba, "Adam" (2015), algorithm 1, with an L2 penalty as PyTorch adds it.
    #[test]
    fn adam_agrees_with_its_paper(
        len in 1usize..300, steps in 1usize..6, lr in 1e-4f64..1e-1, beta1 in 0.0f64..0.99, beta2 in 0.5f64..0.9999,
        weight_decay in 0.0f64..0.1, seed in any::<u64>(),
    ) {
        let config = AdamConfig { lr, beta1, beta2, eps: 1e-8, weight_decay, ..AdamConfig::default() };
        let mut adam = Adam::new(config);
        let parameter = var(seed, 0, &[len]);
        let parameters = BTreeMap::from([("w".to_string(), parameter.clone())]);
        let mut expected = to_f64(&parameter);
        let (mut first, mut second) = (vec![0.0; len], vec![0.0; len]);
        // A parameter is at most 1 at first and moves by at most 3 lr in a step.
        let mut slack = vec![1e-6 * (1.0 + 3.0 * lr * steps as f64); len];
        for step in 1..=steps {
            let gradient = numbers(seed, step as u64, len);
            let by = Tensor::from_vec(gradient.clone(), len, &Device::Cpu).unwrap();
            let grads = (parameter.as_tensor() * by).unwrap().sum_all().unwrap().backward().unwrap();
            adam.step(&parameters, &grads).unwrap();
            for i in 0..len {
                let g = f64::from(gradient[i]) + weight_decay * expected[i];
                first[i] = beta1 * first[i] + (1.0 - beta1) * g;
                second[i] = beta2 * second[i] + (1.0 - beta2) * g * g;
                let m = first[i] / (1.0 - beta1.powi(step as i32));
                let v = second[i] / (1.0 - beta2.powi(step as i32));
                expected[i] -= lr * m / (v.sqrt() + 1e-8);
                // Gradient and penalty may nearly cancel: the sum is known to a rounding of its terms, and a step's length is a
                // quotient of such sums.
                slack[i] += 2e-6 * lr / (v.sqrt() + 1e-8);
            }
        }
        for (i, (found, expected)) in to_f64(&parameter).into_iter().zip(expected).enumerate() {
            let off = (found - expected).abs();
            prop_assert!(off <= slack[i], "[{i}] is {found}, in f64 {expected}, within {}", slack[i]);
        }
    }
}

/// The gradient is that of `loss`: going along it by ±h changes the loss by 2 h times its length. A gradient of another length or
/// another direction would change it by less than its length promises.
fn assert_is_gradient(what: &str, vars: &[&Var], loss: impl Fn() -> Result<Tensor>) {
    // Each output with a weight of its own, summed in f64.
    let value = || {
        let y = to_f64(&loss().unwrap());
        let weights = numbers(11, 12, y.len());
        y.iter().zip(weights).map(|(y, w)| y * f64::from(w)).sum::<f64>()
    };
    let y = loss().unwrap();
    let dy = Tensor::from_vec(numbers(11, 12, y.elem_count()), y.shape(), &Device::Cpu).unwrap();
    let grads = gradients(&y, &dy, vars);
    for (i, (var, grad)) in vars.iter().zip(grads).enumerate() {
        let length = to_f64(&grad).iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!(length > 0.0, "{what}: no gradient of input {i}");
        let start = var.as_tensor().copy().unwrap();
        let h = 1e-3;
        let at = |h: f64| {
            var.set(&(&start + (&grad * (h / length)).unwrap()).unwrap()).unwrap();
            value()
        };
        let slope = (at(h) - at(-h)) / (2.0 * h);
        var.set(&start).unwrap();
        let off = (slope / length - 1.0).abs();
        assert!(
            off < 5e-3,
            "{what}: along the gradient of input {i} the slope is {slope}, its length {length}"
        );
    }
}

#[test]
fn gradients_are_finite_differences() {
    let plain = Conv2dConfig { padding: 1, ..Default::default() };
    let cases = [
        ("Winograd", 16, 18, 3, plain),
        ("Winograd, ReLU", 16, 18, 3, Conv2dConfig { relu: true, ..plain }),
        ("Winograd, ReLU, pool", 16, 18, 3, Conv2dConfig { relu: true, max_pool2: true, ..plain }),
        ("direct", 3, 5, 3, plain),
        ("direct, ReLU, pool", 3, 5, 3, Conv2dConfig { relu: true, max_pool2: true, ..plain }),
        ("stride 2", 5, 6, 3, Conv2dConfig { stride: 2, ..plain }),
        ("dilation 2", 4, 3, 3, Conv2dConfig { dilation: 2, padding: 2, ..plain }),
        ("1x1", 6, 7, 1, Conv2dConfig::default()),
        ("5x5", 2, 3, 5, Conv2dConfig { padding: 2, ..plain }),
        ("\"same\"", 3, 4, 3, Conv2dConfig { padding: 0, same_padding: true, stride: 2, ..plain }),
        ("depthwise", 19, 19, 3, Conv2dConfig { groups: 19, ..plain }),
        ("depthwise 5x5", 5, 5, 5, Conv2dConfig { groups: 5, padding: 2, stride: 2, ..plain }),
        (
            "depthwise, ReLU, pool",
            16,
            16,
            3,
            Conv2dConfig { groups: 16, relu: true, max_pool2: true, ..plain },
        ),
        ("groups", 6, 9, 3, Conv2dConfig { groups: 3, ..plain }),
        ("two outputs a group", 4, 8, 3, Conv2dConfig { groups: 4, stride: 2, ..plain }),
    ];
    for (what, inputs, outputs, kernel, config) in cases {
        let x = var(5, 0, &[3, inputs, 10, 11]);
        let weight = var(5, 1, &[outputs, inputs / config.groups, kernel, kernel]);
        let bias = var(5, 2, &[outputs]);
        assert_is_gradient(what, &[&x, &weight, &bias], || {
            conv2d(&x, &weight, Some(&bias), &config)
        });
    }

    let (x, first, second) =
        (var(6, 0, &[2, 3, 9, 9]), var(6, 1, &[16, 3, 3, 3]), var(6, 2, &[17, 16, 3, 3]));
    let layer = |weight: &Var, max_pool2| Conv2d {
        weight: weight.as_tensor().clone(),
        bias: None,
        config: Conv2dConfig { relu: true, max_pool2, ..plain },
    };
    assert_is_gradient("chain", &[&x, &first, &second], || {
        conv2d_chain(&x, &[&layer(&first, false), &layer(&second, true)])
    });

    let x = var(7, 0, &[2, 3, 9, 8]);
    assert_is_gradient("max-pool", &[&x], || max_pool2d(&x, 3, 2));
    assert_is_gradient("padded max-pool", &[&x], || max_pool2d_padded(&x, 3, 2, 1));
    assert_is_gradient("ReLU", &[&x], || relu(&x));
    assert_is_gradient("ReLU6", &[&x], || relu6(&(x.as_tensor() * 9.0)?));
    assert_is_gradient("dropout", &[&x], || dropout(&x, 0.3, DropoutKey { seed: 1, step: 2 }, 0));
    let (x, weight, bias) = (var(8, 0, &[5, 33]), var(8, 1, &[12, 33]), var(8, 2, &[12]));
    for with_relu in [false, true] {
        assert_is_gradient("linear", &[&x, &weight, &bias], || {
            linear(&x, &weight, Some(&bias), with_relu)
        });
    }
}

#[test]
fn a_layer_of_candles_is_taken_over_as_it_is() -> Result<()> {
    let (weight, bias) = (var(9, 0, &[17, 16, 3, 3]), var(9, 1, &[17]));
    let x = var(9, 2, &[2, 16, 12, 12]);
    for (stride, padding, dilation, groups) in
        [(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (1, 1, 1, 2), (2, 1, 1, 16)]
    {
        let config =
            candle_nn::Conv2dConfig { stride, padding, dilation, groups, ..Default::default() };
        let (outputs, inputs) = (if groups == 1 { 17 } else { 16 }, 16 / groups);
        let weight = weight.narrow(0, 0, outputs)?.narrow(1, 0, inputs)?;
        let (weight, bias) = (Var::from_tensor(&weight)?, bias.narrow(0, 0, outputs)?);
        for bias in [None, Some(bias.clone())] {
            let theirs = candle_nn::Conv2d::new(weight.as_tensor().clone(), bias, config);
            let ours = Conv2d::from_candle(&theirs);
            let expected = theirs.forward(&x)?;
            let dy = var(9, 3, expected.dims());
            let found = ours.forward(&x)?;
            let near = |what, found: &Tensor, expected: &Tensor| {
                let expected = to_f64(expected);
                assert_near(what, found, &expected, (1e-4, largest(&expected)));
            };
            near("y", &found, &expected);
            for (found, expected) in gradients(&found, &dy, &[&x, &weight]).iter().zip(gradients(
                &expected,
                &dy,
                &[&x, &weight],
            )) {
                near("gradient", found, &expected);
            }
        }
    }
    Ok(())
}
