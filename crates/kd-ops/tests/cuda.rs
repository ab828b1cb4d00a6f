//! Every operation on a GPU against the same on the CPU, values and gradients; ignored where there is no GPU.
//!
//! ```text
//! cargo test -p kd-ops --features cuda --test cuda          # or --features cudnn
//! ```

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use kd_ops::adam::{Adam, AdamConfig, WeightDecay};
use kd_ops::cuda::graph::{Graph, keep_uploads};
use kd_ops::sgd::{Sgd, SgdConfig};
use kd_ops::{
    BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, DropoutKey, Statistics,
    clip_grad_norm_on_device, conv2d, conv2d_chain, dropout, grad_norms, linear, max_pool2d, relu,
    subsample_pad,
};
use libtest_mimic::{Arguments, Failed, Trial};

type Test = fn(&Device) -> Result<()>;

fn main() {
    let tests: [(&str, Test); 14] = [
        ("relu_and_dropout", relu_and_dropout),
        ("max_pool_with_ties_and_overlaps", max_pool_with_ties_and_overlaps),
        ("shortcuts", shortcuts),
        ("linear_layers", linear_layers),
        ("convolutions", convolutions),
        ("a_convolution_in_f64", a_convolution_in_f64),
        ("a_batch_norm_in_f64", a_batch_norm_in_f64),
        ("chains_of_convolutions", chains_of_convolutions),
        ("batch_norm_with_running_statistics", batch_norm_with_running_statistics),
        ("maps_of_bf16_beside_f32_parameters", maps_of_bf16_beside_f32_parameters),
        ("optimisers_and_their_state", optimisers_and_their_state),
        ("norms_and_clipping", norms_and_clipping),
        ("a_graph_takes_the_steps_that_it_stands_for", a_graph_takes_the_steps_that_it_stands_for),
        ("what_cannot_be_captured_leaves_the_gpu_usable", what_cannot_be_captured),
    ];
    let device = Device::new_cuda(0);
    if let Err(error) = &device {
        // The first line: a backtrace may follow.
        println!("skipped: no GPU ({})", error.to_string().lines().next().unwrap_or_default());
    }
    if let Ok(device) = &device {
        // As `kd` sets its device up: what is captured here is what it captures.
        kd_ops::cuda::keep_freed_memory(device).unwrap();
        // SAFETY: one thread runs all tests, see below.
        unsafe { kd_ops::cuda::use_one_thread(device) };
    }
    let trials = tests.into_iter().map(|(name, test)| {
        let device = device.as_ref().map(Device::clone).map_err(ToString::to_string);
        let ignored = device.is_err();
        let run = move || test(&device?).map_err(Failed::from);
        Trial::test(name, run).with_ignored_flag(ignored)
    });
    let mut arguments = Arguments::from_args();
    // All work for a GPU comes from one thread: candle's stream is another one in each thread.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// Numbers in ±1 from their index and `seed`, in steps of 2^-23.
fn numbers(shape: &[usize], seed: u32) -> Result<Tensor> {
    let len: usize = shape.iter().product();
    let value = |i: u32| (i.wrapping_mul(2654435761).rotate_left(seed) >> 8) as f32;
    let values: Vec<f32> =
        (1..=len as u32).map(|i| value(i + 977 * seed) / (1 << 23) as f32 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The value of `op` and its gradients with respect to `inputs`, all on the CPU.
fn run(
    device: &Device,
    inputs: &[Tensor],
    op: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|input| Var::from_tensor(&input.to_device(device)?))
        .collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = op(&tensors)?;
    let weights = numbers(y.dims(), 9)?.to_device(device)?;
    let grads = (&y * weights)?.sum_all()?.backward()?;
    let mut results = vec![y.to_device(&Device::Cpu)?];
    for var in &vars {
        let grad = grads.get(var).map_or_else(|| var.zeros_like(), |grad| Ok(grad.clone()))?;
        results.push(grad.to_device(&Device::Cpu)?);
    }
    Ok(results)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
}

/// The largest distance is at most `tolerance` of the largest value (and of 1).
fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) -> Result<()> {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found)?, values(expected)?);
    let most = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let good =
            (found - expected).abs() <= tolerance * most || found.to_bits() == expected.to_bits();
        assert!(good, "{what} [{i}]: {found}, expected {expected}");
    }
    Ok(())
}

