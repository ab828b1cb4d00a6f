//! Batch normalisation against its formula in f64, its difference quotients, threads and errors.

use candle_core::{DType, Device, Result, Tensor, Var};
use kd_ops::{BatchNorm, BatchNormConfig, Statistics, subsample_pad};

const CPU: &Device = &Device::Cpu;

/// Numbers in [-1, 1) from their index.
fn numbers(shape: &[usize], tag: u32) -> Tensor {
    let len: usize = shape.iter().product();
    let value = |i: u32| ((i + 977 * tag).wrapping_mul(2654435761) >> 8) as f32 / (1 << 23) as f32;
    let values: Vec<f32> = (0..len as u32).map(|i| value(i) - 1.0).collect();
    Tensor::from_vec(values, shape, CPU).unwrap()
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

fn norm(channels: usize, relu: bool) -> BatchNorm {
    BatchNorm {
        weight: (numbers(&[channels], 1) + 1.5).unwrap(),
        bias: numbers(&[channels], 2),
        running_mean: numbers(&[channels], 3),
        running_var: (numbers(&[channels], 4) + 2.0).unwrap(),
        config: BatchNormConfig { relu, ..BatchNormConfig::default() },
    }
}

/// The arguments as f64, flat, image by image.
#[derive(Clone)]
struct Reference {
    shape: [usize; 4],
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    residual: Vec<f64>,
    running: Option<(Vec<f64>, Vec<f64>)>,
    relu: bool,
}

impl Reference {
    fn moments(&self, channel: usize) -> (f64, f64) {
        if let Some((mean, var)) = &self.running {
            return (mean[channel], var[channel]);
        }
        let [_, channels, height, width] = self.shape;
        let of = |i: &usize| i / (height * width) % channels == channel;
        let values: Vec<f64> = (0..self.x.len()).filter(of).map(|i| self.x[i]).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (mean, values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n)
    }

    fn y(&self) -> Vec<f64> {
        let [_, channels, height, width] = self.shape;
        let moments: Vec<_> = (0..channels).map(|channel| self.moments(channel)).collect();
        let y = |i: usize| {
            let channel = i / (height * width) % channels;
            let (mean, var) = moments[channel];
            let y = (self.x[i] - mean) / (var + 1e-5).sqrt() * self.weight[channel];
            let y = y + self.bias[channel] + self.residual[i];
            if self.relu { y.max(0.0) } else { y }
        };
        (0..self.x.len()).map(y).collect()
    }

    /// The difference quotient of the sum of `dy * y`.
    fn slope(&self, dy: &[f64], move_by: impl Fn(&mut Self, f64)) -> f64 {
        let at = |h: f64| {
            let mut moved = self.clone();
            move_by(&mut moved, h);
            moved.y().iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        (at(1e-6) - at(-1e-6)) / 2e-6
    }
}

#[test]
fn values_and_gradients_are_those_of_the_formula_in_f64() -> Result<()> {
    // Planes longer and shorter than a vector, and none of its multiples.
    for shape in [[3, 2, 5, 7], [4, 3, 4, 4], [5, 2, 1, 3], [1, 2, 9, 9]] {
        for (statistics, relu) in [
            (Statistics::Batch, false),
            (Statistics::Batch, true),
            (Statistics::Running, false),
            (Statistics::Running, true),
        ] {
            let mut norm = norm(shape[1], relu);
            let weight = Var::from_tensor(&norm.weight)?;
            let bias = Var::from_tensor(&norm.bias)?;
            (norm.weight, norm.bias) = (weight.as_tensor().clone(), bias.as_tensor().clone());
            let x = Var::from_tensor(&(numbers(&shape, 5) + 4.0)?)?;
            let residual = Var::from_tensor(&numbers(&shape, 6))?;
            let dy = numbers(&shape, 7);
            let reference = Reference {
                shape,
                x: f64s(&x),
                weight: f64s(&weight),
                bias: f64s(&bias),
                residual: f64s(&residual),
                running: (statistics == Statistics::Running)
                    .then(|| (f64s(&norm.running_mean), f64s(&norm.running_var))),
                relu,
            };
            let y = norm.forward(&x, Some(residual.as_tensor()), statistics)?;
            for (ours, exact) in f64s(&y).iter().zip(reference.y()) {
                assert!((ours - exact).abs() < 2e-5, "{shape:?} {statistics:?}: {ours}, {exact}");
            }
            let grads = (&y * &dy)?.sum_all()?.backward()?;
            let dy = f64s(&dy);
            let check = |name: &str, var: &Var, move_by: fn(&mut Reference, usize, f64)| {
                for (i, ours) in f64s(grads.get(var).unwrap()).into_iter().enumerate() {
                    let exact = reference.slope(&dy, |reference, h| move_by(reference, i, h));
                    let close = (ours - exact).abs() < 2e-5 * exact.abs().max(1.0);
                    assert!(close, "{shape:?} {statistics:?} d{name}[{i}]: {ours}, {exact}");
                }
            };
            check("x", &x, |reference, i, h| reference.x[i] += h);
            check("residual", &residual, |reference, i, h| reference.residual[i] += h);
            check("weight", &weight, |reference, i, h| reference.weight[i] += h);
            check("bias", &bias, |reference, i, h| reference.bias[i] += h);
        }
    }
    Ok(())
}

#[test]
fn a_mean_far_from_zero_does_not_cancel() -> Result<()> {
    let x = (numbers(&[8, 1, 16, 16], 1) + 1000.0)?;
    let norm = BatchNorm { running_mean: Tensor::zeros(1, DType::F32, CPU)?, ..norm(1, false) };
    let mut exact = f64s(&x);
    norm.forward(&x, None, Statistics::Batch)?;
    let mean = exact.iter().sum::<f64>() / exact.len() as f64;
    exact.iter_mut().for_each(|x| *x = (*x - mean).powi(2));
    let var = exact.iter().sum::<f64>() / (exact.len() - 1) as f64;
    let before = f64s(&(numbers(&[1], 4) + 2.0)?)[0];
    let found = f64s(&norm.running_var)[0];
    assert!((found - (0.9 * before + 0.1 * var)).abs() < 1e-6, "{found}, variance {var}");
    assert!((f64s(&norm.running_mean)[0] - 0.1 * mean).abs() < 1e-4);
    Ok(())
}

#[test]
fn running_statistics_change_in_training_alone_and_in_place() -> Result<()> {
    let mean = Var::from_tensor(&numbers(&[3], 3))?;
    let norm = BatchNorm { running_mean: mean.as_tensor().clone(), ..norm(3, false) };
    let x = numbers(&[2, 3, 4, 4], 1);
    let before = bits(&mean);
    norm.forward(&x, None, Statistics::Running)?;
    assert_eq!(bits(&mean), before);
    norm.forward(&x, None, Statistics::Batch)?;
    assert_ne!(bits(&mean), before, "the variable shares the memory");
    Ok(())
}

#[test]
fn results_are_the_same_bit_for_bit_for_every_thread_count() -> Result<()> {
    let with = |threads: usize| -> Result<Vec<Vec<u32>>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let norm = norm(6, true);
            let x = Var::from_tensor(&numbers(&[37, 6, 6, 7], 1))?;
            let residual = Var::from_tensor(&numbers(&[37, 6, 6, 7], 2))?;
            let y = norm.forward(&x, Some(residual.as_tensor()), Statistics::Batch)?;
            let small = subsample_pad(&y, 8)?;
            let grads = small.sqr()?.sum_all()?.backward()?;
            let gradient = |var: &Var| bits(grads.get(var).unwrap());
            Ok(vec![bits(&y), bits(&norm.running_var), gradient(&x), gradient(&residual)])
        })
    };
    let one = with(1)?;
    assert_eq!(one, with(2)?);
    assert_eq!(one, with(5)?);
    Ok(())
}

