//! Every method over scales of its inputs, their types, single images, rows of zeros and equal rows: value and gradient against f64, and the
//! gradients of f64 against finite differences.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::VarBuilder;
use kd_loss::{
    HelperInit, HostStep, Inputs, METHODS, MethodConfig, Objective, RunStep, Setup, Weighted,
    build, helper_parameters,
};

mod numbers;

use numbers::{CPU, flat, largest, ramp, var};

const HALVES: [DType; 2] = [DType::BF16, DType::F16];

/// The tutorial's pair, in small.
fn setup() -> Setup {
    let place = |name: &str, shape: &[usize]| (name.to_string(), shape.to_vec());
    Setup {
        student: vec![place("early", &[4, 4, 4]), place("late", &[4, 2, 2]), place("vector", &[5])],
        teacher: vec![place("early", &[6, 4, 4]), place("late", &[8, 2, 2]), place("vector", &[7])],
        classes: 6,
        train_labels: vec![0, 1, 2, 3],
    }
}

/// The methods as the list has them; CRD with as many negatives as these few images allow.
fn configs() -> Vec<MethodConfig> {
    let mut all: Vec<_> =
        METHODS.iter().map(|method| MethodConfig::from_name(method.name).unwrap()).collect();
    for config in &mut all {
        if let MethodConfig::Crd(crd) = config {
            (crd.negatives, crd.dim) = (3, 4);
        }
    }
    all.extend(
        ["name = 'kd'\nstandardize = true", "name = 'dkd'\nstandardize = true"]
            .map(|text| toml::from_str(text).unwrap()),
    );
    all
}

/// What is done to the features and logits of both networks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Edge {
    None,
    ZeroRow,
    /// A row that is 1e-20 long, whatever the scale.
    TinyRow,
    EqualRows,
    AllZero,
    /// All numbers of a row lie around a number that is ten times as large as they are.
    Far,
}

/// Where formulas have no derivative, or almost none.
const EDGES: [Edge; 4] = [Edge::ZeroRow, Edge::TinyRow, Edge::EqualRows, Edge::AllZero];

/// Inputs of a method.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    scale: f64,
    edge: Edge,
    /// All numbers are rounded to this type first.
    rounded: DType,
    student: DType,
    teacher: DType,
    helpers: DType,
}

impl Case {
    /// Four images at scale 1, all of one type.
    fn of(dtype: DType) -> Self {
        let (rounded, student, teacher, helpers) = (dtype, dtype, dtype, dtype);
        Self { batch: 4, scale: 1.0, edge: Edge::None, rounded, student, teacher, helpers }
    }

    /// The same numbers in f64.
    fn exact(self) -> Self {
        let f64 = DType::F64;
        Self { student: f64, teacher: f64, helpers: f64, ..self }
    }

    /// Values of the batch's images, each of this shape: `[batch, shape]`.
    fn values(&self, shape: &[usize], shift: usize, dtype: DType) -> Result<Tensor> {
        let whole = [&[self.batch], shape].concat();
        let count: usize = whole.iter().product();
        let x = (ramp(&[count + shift]).narrow(0, shift, count)?.reshape(whole)? * self.scale)?;
        let row = |i: usize| x.narrow(0, i.min(self.batch - 1), 1);
        let others = |first: Tensor| match self.batch {
            1 => Ok(first),
            _ => Tensor::cat(&[first, x.narrow(0, 1, self.batch - 1)?], 0),
        };
        let x = match self.edge {
            Edge::None => x,
            Edge::AllZero => x.zeros_like()?,
            Edge::ZeroRow => others(row(0)?.zeros_like()?)?,
            Edge::TinyRow => others((row(0)? * (1e-20 / self.scale))?)?,
            Edge::EqualRows => others(row(1)?)?,
            Edge::Far => (x + 20.0 * self.scale)?,
        };
        x.to_dtype(self.rounded)?.to_dtype(dtype)
    }
}

/// A method with all that it looks at.
struct World {
    case: Case,
    config: MethodConfig,
    /// The student's logits, named "logits", and its features.
    student: BTreeMap<String, Var>,
    teacher: BTreeMap<String, Tensor>,
    teacher_logits: Tensor,
    helpers: HashMap<String, Tensor>,
}