/// GPU and CPU agree, and two runs on the GPU have the same bits.
fn check(
    what: &str,
    gpu: &Device,
    tolerance: f32,
    inputs: &[Tensor],
    op: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let expected = run(&Device::Cpu, inputs, op)?;
    let (first, second) = (run(gpu, inputs, op)?, run(gpu, inputs, op)?);
    for (i, (found, expected)) in first.iter().zip(&expected).enumerate() {
        let name =
            format!("{what}, {}", if i == 0 { "value".into() } else { format!("gradient {i}") });
        assert_close(&name, found, expected, tolerance)?;
        let bits = |tensor| {
            Ok::<_, candle_core::Error>(
                values(tensor)?.into_iter().map(f32::to_bits).collect::<Vec<_>>(),
            )
        };
        assert_eq!(bits(found)?, bits(&second[i])?, "{name}: two runs differ");
    }
    Ok(())
}

fn relu_and_dropout(gpu: &Device) -> Result<()> {
    for len in [1, 31, 1025, 70_001] {
        let x = [numbers(&[len], 1)?];
        check("relu", gpu, 0.0, &x, &|x| relu(&x[0]))?;
        let key = DropoutKey { seed: 0x0123_4567_89ab_cdef, step: 5 };
        check("dropout", gpu, 0.0, &x, &|x| dropout(&x[0], 0.3, key, 3))?;
    }
    // A transposed view is read in its own order.
    check("relu of a view", gpu, 0.0, &[numbers(&[5, 7], 2)?], &|x| relu(&x[0].t()?))
}

fn max_pool_with_ties_and_overlaps(gpu: &Device) -> Result<()> {
    for (shape, kernel, stride) in
        [([3, 2, 4, 4], 2, 2), ([2, 3, 7, 5], 2, 2), ([2, 1, 9, 8], 3, 2), ([1, 2, 6, 6], 3, 1)]
    {
        let x = (numbers(&shape, 3)? * 2.0)?.round()?;
        check("max_pool2d", gpu, 1e-6, &[x], &|x| max_pool2d(&x[0], kernel, stride))?;
    }
    Ok(())
}

fn shortcuts(gpu: &Device) -> Result<()> {
    for (shape, channels) in [([2, 4, 6, 6], 8), ([3, 3, 5, 7], 7)] {
        let x = [numbers(&shape, 4)?];
        check("subsample_pad", gpu, 0.0, &x, &|x| subsample_pad(&x[0], channels))?;
    }
    Ok(())
}

fn linear_layers(gpu: &Device) -> Result<()> {
    for (batch, inputs, outputs) in [(1, 1, 1), (5, 33, 10), (128, 100, 65)] {
        let all = [
            numbers(&[batch, inputs], 5)?,
            numbers(&[outputs, inputs], 6)?,
            numbers(&[outputs], 7)?,
        ];
        for with_relu in [false, true] {
            check("linear", gpu, 1e-5, &all, &|x| linear(&x[0], &x[1], Some(&x[2]), with_relu))?;
        }
    }
    Ok(())
}

fn convolutions(gpu: &Device) -> Result<()> {
    let plain = Conv2dConfig::default();
    for (x, weight, config) in [
        ([2, 3, 8, 8], [4, 3, 3, 3], Conv2dConfig { padding: 1, ..plain }),
        ([3, 16, 9, 7], [32, 16, 3, 3], Conv2dConfig { padding: 1, stride: 2, ..plain }),
        ([2, 5, 11, 10], [3, 5, 2, 3], Conv2dConfig { padding: 2, dilation: 2, ..plain }),
        ([4, 8, 5, 5], [6, 8, 1, 1], plain),
        ([7, 16, 32, 32], [16, 16, 3, 3], Conv2dConfig { padding: 1, ..plain }),
    ] {
        let all = [numbers(&x, 1)?, (numbers(&weight, 2)? * 0.2)?, numbers(&[weight[0]], 3)?];
        for (relu, max_pool2) in [(false, false), (true, false), (false, true), (true, true)] {
            let config = Conv2dConfig { relu, max_pool2, ..config };
            let what = format!("{config:?} on {x:?}");
            check(&what, gpu, 1e-5, &all, &|x| conv2d(&x[0], &x[1], Some(&x[2]), &config))?;
        }
        let view = |x: &[Tensor]| conv2d(&x[0].narrow(0, 1, 1)?, &x[1], None, &config);
        check("an image of a batch, without bias", gpu, 1e-5, &all[..2], &view)?;
    }
    Ok(())
}