#[test]
fn what_does_not_fit_together_is_an_error_that_says_so() {
    let x = numbers(&[2, 3, 4, 4], 1);
    let error = |norm: &BatchNorm, x: &Tensor, residual: Option<&Tensor>, statistics| {
        norm.forward(x, residual, statistics).unwrap_err().to_string()
    };
    let batch = Statistics::Batch;
    assert!(error(&norm(4, false), &x, None, batch).contains("expected weight of shape [3]"));
    assert!(error(&norm(3, false), &numbers(&[2, 3], 1), None, batch).contains("[N, C, H, W]"));
    let other = numbers(&[2, 3, 4, 5], 1);
    assert!(error(&norm(3, false), &x, Some(&other), batch).contains("expected a residual"));
    let one = numbers(&[1, 3, 1, 1], 1);
    assert!(error(&norm(3, false), &one, None, batch).contains("needs at least 2"));
    assert!(norm(3, false).forward(&one, None, Statistics::Running).is_ok());
    let f64 = x.to_dtype(DType::F64).unwrap();
    assert!(error(&norm(3, false), &f64, None, batch).contains("f32"));
    for channels in [2, 4] {
        let error = subsample_pad(&x, channels).unwrap_err().to_string();
        assert!(error.contains("an even number of channels more than x's 3"), "{error}");
    }
}

#[test]
fn nan_is_never_hidden() -> Result<()> {
    let x = Tensor::new(&[[[[1f32, 2.0], [f32::NAN, 3.0]]]], CPU)?;
    let y = norm(1, true).forward(&x, None, Statistics::Running)?;
    assert!(y.flatten_all()?.to_vec1::<f32>()?[2].is_nan());
    Ok(())
}