impl World {
    fn new(config: &MethodConfig, case: Case) -> Self {
        let setup = setup();
        let var = |shape: &[usize], shift| {
            Var::from_tensor(&case.values(shape, shift, case.student).unwrap()).unwrap()
        };
        let mut student: BTreeMap<String, Var> =
            setup.student.iter().map(|(name, shape)| (name.clone(), var(shape, 3))).collect();
        student.insert("logits".into(), var(&[setup.classes], 5));
        let theirs = |(name, shape): &(String, Vec<usize>)| {
            (name.clone(), case.values(shape, 11, case.teacher).unwrap())
        };
        let helper = |shape: &[usize], init| match init {
            HelperInit::Constant(value) => Tensor::full(value, shape, CPU).unwrap(),
            HelperInit::Uniform(bound) => (ramp(shape) * (bound / 2.0)).unwrap(),
        };
        let helpers = helper_parameters(config, &setup).unwrap().into_iter().map(|p| {
            let start = helper(&p.shape, p.init).to_dtype(case.rounded).unwrap();
            (p.name, start.to_dtype(case.helpers).unwrap())
        });
        Self {
            case,
            config: config.clone(),
            student,
            teacher: setup.teacher.iter().map(theirs).collect(),
            teacher_logits: case.values(&[setup.classes], 17, case.teacher).unwrap(),
            helpers: helpers.collect(),
        }
    }

