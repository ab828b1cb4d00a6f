//! Single operations at the sizes of the tutorial's networks, batch 128: `cargo bench -p kd-ops`.
//!
//! Items are multiply-adds of the direct computation, so an operation's items per second over those of `peak` in
//! the same run are its share of the processor's peak. Winograd does a 3x3 convolution with fewer multiplications
//! and can pass 100 %.

use candle_core::{DType, Device, Tensor, Var};
use divan::Bencher;
use divan::counter::ItemsCount;
use kd_ops::adam::{Adam, AdamConfig};
use kd_ops::peaks::multiply_adds;
use kd_ops::{Conv2dConfig, DropoutKey};

const BATCH: usize = 128;

fn main() {
    // SAFETY: no other thread has been started.
    unsafe { kd_ops::keep_candle_single_threaded() };
    kd_ops::keep_freed_memory();
    divan::main();
}

/// Input channels, output channels, side of the square map, kernel, stride.
#[derive(Clone, Copy)]
struct Layer(usize, usize, usize, usize, usize);

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Layer(input, output, side, kernel, stride) = self;
        write!(f, "{kernel}x{kernel}/{stride} {input}-{output} at {side}x{side}")
    }
}

const LAYERS: [Layer; 9] = [
    Layer(3, 128, 32, 3, 1),
    Layer(128, 64, 32, 3, 1),
    Layer(64, 64, 16, 3, 1),
    Layer(64, 32, 16, 3, 1),
    Layer(3, 16, 32, 3, 1),
    Layer(16, 16, 16, 3, 1),
    Layer(64, 64, 16, 1, 1),
    Layer(16, 32, 32, 3, 2),
    Layer(64, 64, 16, 3, 2),
];

impl Layer {
    fn config(self) -> Conv2dConfig {
        let Layer(_, _, _, kernel, stride) = self;
        Conv2dConfig { padding: kernel / 2, stride, relu: true, ..Default::default() }
    }

    /// Multiply-adds of one pass over a batch, done directly.
    fn multiply_adds(self) -> u64 {
        let Layer(input, output, side, kernel, stride) = self;
        let outputs = BATCH * output * (side / stride).pow(2);
        (outputs * input * kernel * kernel) as u64
    }

    fn tensors(self) -> (Var, Var, Var) {
        let Layer(input, output, side, kernel, _) = self;
        let var = |shape: &[usize]| Var::rand(-0.1f32, 0.1, shape, &Device::Cpu).unwrap();
        (var(&[BATCH, input, side, side]), var(&[output, input, kernel, kernel]), var(&[output]))
    }
}

#[divan::bench(args = LAYERS)]
fn conv2d_forward(bencher: Bencher<'_, '_>, layer: Layer) {
    let (x, weight, bias) = layer.tensors();
    let (x, weight, bias) = (x.detach(), weight.detach(), bias.detach());
    bencher
        .counter(ItemsCount::new(layer.multiply_adds()))
        .bench(|| kd_ops::conv2d(&x, &weight, Some(&bias), &layer.config()).unwrap());
}

/// Values, data gradient and weight gradient: three passes.
#[divan::bench(args = LAYERS)]
fn conv2d_forward_backward(bencher: Bencher<'_, '_>, layer: Layer) {
    let (x, weight, bias) = layer.tensors();
    bencher.counter(ItemsCount::new(3 * layer.multiply_adds())).bench(|| {
        let y = kd_ops::conv2d(&x, &weight, Some(&bias), &layer.config()).unwrap();
        y.backward().unwrap()
    });
}

#[divan::bench(args = [(2048, 512), (1024, 256), (512, 10)])]
fn linear_forward_backward(bencher: Bencher<'_, '_>, (input, output): (usize, usize)) {
    let x = Var::rand(-0.1f32, 0.1, (BATCH, input), &Device::Cpu).unwrap();
    let weight = Var::rand(-0.1f32, 0.1, (output, input), &Device::Cpu).unwrap();
    let bias = Var::zeros(output, DType::F32, &Device::Cpu).unwrap();
    bencher
        .counter(ItemsCount::new(3 * BATCH * input * output))
        .bench(|| kd_ops::linear(&x, &weight, Some(&bias), true).unwrap().backward().unwrap());
}

#[divan::bench]
fn max_pool2d_forward_backward(bencher: Bencher<'_, '_>) {
    let x = Var::rand(-1f32, 1.0, (BATCH, 64, 32, 32), &Device::Cpu).unwrap();
    bencher.bench(|| kd_ops::max_pool2d(&x, 2, 2).unwrap().backward().unwrap());
}

#[divan::bench]
fn dropout(bencher: Bencher<'_, '_>) {
    let x = Tensor::ones((BATCH, 512), DType::F32, &Device::Cpu).unwrap();
    bencher.bench(|| kd_ops::dropout(&x, 0.1, DropoutKey { seed: 0, step: 0 }, 0).unwrap());
}

/// One step over the teacher's 1.19 million parameters.
#[divan::bench]
fn adam(bencher: Bencher<'_, '_>) {
    let var = Var::zeros(1_186_986, DType::F32, &Device::Cpu).unwrap();
    let gradients = (var.as_tensor() * 0.5).unwrap().backward().unwrap();
    let parameters = [("parameter".to_owned(), var)].into();
    let mut adam = Adam::new(AdamConfig::default());
    bencher.bench_local(|| adam.step(&parameters, &gradients).unwrap());
}

/// Multiply-adds on all threads with nothing read from memory.
#[divan::bench]
fn peak(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(multiply_adds())).bench(multiply_adds);
}
