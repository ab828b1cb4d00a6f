//! What the methods' own tests share: numbers, cases of PyTorch's, formulas in plain f64.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use proptest::prelude::*;

use crate::{Inputs, MethodConfig, Result, Setup, build, helper_parameters};

/// f64 numbers in ±1 from their index and `seed`.
pub(crate) fn numbers(rows: usize, columns: usize, seed: u32) -> candle_core::Result<Tensor> {
    let value = |i: u32| f64::from(i.wrapping_mul(2_654_435_761).rotate_left(seed) >> 8);
    let values: Vec<f64> =
        (1..=(rows * columns) as u32).map(|i| value(i) / f64::from(1 << 23) - 1.0).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}

struct Case<'a> {
    fixture: &'a HashMap<String, Tensor>,
    name: String,
}

impl Case<'_> {
    fn expected(&self, what: &str) -> Vec<f64> {
        self.fixture[&format!("{}.{what}", self.name)].flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Compares value and gradients of the first `vars` inputs, in f64 and in f32.
    fn check(&self, vars: usize, loss: impl Fn(&[Var], &[Tensor]) -> Result<Tensor>) {
        for (dtype, slack) in [(DType::F64, 1e-7), (DType::F32, 2e-4)] {
            let input = |i: usize| self.fixture.get(&format!("{}.input.{i}", self.name));
            let inputs: Vec<Tensor> = (0..).map_while(input).cloned().collect();
            assert!(inputs.len() >= vars, "{}: no such case", self.name);
            let (wanted, others) = inputs.split_at(vars);
            let wanted: Vec<Var> = wanted
                .iter()
                .map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap())
                .collect();
            let others: Vec<Tensor> = others
                .iter()
                .map(|x| {
                    x.to_dtype(if x.dtype() == DType::I64 { DType::U32 } else { dtype }).unwrap()
                })
                .collect();
            let value = loss(&wanted, &others).unwrap();
            self.near(dtype, "value", &value, slack);
            let grads = value.backward().unwrap();
            for (i, var) in wanted.iter().enumerate() {
                self.near(dtype, &format!("grad.{i}"), grads.get(var).unwrap(), slack);
            }
        }
    }

    fn near(&self, dtype: DType, what: &str, found: &Tensor, slack: f64) {
        let expected = self.expected(what);
        let found = found.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        let found = found.to_vec1::<f64>().unwrap();
        assert_eq!(found.len(), expected.len(), "{} {what}", self.name);
        let largest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        for (i, (ours, theirs)) in found.iter().zip(&expected).enumerate() {
            assert!(
                (ours - theirs).abs() <= slack * largest + 1e-12,
                "{} {dtype:?} {what}[{i}]: {ours}, PyTorch has {theirs}",
                self.name
            );
        }
    }
}

/// Compares a loss with the cases `names` of `parity/methods.py`: the value, and the gradients of the first `vars` inputs. The loss gets
/// these inputs as variables and the others as tensors.
pub(crate) fn agree(
    names: &[&str],
    vars: usize,
    loss: impl Fn(&[Var], &[Tensor]) -> Result<Tensor>,
) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/methods.safetensors");
    let fixture = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    for name in names {
        Case { fixture: &fixture, name: (*name).to_string() }.check(vars, &loss);
    }
}

/// Compares a whole method with case `name` of `parity/losses.py`: the value, and the gradients of the student's features and of the helper parameters, in the orders of
/// `setup` and of the method's list; behind them the case has the teacher's features.
pub(crate) fn agree_whole(name: &str, recipe: &str, setup: &Setup) {
    let config: MethodConfig = toml::from_str(recipe).unwrap();
    let names: Vec<String> =
        helper_parameters(&config, setup).unwrap().into_iter().map(|p| p.name).collect();
    let features = |places: &[(String, Vec<usize>)], tensors: Vec<Tensor>| -> BTreeMap<_, _> {
        places.iter().map(|(name, _)| name.clone()).zip(tensors).collect()
    };
    let vars = setup.student.len() + names.len();
    agree(&[name], vars, |own, teacher| {
        let own: Vec<Tensor> = own.iter().map(|var| var.as_tensor().clone()).collect();
        let (student, helpers) = own.split_at(setup.student.len());
        let dtype = student[0].dtype();
        let helpers = names.iter().cloned().zip(helpers.iter().cloned()).collect();
        let vb = VarBuilder::from_tensors(helpers, dtype, &Device::Cpu);
        let batch = student[0].dims()[0];
        let logits = Tensor::zeros((batch, setup.classes), dtype, &Device::Cpu)?;
        let labels = Tensor::zeros(batch, DType::U32, &Device::Cpu)?;
        let inputs = Inputs {
            student_features: &features(&setup.student, student.to_vec()),
            teacher_features: &features(&setup.teacher, teacher.to_vec()),
            ..Inputs::new(&logits, &labels)
        };
        build(&config, setup, vb)?.loss(&inputs)
    });
}