    /// Calls `body` with the method, built anew, and its inputs.
    fn with<T>(&self, body: impl FnOnce(Box<dyn kd_loss::Method>, &Inputs<'_>) -> T) -> T {
        let setup = setup();
        // Copies: CRD changes its memory.
        let helpers = self.helpers.iter().map(|(name, x)| (name.clone(), x.copy().unwrap()));
        let vb = VarBuilder::from_tensors(helpers.collect(), self.case.helpers, CPU);
        let method = build(&self.config.resolve(&setup).unwrap(), &setup, vb).unwrap();
        let batch = self.case.batch as u32;
        let labels = Tensor::from_vec((0..batch).collect(), batch as usize, CPU).unwrap();
        let indices: Vec<u32> = (0..batch).collect();
        let at = RunStep { step: 1, steps: 10 };
        let host = HostStep { indices: &indices, seed: 3, epoch: 0, epochs: 1, at };
        let student: BTreeMap<String, Tensor> = self
            .student
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        let inputs = Inputs {
            teacher_logits: Some(&self.teacher_logits),
            student_features: &student,
            teacher_features: &self.teacher,
            host: method.needs().host.then_some(host),
            ..Inputs::new(&student["logits"], &labels)
        };
        body(method, &inputs)
    }

    fn loss(&self) -> Tensor {
        self.with(|method, inputs| method.loss(inputs)).unwrap()
    }

    /// The loss, and the gradients of all that the student computes, by name.
    fn both(&self) -> (f64, BTreeMap<String, Tensor>) {
        let loss = self.loss();
        let gradients = loss.backward().unwrap();
        let of = |(name, var): (&String, &Var)| Some((name.clone(), gradients.get(var)?.clone()));
        (flat(&loss)[0], self.student.iter().filter_map(of).collect())
    }
}

/// That a loss and its gradients are those of the same numbers in f64, within `close` of the largest value of each, and within what f32 can
/// say of probabilities.
#[track_caller]
fn assert_exact(config: &MethodConfig, case: Case, close: f64) {
    let (loss, gradients) = World::new(config, case).both();
    let (expected, exact) = World::new(config, case.exact()).both();
    let difference = (loss - expected).abs();
    assert!(
        difference <= close * expected.abs() + 2e-6,
        "{config:?}, {case:?}: {loss}, expected {expected}"
    );
    assert_eq!(gradients.len(), exact.len(), "{config:?}, {case:?}");
    for (name, exact) in &exact {
        assert_eq!(gradients[name].dtype(), case.student, "{config:?}, {case:?}: {name}");
        let (found, exact) = (flat(&gradients[name]), flat(exact));
        let largest = largest(&exact);
        for (found, exact) in found.iter().zip(&exact) {
            // No f16 is larger.
            if case.student == DType::F16 && exact.abs() > 6e4 {
                continue;
            }
            assert!(
                (found - exact).abs() <= close * largest + 1e-6,
                "{config:?}, {case:?}: {name} {found}, expected {exact}, largest {largest}"
            );
        }
    }
}

/// f32 and the half types against f64: from 1e-6 to 1e6, one image and four, with every edge.
#[test]
fn every_method_agrees_with_f64_at_every_scale_and_edge() {
    for config in configs() {
        for scale in [1e-6, 1e-5, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6] {
            for batch in [1, 4] {
                for edge in [Edge::None, Edge::Far].into_iter().chain(EDGES) {
                    for (dtype, close) in
                        [(DType::F32, 1e-3), (DType::BF16, 1e-2), (DType::F16, 4e-3)]
                    {
                        // No f16 is larger.
                        let most = if edge == Edge::Far { 22.0 } else { 2.0 };
                        if dtype == DType::F16 && most * scale > 65504.0 {
                            continue;
                        }
                        assert_exact(
                            &config,
                            Case { batch, scale, edge, ..Case::of(dtype) },
                            close,
                        );
                    }
                }
            }
        }
    }
}

/// Student, teacher and what a method learns, each in its own type: both networks' numbers are widened, none is rounded.
#[test]
fn every_method_takes_two_networks_of_different_types() {
    let all = [DType::F64, DType::F32, DType::BF16, DType::F16];
    for config in configs() {
        for student in all {
            for teacher in all {
                for helpers in [DType::F64, DType::F32] {
                    // At this scale all types have bf16's numbers.
                    let case = Case { student, teacher, helpers, ..Case::of(DType::BF16) };
                    let close = if HALVES.contains(&student) { 1e-2 } else { 1e-4 };
                    assert_exact(&config, case, close);
                }
            }
        }
    }
}

/// A sum of the labels and of methods whose losses have different types.
#[test]
fn an_objective_adds_losses_of_different_types() {
    for (student, teacher) in [(DType::F32, DType::F64), (DType::F64, DType::F32)] {
        let sum = |case: Case| {
            let world = World::new(&MethodConfig::from_name("kd").unwrap(), case);
            let cosine = World::new(&MethodConfig::from_name("cosine").unwrap(), case);
            let cosine = cosine.with(|method, _| method);
            world.with(|kd, inputs| {
                let methods =
                    vec![Weighted::new("kd", 0.5, kd), Weighted::new("cosine", 2.0, cosine)];
                let objective = Objective::new(0.75, methods).unwrap();
                flat(&objective.loss(inputs, RunStep::default()).unwrap().total)[0]
            })
        };
        let case = Case { student, teacher, ..Case::of(DType::F32) };
        let (found, expected) = (sum(case), sum(case.exact()));
        assert!((found - expected).abs() < 1e-5 * expected, "{found}, expected {expected}");
    }
}

/// Whole numbers are no features: an error of one sentence that says whose they are.
#[test]
fn integers_are_an_error_that_names_the_network() {
    for config in configs() {
        for whose in ["student", "teacher"] {
            let mut world = World::new(&config, Case::of(DType::F32));
            let whole = |x: &Tensor| x.to_dtype(DType::I64).unwrap();
            if whose == "teacher" {
                world.teacher.values_mut().for_each(|x| *x = whole(x));
                world.teacher_logits = whole(&world.teacher_logits);
            } else {
                let whole = |x: &Var| Var::from_tensor(&whole(x)).unwrap();
                world.student.values_mut().for_each(|x| *x = whole(x));
            }
            let found = world.with(|method, inputs| method.loss(inputs).map(|_| ()));
            if config.name() == "label-smoothing" && whose == "teacher" {
                assert!(found.is_ok());
                continue;
            }
            let error = found.unwrap_err().to_string();
            assert!(error.contains(whose), "{config:?}: {error}");
            assert!(
                error.ends_with("are I64; expected F32, F64, BF16 or F16"),
                "{config:?}: {error}"
            );
        }
    }
}

/// At an edge the images that are not there have the derivative that finite differences find.
#[test]
fn gradients_beside_an_edge_are_finite_differences() {
    for config in configs() {
        // Z is found from the first batch, so CRD's moves with the embeddings; its differences are in every_method.rs.
        if config.name() == "crd" {
            continue;
        }
        for edge in [Edge::None, Edge::ZeroRow, Edge::EqualRows, Edge::Far] {
            let case = Case { edge, ..Case::of(DType::F64) };
            let world = World::new(&config, case);
            let (_, gradients) = world.both();
            for (name, gradient) in &gradients {
                // Images 0 and 1 stay where they are.
                let direction = ramp(gradient.dims());
                let still = direction.narrow(0, 0, 2).unwrap().zeros_like().unwrap();
                let direction =
                    Tensor::cat(&[still, direction.narrow(0, 2, 2).unwrap()], 0).unwrap();
                let value = |h: f64| {
                    let moved = World::new(&config, case);
                    let var = &moved.student[name];
                    var.set(&(var.as_tensor() + (&direction * h).unwrap()).unwrap()).unwrap();
                    flat(&moved.loss())[0]
                };
                let difference = (value(1e-5) - value(-1e-5)) / 2e-5;
                let slope: f64 = flat(&(gradient * &direction).unwrap()).iter().sum();
                assert!(
                    (difference - slope).abs() <= 1e-5 * difference.abs().max(1e-3),
                    "{config:?}, {edge:?}: {name} {slope}, by differences {difference}"
                );
            }
        }
    }
}

/// An image without a direction learns nothing, exactly; and where no image has one, none does.
#[test]
fn what_has_no_direction_has_gradient_zero() {
    let zeros = |gradient: &Tensor| flat(gradient).iter().all(|x| *x == 0.0);
    for config in configs() {
        let (row, all) = match config.name() {
            "attention-transfer" | "nst" | "cosine" | "pkt" | "correlation-congruence" => {
                (true, true)
            }
            // Other images' similarities with an image of zeros still move it.
            "similarity-preserving" | "rkd-distance" | "rkd-angle" | "dist" => (false, true),
            "kd" | "dkd" => {
                let text = toml::to_string(&config).unwrap();
                (text.contains("standardize"), text.contains("standardize"))
            }
            _ => continue,
        };
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let gradients = |edge| World::new(&config, Case { edge, ..Case::of(dtype) }).both().1;
            for (name, gradient) in gradients(Edge::AllZero) {
                assert!(!all || zeros(&gradient), "{config:?}, {dtype:?}: {name} {gradient}");
            }
            for (name, gradient) in gradients(Edge::ZeroRow) {
                let first = gradient.narrow(0, 0, 1).unwrap();
                assert!(!row || zeros(&first), "{config:?}, {dtype:?}: {name} {first}");
            }
        }
    }
}

