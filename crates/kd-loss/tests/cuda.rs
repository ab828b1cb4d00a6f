//! The losses on a GPU against the same on the CPU. Where there is no GPU every test is reported as ignored.
//!
//! ```text
//! cargo test -p kd-loss --features cuda --test cuda
//! ```

use candle_core::{DType, Device, Tensor, Var};
use kd_loss::{
    Result, cross_entropy, cross_entropy_smoothed, cross_entropy_weighted, kd, kd_with_labels,
};
use libtest_mimic::{Arguments, Failed, Trial};

type Test = fn(&Device) -> Result<()>;

fn main() {
    let tests: [(&str, Test); 6] = [
        ("losses_agree_with_the_cpu", losses_agree_with_the_cpu),
        ("two_runs_have_the_same_bits", two_runs_have_the_same_bits),
        ("backward_can_be_asked_twice", backward_can_be_asked_twice),
        ("views_have_the_same_loss", views_have_the_same_loss),
        ("a_label_that_is_no_class_gives_nan", a_label_that_is_no_class_gives_nan),
        ("the_teacher_gets_no_gradient", the_teacher_gets_no_gradient),
    ];
    // With RUST_BACKTRACE a backtrace follows in the next lines.
    let first_line = |text: String| text.lines().next().unwrap_or("").to_owned();
    let device = Device::new_cuda(0).map_err(|error| first_line(error.to_string()));
    if let Err(said) = &device {
        println!("skipped: no GPU ({said})");
    }
    let trials = tests.into_iter().map(|(name, test)| {
        let device = device.clone();
        let ignored = device.is_err();
        let run = move || test(&device?).map_err(Failed::from);
        Trial::test(name, run).with_ignored_flag(ignored)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Some numbers in ±`scale`, the same every time.
fn numbers(count: usize, scale: f32, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        scale * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..count).map(|_| next()).collect()
}

type Loss = fn(&Case) -> Result<Tensor>;

struct Case {
    student: Var,
    teacher: Tensor,
    labels: Tensor,
}

fn case(batch: usize, classes: usize, scale: f32, dtype: DType, device: &Device) -> Result<Case> {
    let logits = |seed| {
        let values = numbers(batch * classes, scale, seed);
        let logits = Tensor::from_vec(values, (batch, classes), &Device::Cpu)?;
        logits.to_dtype(dtype)?.to_device(device)
    };
    let labels: Vec<u32> = (0..batch).map(|i| ((7 * i + 3) % classes) as u32).collect();
    Ok(Case {
        student: Var::from_tensor(&logits(1)?)?,
        teacher: logits(2)?,
        labels: Tensor::from_vec(labels, batch, device)?,
    })
}

impl Case {
    fn loss(&self) -> Result<Tensor> {
        kd_with_labels(&self.student, &self.teacher, &self.labels, 2.0, 0.75)
    }

    /// Weights from 0.25 to 1.75, one for each class.
    fn class_weights(&self) -> Result<Tensor> {
        let weights: Vec<f32> =
            (0..self.student.dim(1)?).map(|i| 0.25 + (i % 7) as f32 / 4.0).collect();
        Ok(Tensor::new(weights, self.student.device())?)
    }

    fn gradient(&self, loss: &Tensor) -> Result<Vec<f32>> {
        let gradients = loss.backward()?;
        to_vec(gradients.get(&self.student).expect("the logits have a gradient"))
    }
}

fn to_vec(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn losses_agree_with_the_cpu(gpu: &Device) -> Result<()> {
    let shapes =
        [(1, 1), (1, 10), (128, 10), (7, 33), (5, 1000), (3, 1025), (2, 4099), (1, 100_003)];
    for (batch, classes) in shapes {
        for (dtype, rounding) in
            [(DType::F32, 1e-5), (DType::BF16, 1.0 / 128.0), (DType::F16, 1.0 / 512.0)]
        {
            for scale in [4.0, 1e4] {
                let losses: [(&str, Loss); 6] = [
                    ("kd with labels", |c| {
                        kd_with_labels(&c.student, &c.teacher, &c.labels, 2.0, 0.75)
                    }),
                    ("kd", |c| kd(&c.student, &c.teacher, 4.0)),
                    ("kd at 0.5", |c| kd(&c.student, &c.teacher, 0.5)),
                    ("cross-entropy", |c| cross_entropy(&c.student, &c.labels)),
                    ("smoothed", |c| cross_entropy_smoothed(&c.student, &c.labels, 0.1)),
                    ("weighted", |c| {
                        cross_entropy_weighted(&c.student, &c.labels, &c.class_weights()?, 0.1)
                    }),
                ];
                let on_cpu = case(batch, classes, scale, dtype, &Device::Cpu)?;
                let on_gpu = case(batch, classes, scale, dtype, gpu)?;
                for (name, loss) in losses {
                    let what = format!("{name}, {dtype:?} [{batch}, {classes}], logits to {scale}");
                    // Times something, so that the backward pass has to look at what comes from above.
                    let (a, b) = ((loss(&on_gpu)? * 3.0)?, (loss(&on_cpu)? * 3.0)?);
                    let slack = 1e-5 + 1e-6 * scale;
                    close(&what, &to_vec(&a)?, &to_vec(&b)?, slack, 1e-5)?;
                    let (a, b) = (on_gpu.gradient(&a)?, on_cpu.gradient(&b)?);
                    close(&what, &a, &b, 1e-6, rounding)?;
                }
            }
        }
    }
    Ok(())
}

fn close(what: &str, a: &[f32], b: &[f32], absolute: f32, relative: f32) -> Result<()> {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let holds = (a - b).abs() <= absolute + relative * b.abs();
        assert!(holds, "{what} [{i}]: {a} on the GPU, {b} on the CPU");
    }
    Ok(())
}

fn two_runs_have_the_same_bits(gpu: &Device) -> Result<()> {
    for (batch, classes) in [(128, 10), (64, 32_000)] {
        let case = case(batch, classes, 4.0, DType::F32, gpu)?;
        let run = || {
            let loss = case.loss()?;
            Ok::<_, kd_loss::Error>((bits(&to_vec(&loss)?), bits(&case.gradient(&loss)?)))
        };
        assert!(run()? == run()?, "[{batch}, {classes}]");
    }
    Ok(())
}

/// The first backward pass takes the gradient that the forward pass made, the next makes its own.
fn backward_can_be_asked_twice(gpu: &Device) -> Result<()> {
    for classes in [10, 2000] {
        let case = case(6, classes, 4.0, DType::F32, gpu)?;
        let loss = case.loss()?;
        let (first, second) = (case.gradient(&loss)?, case.gradient(&loss)?);
        assert_eq!(bits(&first), bits(&second), "{classes} classes");
        let tripled = case.gradient(&(loss * 3.0)?)?;
        let expected: Vec<f32> = first.iter().map(|g| 3.0 * g).collect();
        close("tripled", &tripled, &expected, 1e-9, 1e-5)?;
    }
    Ok(())
}

/// Rows that begin anywhere in memory.
fn views_have_the_same_loss(gpu: &Device) -> Result<()> {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for classes in [33, 1111] {
            let whole = case(7, classes, 4.0, dtype, gpu)?;
            let rows = |x: &Tensor, from| x.narrow(0, from, 4);
            let loss = |copy: bool| {
                let own = |x: Tensor| if copy { x.copy() } else { Ok(x) };
                let (s, t) = (rows(&whole.student, 1)?, rows(&whole.teacher, 3)?);
                let labels = rows(&whole.labels, 2)?;
                let loss = kd_with_labels(&own(s)?, &own(t)?, &own(labels)?, 2.0, 0.75)?;
                Ok::<_, kd_loss::Error>((to_vec(&loss)?, whole.gradient(&loss)?))
            };
            let (view, copy) = (loss(false)?, loss(true)?);
            close("value", &view.0, &copy.0, 0.0, 1e-5)?;
            close("gradient", &view.1, &copy.1, 1e-7, 1.0 / 128.0)?;
        }
    }
    Ok(())
}

fn a_label_that_is_no_class_gives_nan(gpu: &Device) -> Result<()> {
    for classes in [10, 2000] {
        let mut case = case(3, classes, 4.0, DType::F32, gpu)?;
        case.labels = Tensor::new(&[0, classes as u32, 1], gpu)?;
        let loss = case.loss()?;
        assert!(to_vec(&loss)?[0].is_nan());
        let gradient = case.gradient(&loss)?;
        for (row, gradient) in gradient.chunks(classes).enumerate() {
            assert!(gradient.iter().all(|g| g.is_nan() == (row == 1)), "row {row}");
        }
    }
    Ok(())
}

fn the_teacher_gets_no_gradient(gpu: &Device) -> Result<()> {
    let case = case(3, 10, 4.0, DType::F32, gpu)?;
    let teacher = Var::from_tensor(&case.teacher)?;
    let loss = kd_with_labels(&case.student, &teacher, &case.labels, 2.0, 0.75)?;
    assert!(loss.backward()?.get(&teacher).is_none());
    Ok(())
}