/// A feature place of a [`Setup`].
pub(crate) fn place(name: &str, shape: &[usize]) -> (String, Vec<usize>) {
    (name.into(), shape.to_vec())
}

/// Tensors by name.
pub(crate) type Fixture = HashMap<String, Tensor>;

/// The cases of `parity/make_fixtures.py`, computed by PyTorch in f64.
pub(crate) fn fixture() -> Fixture {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    candle_core::safetensors::load(folder.join("losses.safetensors"), &Device::Cpu).unwrap()
}

/// The labels of the cases with logits.
pub(crate) fn labels(fixture: &Fixture) -> Tensor {
    fixture["labels"].to_dtype(DType::U32).unwrap()
}

/// Compares a loss and its gradients with case `name`; the inputs in PyTorch's order.
pub(crate) fn assert_agrees(fixture: &Fixture, name: &str, loss: &Tensor, inputs: &[&Var]) {
    let expected = fixture[&format!("{name}.value")].to_scalar::<f64>().unwrap();
    let value = f64::from(loss.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap());
    let slack = 1e-6 + 1e-6 * expected.abs();
    assert!((value - expected).abs() <= slack, "{name}: {value}, PyTorch has {expected}");
    let grads = loss.backward().unwrap();
    for (position, input) in inputs.iter().enumerate() {
        let grad =
            grads.get(input).unwrap_or_else(|| panic!("{name}: input {position}, no gradient"));
        let expected = &fixture[&format!("{name}.grad.{position}")];
        assert_eq!(grad.dims(), expected.dims(), "{name}");
        let expected = expected.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let grad =
            grad.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (i, (ours, theirs)) in grad.iter().zip(&expected).enumerate() {
            let slack = 2e-7 + 1e-5 * theirs.abs();
            assert!(
                (ours - theirs).abs() <= slack,
                "{name}: gradient {position}[{i}] is {ours}, PyTorch has {theirs}"
            );
        }
    }
}

const LOGITS: [&str; 4] = ["small", "equal", "large", "extreme"];

/// Runs a loss of the logits in f32 (one fused operation) and in f64 (candle's operations).
pub(crate) fn for_each_logits(loss: impl Fn(&Fixture, &str, &Var, &Tensor)) {
    let fixture = fixture();
    for name in LOGITS {
        for dtype in [DType::F32, DType::F64] {
            let student = fixture[&format!("{name}.student")].to_dtype(dtype).unwrap();
            let teacher = fixture[&format!("{name}.teacher")].to_dtype(dtype).unwrap();
            loss(&fixture, name, &Var::from_tensor(&student).unwrap(), &teacher);
        }
    }
}

/// `softmax(z / temperature)` of one row, in f64.
pub(crate) fn softmax(z: &[f64], temperature: f64) -> Vec<f64> {
    let max = z.iter().copied().fold(f64::MIN, f64::max);
    let e: Vec<f64> = z.iter().map(|z| ((z - max) / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// f32 `[rows, columns]`.
pub(crate) fn tensor(rows: &[Vec<f64>]) -> Tensor {
    let shape = (rows.len(), rows[0].len());
    let tensor = Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap();
    tensor.to_dtype(DType::F32).unwrap()
}

/// Checks a loss's value against a formula, and its gradient against the formula's differences.
pub(crate) fn check_formula(
    student: &[Vec<f64>],
    loss: impl Fn(&Tensor) -> Tensor,
    formula: impl Fn(&[Vec<f64>]) -> f64,
) {
    // What f32 makes of the inputs is what is differentiated.
    let student: Vec<Vec<f64>> =
        student.iter().map(|row| row.iter().map(|&x| f64::from(x as f32)).collect()).collect();
    let var = Var::from_tensor(&tensor(&student)).unwrap();
    let value = loss(&var);
    let ours = f64::from(value.to_scalar::<f32>().unwrap());
    let expected = formula(&student);
    assert!((ours - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{ours}, formula {expected}");
    let grad = value.backward().unwrap().get(&var).unwrap().to_vec2::<f32>().unwrap();
    for (row, grad) in grad.iter().enumerate() {
        for (column, &grad) in grad.iter().enumerate() {
            let h = 1e-5;
            let mut moved = student.clone();
            moved[row][column] += h;
            let above = formula(&moved);
            moved[row][column] -= 2.0 * h;
            let difference = (above - formula(&moved)) / (2.0 * h);
            let slack = 1e-5 * (1.0 + difference.abs());
            assert!(
                (f64::from(grad) - difference).abs() < slack,
                "gradient [{row}, {column}] is {grad}, by differences {difference}"
            );
        }
    }
}

/// Rows of numbers in ±`scale` that an f32 holds exactly.
pub(crate) fn any_rows(
    rows: usize,
    columns: usize,
    scale: f64,
) -> impl Strategy<Value = Vec<Vec<f64>>> {
    let row = prop::collection::vec(-scale..scale, columns);
    prop::collection::vec(
        row.prop_map(|row| row.into_iter().map(|x| f64::from(x as f32)).collect()),
        rows,
    )
}