/// An edge makes no gradient much larger than ordinary inputs have.
#[test]
fn no_edge_has_a_gradient_that_ends_a_run() {
    for config in configs() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let most = |edge| {
                let (loss, gradients) =
                    World::new(&config, Case { edge, ..Case::of(dtype) }).both();
                assert!(loss.is_finite(), "{config:?}, {edge:?}, {dtype:?}: {loss}");
                largest(&gradients.values().flat_map(flat).collect::<Vec<_>>())
            };
            let bound = 100.0 * most(Edge::None) + 1.0;
            for edge in EDGES {
                let most = most(edge);
                assert!(most <= bound, "{config:?}, {edge:?}, {dtype:?}: {most} above {bound}");
            }
        }
    }
}

/// The numbers of a case are what it says.
#[test]
fn a_case_has_its_edge() {
    let of =
        |edge| flat(&Case { edge, ..Case::of(DType::F64) }.values(&[2], 0, DType::F64).unwrap());
    let plain = of(Edge::None);
    assert_eq!(plain, flat(&var(&plain, &[4, 2], DType::F64)));
    assert_eq!(of(Edge::ZeroRow)[..2], [0.0, 0.0]);
    assert_eq!(of(Edge::ZeroRow)[2..], plain[2..]);
    assert_eq!(of(Edge::EqualRows)[..2], plain[2..4]);
    assert_eq!(of(Edge::AllZero), [0.0; 8]);
}
