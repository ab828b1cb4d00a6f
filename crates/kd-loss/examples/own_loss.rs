//! A loss of one's own beside those of this crate: implement `Method`, and `Objective` adds it up.
//!
//! It is the squared distance of the logits (Ba and Caruana, "Do Deep Nets Really Need to be Deep?",
//! 2014, equation 1).
//!
//! ```text
//! cargo run -p kd-loss --example own_loss
//! ```

use candle_core::{Device, Tensor, Var};
use kd_loss::{Inputs, Loss, Method, Needs, Objective, Result, RunStep, Weighted, mse};

struct Logits;

impl Method for Logits {
    fn needs(&self) -> Needs {
        // Feature maps would be named here.
        Needs { teacher_logits: true, ..Needs::default() }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        // They come without a gradient: the teacher does not learn.
        mse(inputs.student_logits, &inputs.require_teacher_logits()?)
    }
}

/// The loss of a batch of two images, and the gradient of the student's logits.
fn loss() -> Result<(Loss, Vec<Vec<f32>>)> {
    // 0.5 of the cross-entropy with the labels, 0.1 of our own loss.
    let objective = Objective::new(0.5, vec![Weighted::new("logits", 0.1, Box::new(Logits))])?;
    assert!(objective.needs().teacher_logits);

    let student = Var::new(&[[1.0f32, 0.0, -1.0], [0.5, 0.5, 0.0]], &Device::Cpu)?;
    let teacher = Tensor::new(&[[3.0f32, 1.0, -2.0], [0.0, 2.0, 0.0]], &Device::Cpu)?;
    let labels = Tensor::new(&[0u32, 1], &Device::Cpu)?;
    let inputs = Inputs { teacher_logits: Some(&teacher), ..Inputs::new(&student, &labels) };
    let loss = objective.loss(&inputs, RunStep::default())?;
    let gradients = loss.total.backward()?;
    let gradient = gradients.get(&student).map(|gradient| gradient.to_vec2()).transpose()?;
    Ok((loss, gradient.unwrap_or_default()))
}

fn main() -> Result<()> {
    let (loss, gradient) = loss()?;
    println!("loss {}, gradient {gradient:?}", loss.total);
    for (name, part) in &loss.parts {
        println!("  of it {name}: {part}");
    }
    Ok(())
}

#[test]
fn the_sum_and_its_gradient_are_right() {
    let (loss, gradient) = loss().unwrap();
    let value = |tensor: &Tensor| tensor.to_scalar::<f32>().unwrap();
    let (total, labels, logits) =
        (value(&loss.total), value(&loss.parts[0].1), value(&loss.parts[1].1));
    // (4 + 1 + 1 + 0.25 + 2.25 + 0) / 6
    assert!((logits - 8.5 / 6.0).abs() < 1e-6, "{logits}");
    assert!((total - (0.5 * labels + 0.1 * logits)).abs() < 1e-6, "{total}");
    // Of image 0, class 0: 0.5 (p - 1) / 2 + 0.1 * 2 (1 - 3) / 6, with p = e / (e + 1 + 1/e).
    let e = 1f32.exp();
    let expected = 0.25 * (e / (e + 1.0 + 1.0 / e) - 1.0) - 0.4 / 6.0;
    assert!((gradient[0][0] - expected).abs() < 1e-6, "{gradient:?}");
}