/// Value and gradients against the definition in f64: three images of odd size, stride 2, padding 1, bias.
fn a_convolution_in_f64(gpu: &Device) -> Result<()> {
    let (images, inputs, outputs, height, width) = (3, 5, 4, 9, 7);
    let config = Conv2dConfig { stride: 2, padding: 1, ..Conv2dConfig::default() };
    let (out_height, out_width) = (5, 4);
    let all = [
        numbers(&[images, inputs, height, width], 1)?,
        numbers(&[outputs, inputs, 3, 3], 2)?,
        numbers(&[outputs], 3)?,
    ];
    let found = run(gpu, &all, &|x| conv2d(&x[0], &x[1], Some(&x[2]), &config))?;
    let (x, weight, bias) = (values(&all[0])?, values(&all[1])?, values(&all[2])?);
    let dy = values(&numbers(&[images, outputs, out_height, out_width], 9)?)?;
    let mut y = vec![0f64; dy.len()];
    let (mut dx, mut dweight) = (vec![0f64; x.len()], vec![0f64; weight.len()]);
    let mut dbias = vec![0f64; outputs];
    for (out, y) in y.iter_mut().enumerate() {
        let (column, row) = (out % out_width, out / out_width % out_height);
        let (channel, image) =
            (out / out_width / out_height % outputs, out / out_width / out_height / outputs);
        *y = f64::from(bias[channel]);
        dbias[channel] += f64::from(dy[out]);
        for (w, at) in (0..inputs * 9).map(|w| (channel * inputs * 9 + w, w)) {
            let (r, c) = (2 * row + at / 3 % 3, 2 * column + at % 3);
            if (1..=height).contains(&r) && (1..=width).contains(&c) {
                let from = ((image * inputs + at / 9) * height + r - 1) * width + c - 1;
                *y += f64::from(x[from]) * f64::from(weight[w]);
                dx[from] += f64::from(dy[out]) * f64::from(weight[w]);
                dweight[w] += f64::from(dy[out]) * f64::from(x[from]);
            }
        }
    }
    for (found, expected) in found.iter().zip([y, dx, dweight, dbias]) {
        let expected = Tensor::from_vec(expected, found.shape(), &Device::Cpu)?;
        assert_close("convolution", found, &expected, 1e-6)?;
    }
    Ok(())
}

