//! Values and gradients of the methods agree with the papers' formulas in f64 (parity/methods.py).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use kd_loss::{
    DistConfig, DkdConfig, Result, attention_transfer, correlation_congruence, crd_nce,
    cross_entropy_smoothed, dist, dkd, fsp, kd, nst, pkt, rkd_angle, rkd_distance,
    similarity_preserving, standardize, vid,
};

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

fn agree(names: &[&str], vars: usize, loss: impl Fn(&[Var], &[Tensor]) -> Result<Tensor>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/methods.safetensors");
    let fixture = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    for name in names {
        Case { fixture: &fixture, name: (*name).to_string() }.check(vars, &loss);
    }
}

#[test]
fn standardized_kd() {
    agree(&["kd_standardized", "large.kd_standardized"], 1, |s, t| {
        kd(&standardize(&s[0])?, &standardize(&t[0])?, 2.0)
    });
}

#[test]
fn decoupled_kd() {
    agree(&["dkd", "large.dkd"], 1, |s, t| dkd(&s[0], &t[0], &t[1], &DkdConfig::default()));
    let other = DkdConfig { temperature: 1.5, alpha: 0.5, beta: 2.0, standardize: false };
    agree(&["dkd_other", "large.dkd_other"], 1, |s, t| dkd(&s[0], &t[0], &t[1], &other));
    let two = DkdConfig { temperature: 2.0, ..DkdConfig::default() };
    agree(&["dkd_standardized", "large.dkd_standardized"], 1, |s, t| {
        dkd(&standardize(&s[0])?, &standardize(&t[0])?, &t[1], &two)
    });
}

#[test]
fn dist_s_correlations() {
    agree(&["dist", "large.dist"], 1, |s, t| dist(&s[0], &t[0], &DistConfig::default()));
    let other = DistConfig { temperature: 4.0, beta: 2.0, gamma: 0.5 };
    agree(&["dist_other", "large.dist_other"], 1, |s, t| dist(&s[0], &t[0], &other));
}

#[test]
fn smoothed_labels() {
    agree(&["label_smoothing"], 1, |s, t| cross_entropy_smoothed(&s[0], &t[0], 0.1));
}

#[test]
fn attention() {
    let names = ["attention_transfer", "smaller.attention_transfer", "larger.attention_transfer"];
    agree(&names, 1, |s, t| attention_transfer(&s[0], &t[0]));
}

#[test]
fn neuron_selectivity() {
    agree(&["nst", "smaller.nst", "larger.nst"], 1, |s, t| nst(&s[0], &t[0]));
}

#[test]
fn flow() {
    agree(&["fsp"], 2, |s, t| fsp((&s[0], &s[1]), (&t[0], &t[1])));
}

#[test]
fn variational_information() {
    agree(&["vid"], 2, |s, t| vid(&s[0], &s[1], &t[0]));
}

#[test]
fn relational_distances_and_angles() {
    agree(&["rkd_distance", "positive.rkd_distance"], 1, |s, t| rkd_distance(&s[0], &t[0]));
    agree(&["rkd_angle", "positive.rkd_angle"], 1, |s, t| rkd_angle(&s[0], &t[0]));
}

#[test]
fn similarities() {
    let names =
        ["similarity_preserving", "smaller.similarity_preserving", "larger.similarity_preserving"];
    agree(&names, 1, |s, t| similarity_preserving(&s[0], &t[0]));
}

#[test]
fn congruence() {
    let names = ["correlation_congruence", "positive.correlation_congruence"];
    agree(&names, 1, |s, t| correlation_congruence(&s[0], &t[0], 0.4, 2));
    let names = ["correlation_congruence_other", "positive.correlation_congruence_other"];
    agree(&names, 1, |s, t| correlation_congruence(&s[0], &t[0], 1.5, 4));
}

#[test]
fn neighbourhoods() {
    agree(&["pkt", "positive.pkt"], 1, |s, t| pkt(&s[0], &t[0]));
}

#[test]
fn contrast() {
    agree(&["crd_nce"], 1, |x, _| crd_nce(&x[0], 40.0, 50));
}
