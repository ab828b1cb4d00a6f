//! Distillation in a plain candle loop: of this project's crates it needs kd-loss alone.
//!
//! ```text
//! cargo run -p kd-loss --example plain_loop
//! ```

use candle_core::{D, Device, Tensor, Var};
use candle_nn::{Optimizer, SGD};
use kd_loss::kd_with_labels;

/// Points on a grid and their quadrants.
fn points() -> candle_core::Result<(Tensor, Tensor)> {
    let grid = || (0..16).map(|i| (i as f32 - 7.5) / 7.5);
    let points: Vec<[f32; 2]> = grid().flat_map(|y| grid().map(move |x| [x, y])).collect();
    let quadrant = |[x, y]: &[f32; 2]| u32::from(*x > 0.0) + 2 * u32::from(*y > 0.0);
    let labels: Vec<u32> = points.iter().map(quadrant).collect();
    let points = Tensor::from_vec(points.concat(), (256, 2), &Device::Cpu)?;
    Ok((points, Tensor::new(labels, &Device::Cpu)?))
}

/// A teacher is whatever gives logits; this one knows how near a point is to the borders.
fn teacher(points: &Tensor) -> candle_core::Result<Tensor> {
    let corners =
        Tensor::new(&[[-1f32, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]], &Device::Cpu)?;
    points.matmul(&corners.t()?)? * 4.0
}

/// The losses at the beginning and at the end, and the share of right answers.
fn train() -> kd_loss::Result<(f32, f32, f32)> {
    let (points, labels) = points()?;
    let teacher_logits = teacher(&points)?;
    // The student: a linear layer.
    let weight = Var::zeros((2, 4), candle_core::DType::F32, &Device::Cpu)?;
    let mut optimizer = SGD::new(vec![weight.clone()], 0.5)?;
    let mut losses = Vec::new();
    for _ in 0..50 {
        let logits = points.matmul(&weight)?;
        // Temperature 2; a quarter of the loss is the labels'.
        let loss = kd_with_labels(&logits, &teacher_logits, &labels, 2.0, 0.25)?;
        optimizer.backward_step(&loss)?;
        losses.push(loss.to_scalar::<f32>()?);
    }
    let answers = points.matmul(&weight)?.argmax(D::Minus1)?;
    let right = answers.eq(&labels)?.to_dtype(candle_core::DType::F32)?.mean_all()?;
    Ok((losses[0], losses[losses.len() - 1], right.to_scalar()?))
}

fn main() -> kd_loss::Result<()> {
    let (first, last, right) = train()?;
    println!("loss {first:.3} to {last:.3}, {:.1} % right", 100.0 * right);
    Ok(())
}

#[test]
fn the_student_learns() {
    let (first, last, right) = train().unwrap();
    assert!(last < 0.7 * first && right > 0.95, "{first} {last} {right}");
}