/// Values far from zero, where a variance by sums of squares in f32 would be lost.
fn a_batch_norm_in_f64(gpu: &Device) -> Result<()> {
    let (images, channels, plane) = (6, 3, 35);
    let x = (numbers(&[images, channels, 5, 7], 1)? + 1000.0)?;
    let (weight, bias) = (numbers(&[channels], 2)?, numbers(&[channels], 3)?);
    let found = run(gpu, &[x.clone(), weight.clone(), bias.clone()], &|x| {
        let layer = BatchNorm {
            weight: x[1].clone(),
            bias: x[2].clone(),
            running_mean: Tensor::zeros(channels, DType::F32, x[0].device())?,
            running_var: Tensor::ones(channels, DType::F32, x[0].device())?,
            config: BatchNormConfig::default(),
        };
        layer.forward(&x[0], None, Statistics::Batch)
    })?;
    let (x, weight, bias) = (values(&x)?, values(&weight)?, values(&bias)?);
    let mut y = vec![0f64; x.len()];
    for channel in 0..channels {
        let of = |i: &usize| i / plane % channels == channel;
        let all: Vec<usize> = (0..x.len()).filter(of).collect();
        let count = (images * plane) as f64;
        let mean = all.iter().map(|&i| f64::from(x[i])).sum::<f64>() / count;
        let var = all.iter().map(|&i| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / count;
        for i in all {
            let normal = (f64::from(x[i]) - mean) / (var + 1e-5).sqrt();
            y[i] = normal * f64::from(weight[channel]) + f64::from(bias[channel]);
        }
    }
    // Values and mean are f32: half a unit in the last place of 1000 is 3e-5.
    let expected = Tensor::from_vec(y, found[0].shape(), &Device::Cpu)?;
    assert_close("batch_norm", &found[0], &expected, 1e-4)
}

fn chains_of_convolutions(gpu: &Device) -> Result<()> {
    let all = [
        numbers(&[3, 3, 9, 8], 1)?,
        (numbers(&[16, 3, 3, 3], 2)? * 0.3)?,
        numbers(&[16], 3)?,
        (numbers(&[8, 16, 3, 3], 4)? * 0.2)?,
        numbers(&[8], 5)?,
    ];
    let config = Conv2dConfig { padding: 1, relu: true, ..Conv2dConfig::default() };
    check("chain", gpu, 1e-5, &all, &|x| {
        let layer = |i: usize, max_pool2| Conv2d {
            weight: x[i].clone(),
            bias: Some(x[i + 1].clone()),
            config: Conv2dConfig { max_pool2, ..config },
        };
        conv2d_chain(&x[0], &[&layer(1, false), &layer(3, true)])
    })
}

fn batch_norm_with_running_statistics(gpu: &Device) -> Result<()> {
    for shape in [[4, 3, 5, 7], [1, 2, 1, 3], [33, 16, 8, 8]] {
        let channels = shape[1];
        let x = ((numbers(&shape, 1)? + 3.0)? * 2.0)?;
        let all = [x, numbers(&[channels], 2)?, numbers(&[channels], 3)?, numbers(&shape, 4)?];
        let (mean, var) = (numbers(&[channels], 5)?, (numbers(&[channels], 6)? + 1.5)?);
        for (statistics, relu, with_residual) in [
            (Statistics::Batch, true, true),
            (Statistics::Batch, false, false),
            (Statistics::Running, true, false),
            (Statistics::Running, false, true),
        ] {
            let running = std::cell::RefCell::new(Vec::new());
            let inputs = &all[..if with_residual { 4 } else { 3 }];
            check("batch_norm", gpu, 2e-5, inputs, &|x| {
                let device = x[0].device();
                let layer = BatchNorm {
                    weight: x[1].clone(),
                    bias: x[2].clone(),
                    running_mean: mean.to_device(device)?.copy()?,
                    running_var: var.to_device(device)?.copy()?,
                    config: BatchNormConfig { relu, ..BatchNormConfig::default() },
                };
                let y = layer.forward(&x[0], x.get(3), statistics)?;
                running.borrow_mut().push((layer.running_mean, layer.running_var));
                Ok(y)
            })?;
            let running = running.into_inner();
            for (mean, var) in &running[1..] {
                assert_close("running mean", mean, &running[0].0, 1e-6)?;
                assert_close("running variance", var, &running[0].1, 1e-6)?;
            }
        }
    }
    Ok(())
}

/// bf16 maps on the GPU against the same numbers in f32 on the CPU, within what bf16's 8 bits of mantissa round.
/// Parameters stay f32, and so do their gradients.
fn maps_of_bf16_beside_f32_parameters(gpu: &Device) -> Result<()> {
    let rounded = |x: Tensor| x.to_dtype(DType::BF16)?.to_dtype(DType::F32);
    let x = rounded(numbers(&[5, 8, 9, 7], 1)?)?;
    let weight = rounded((numbers(&[16, 8, 3, 3], 2)? * 0.2)?)?;
    let per_channel = [numbers(&[8], 3)?, numbers(&[8], 4)?];
    let flat =
        [rounded(numbers(&[33, 65], 5)?)?, rounded(numbers(&[10, 65], 6)?)?, numbers(&[10], 7)?];
    let key = DropoutKey { seed: 1, step: 2 };
    let norm = |x: &[Tensor]| {
        let device = x[0].device();
        let layer = BatchNorm {
            weight: x[1].clone(),
            bias: x[2].clone(),
            running_mean: Tensor::zeros(8, DType::F32, device)?,
            running_var: Tensor::ones(8, DType::F32, device)?,
            config: BatchNormConfig { relu: true, ..BatchNormConfig::default() },
        };
        layer.forward(&x[0], Some(&x[0]), Statistics::Batch)
    };
    type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;
    let with_bias = [x.clone(), weight.clone(), numbers(&[16], 8)?];
    let pooled =
        Conv2dConfig { padding: 1, relu: true, max_pool2: true, ..Conv2dConfig::default() };
    let plain = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
    let strided = Conv2dConfig { stride: 2, ..Conv2dConfig::default() };
    let cases: [(&str, &[Tensor], Op<'_>); 9] = [
        ("relu", &with_bias[..1], &|x| relu(&x[0])),
        ("dropout", &with_bias[..1], &|x| dropout(&x[0], 0.3, key, 3)),
        ("max_pool2d", &with_bias[..1], &|x| max_pool2d(&x[0], 3, 2)),
        ("subsample_pad", &with_bias[..1], &|x| subsample_pad(&x[0], 16)),
        ("conv2d", &with_bias, &|x| conv2d(&x[0], &x[1], Some(&x[2]), &plain)),
        ("conv2d without bias", &with_bias[..2], &|x| conv2d(&x[0], &x[1], None, &strided)),
        // Rounding moves a maximum, and with it a gradient, from one of two close pixels to the other.
        ("conv2d with pool", &with_bias, &|x| {
            Ok(conv2d(&x[0], &x[1], Some(&x[2]), &pooled)?.detach())
        }),
        ("linear", &flat, &|x| linear(&x[0], &x[1], Some(&x[2]), false)),
        ("batch_norm", &[x.clone(), per_channel[0].clone(), per_channel[1].clone()], &norm),
    ];
    for (name, inputs, op) in cases {
        let in_bf16 = |x: &[Tensor]| {
            let mut all = x.to_vec();
            if x[0].device().is_cuda() {
                all[0] = x[0].to_dtype(DType::BF16)?;
            }
            let y = op(&all)?;
            assert_eq!(y.dtype(), all[0].dtype(), "{name}");
            y.to_dtype(DType::F32)
        };
        check(&format!("{name} of bf16"), gpu, 0.02, inputs, &in_bf16)?;
    }
    Ok(())
}

/// Parameters of odd sizes, biases among them, more than a launch takes, with their gradients times `scale`.
fn parameters(
    device: &Device,
    scale: f64,
) -> Result<(BTreeMap<String, Var>, candle_core::backprop::GradStore)> {
    let mut parameters = BTreeMap::new();
    let mut loss = Tensor::zeros((), DType::F32, device)?;
    for i in 0..100 {
        let shape = match i {
            3 => vec![3, 4097],
            _ if i % 4 == 1 => vec![1 + i % 7],
            _ => vec![1 + i % 7, 3],
        };
        let var = Var::from_tensor(&numbers(&shape, i as u32 % 31)?.to_device(device)?)?;
        if i != 5 {
            let weights = (numbers(&shape, (i as u32 + 7) % 31)? * scale)?.to_device(device)?;
            loss = (loss + (var.as_tensor() * weights)?.sum_all()?)?;
        }
        parameters.insert(format!("p{i:03}"), var);
    }
    let grads = loss.backward()?;
    Ok((parameters, grads))
}

fn optimisers_and_their_state(gpu: &Device) -> Result<()> {
    for decay in [WeightDecay::L2, WeightDecay::Decoupled, WeightDecay::DecoupledForAll] {
        adam_and_its_state(gpu, AdamConfig { weight_decay: 0.1, decay, ..AdamConfig::default() })?;
    }
    sgd_and_its_state(gpu)
}

fn adam_and_its_state(gpu: &Device, adam: AdamConfig) -> Result<()> {
    let mut found = Vec::new();
    for device in [&Device::Cpu, gpu] {
        let (parameters, grads) = parameters(device, 1.0)?;
        let mut first = Adam::new(adam);
        first.step(&parameters, &grads)?;
        first.step(&parameters, &grads)?;
        first.fetch()?;
        // Saved and restored it goes on exactly.
        let mut second = Adam::new(adam);
        (second.steps, second.moments) = (first.steps, first.moments.clone());
        second.step(&parameters, &grads)?;
        second.fetch()?;
        found.push((parameters, second.moments));
    }
    let (on_gpu, on_cpu) = (found.pop(), found.pop());
    if let (Some((gpu, gpu_moments)), Some((cpu, cpu_moments))) = (on_gpu, on_cpu) {
        for (name, var) in &cpu {
            assert_close(name, gpu[name].as_tensor(), var.as_tensor(), 1e-6)?;
        }
        assert!(gpu_moments.keys().eq(cpu_moments.keys()));
        for (name, moments) in &cpu_moments {
            let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu);
            let found = &gpu_moments[name];
            assert_close(name, &tensor(&found.first)?, &tensor(&moments.first)?, 1e-6)?;
            assert_close(name, &tensor(&found.second)?, &tensor(&moments.second)?, 1e-6)?;
        }
    }
    Ok(())
}

fn sgd_and_its_state(gpu: &Device) -> Result<()> {
    for (momentum, nesterov) in [(0.0, false), (0.9, false), (0.9, true)] {
        let config = SgdConfig { lr: 0.1, momentum, nesterov, weight_decay: 0.01 };
        let mut found = Vec::new();
        for device in [&Device::Cpu, gpu] {
            let (parameters, grads) = parameters(device, 1.0)?;
            let mut sgd = Sgd::new(config);
            sgd.step(&parameters, &grads)?;
            sgd.step(&parameters, &grads)?;
            sgd.fetch()?;
            found.push((parameters, sgd.momentum));
        }
        for (name, var) in &found[0].0 {
            assert_close(name, found[1].0[name].as_tensor(), var.as_tensor(), 1e-6)?;
        }
        assert!(found[0].1.keys().eq(found[1].1.keys()));
    }
    Ok(())
}

fn norms_and_clipping(gpu: &Device) -> Result<()> {
    for (scale, max_norm) in [(1.0, 0.5), (1.0, 1e9), (1e30, 2.0)] {
        let mut found = Vec::new();
        for device in [&Device::Cpu, gpu] {
            let (parameters, mut grads) = parameters(device, scale)?;
            let norms = grad_norms(&parameters, &grads)?;
            let clipped = clip_grad_norm_on_device(&parameters, &mut grads, max_norm)?;
            let each = clipped.names.into_iter().zip(clipped.each.to_vec1::<f64>()?);
            assert_eq!(each.collect::<BTreeMap<_, _>>(), norms);
            found.push((norms, clipped.total.to_scalar::<f64>()?, parameters, grads));
        }
        let (cpu, gpu) = (&found[0], &found[1]);
        assert!((cpu.1 - gpu.1).abs() <= 1e-10 * cpu.1, "{} and {}", cpu.1, gpu.1);
        assert!(cpu.0.keys().eq(gpu.0.keys()));
        for (name, norm) in &cpu.0 {
            assert!((norm - gpu.0[name]).abs() <= 1e-10 * norm, "{name}: {norm}");
            if let (Some(expected), Some(found)) =
                (cpu.3.get(&cpu.2[name]), gpu.3.get(&gpu.2[name]))
            {
                assert_close(name, found, expected, 1e-6)?;
            }
        }
    }
    Ok(())
}

/// A layer with dropout, and what trains it.
struct Training {
    parameters: BTreeMap<String, Var>,
    adam: Adam,
    sgd: Option<Sgd>,
}

impl Training {
    fn new(gpu: &Device, sgd: bool) -> Result<Self> {
        let weight = Var::from_tensor(&numbers(&[10, 24], 3)?.to_device(gpu)?)?;
        let config = SgdConfig { lr: 0.1, momentum: 0.9, ..SgdConfig::default() };
        Ok(Self {
            parameters: BTreeMap::from([("weight".into(), weight)]),
            adam: Adam::new(AdamConfig { lr: 0.05, ..AdamConfig::default() }),
            sgd: sgd.then(|| Sgd::new(config)),
        })
    }

    /// A step's loss.
    fn step(&mut self, x: &Tensor, step: u64) -> Result<Tensor> {
        let weight = self.parameters["weight"].as_tensor();
        let y = linear(x, weight, None, true)?;
        let loss = dropout(&y, 0.3, DropoutKey { seed: 7, step }, 0)?.sqr()?.mean_all()?;
        let grads = loss.backward()?;
        match &mut self.sgd {
            Some(sgd) => sgd.step(&self.parameters, &grads)?,
            None => self.adam.step(&self.parameters, &grads)?,
        }
        Ok(loss.detach())
    }
}

fn a_graph_takes_the_steps_that_it_stands_for(gpu: &Device) -> Result<()> {
    const STEPS: u64 = 6;
    let batch = |step: u64| numbers(&[8, 24], step as u32)?.to_device(gpu);
    for sgd in [false, true] {
        let (mut plain, mut losses) = (Training::new(gpu, sgd)?, Vec::new());
        for step in 0..STEPS {
            losses.push(plain.step(&batch(step)?, step)?.to_scalar::<f32>()?);
        }

        let mut training = Training::new(gpu, sgd)?;
        let uploads = keep_uploads(gpu);
        for step in 0..2 {
            let loss = training.step(&batch(step)?, step)?.to_scalar::<f32>()?;
            assert_eq!(loss, losses[step as usize]);
        }
        drop(uploads);
        let (x, loss) = (batch(0)?, Tensor::zeros(1, DType::F32, gpu)?);
        // The number of the step, and its scalars, come with the launch: here they are others.
        let body = || loss.slice_set(&training.step(&x, 99)?.reshape(1)?, 0, 0);
        // SAFETY: all that the step uses lives to the end of this block.
        let mut graph = unsafe { Graph::capture(gpu, body) }?;
        for step in 2..STEPS {
            x.slice_set(&batch(step)?, 0, 0)?;
            let scalars = match &mut training.sgd {
                Some(sgd) => sgd.next_step(),
                None => training.adam.next_step(),
            };
            graph.launch(step, scalars)?;
            assert_eq!(loss.to_vec1::<f32>()?, [losses[step as usize]], "step {step}");
        }
        let weight = |training: &Training| values(training.parameters["weight"].as_tensor());
        assert_eq!(weight(&training)?, weight(&plain)?);
    }
    Ok(())
}

fn what_cannot_be_captured(gpu: &Device) -> Result<()> {
    let x = numbers(&[4, 5], 1)?.to_device(gpu)?;
    let sum = || values(&x.sum(0)?);
    let expected = sum()?;
    values(&x.sqr()?)?;
    let outside = std::cell::Cell::new(Some(x.copy()?));
    let refused: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("a copy to the host", &|| x.to_vec2::<f32>().map(drop)),
        ("a copy from the host", &|| Tensor::new(&[5f32; 2000], gpu).map(drop)),
        ("its own error", &|| candle_core::bail!("its own")),
        ("waiting, which breaks the capture", &|| gpu.synchronize()),
        ("work after what broke the capture", &|| {
            let _ = gpu.synchronize();
            x.sqr().map(drop)
        }),
        ("freeing after what broke the capture", &|| {
            let made_inside = x.sqr()?;
            let _ = gpu.synchronize();
            drop(made_inside);
            Ok(())
        }),
    ];
    for (what, body) in refused {
        // SAFETY: nothing that is captured is ever launched.
        assert!(unsafe { Graph::capture(gpu, body) }.is_err(), "{what}");
        assert_eq!(sum()?, expected, "after {what}");
    }
    // What was made outside and is freed inside: a driver may refuse it, and work goes on in any case.
    let freed = || {
        drop(outside.take());
        Ok::<_, candle_core::Error>(())
    };
    // SAFETY: as above.
    let _ = unsafe { Graph::capture(gpu, freed) };
    assert_eq!(sum()?, expected);
    // A panic ends the capture too.
    let panics = || -> Result<()> { panic!("its own panic") };
    // SAFETY: as above.
    let capture = || unsafe { Graph::capture(gpu, panics) }.map(drop);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(capture)).is_err());
    assert_eq!(sum()?, expected);
    Ok(())
}
