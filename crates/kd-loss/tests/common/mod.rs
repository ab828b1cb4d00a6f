//! The pair of networks that tests of methods are built for, and inputs for them.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use kd_loss::{HelperInit, MethodConfig, Setup, Term, helper_parameters};

/// The tutorial's pair, shortened.
pub(crate) fn setup() -> Setup {
    let place = |name: &str, shape: &[usize]| (name.to_string(), shape.to_vec());
    Setup {
        student: vec![
            place("features.2", &[16, 16, 16]),
            place("features.5", &[16, 8, 8]),
            place("classifier.1", &[256]),
        ],
        teacher: vec![
            place("features.4", &[64, 16, 16]),
            place("features.9", &[32, 8, 8]),
            place("classifier.1", &[512]),
        ],
        classes: 10,
        train_labels: vec![0, 1, 2, 3],
    }
}

pub(crate) fn no_helpers() -> VarBuilder<'static> {
    VarBuilder::from_tensors(HashMap::new(), DType::F32, &Device::Cpu)
}

/// Variables for a method's helper parameters.
pub(crate) fn helpers(config: &MethodConfig) -> (BTreeMap<String, Var>, VarBuilder<'static>) {
    let vars: BTreeMap<String, Var> = helper_parameters(config, &setup())
        .unwrap()
        .into_iter()
        .map(|p| {
            let values = match p.init {
                HelperInit::Constant(value) => {
                    Tensor::full(value as f32, p.shape, &Device::Cpu).unwrap()
                }
                HelperInit::Uniform(bound) => (ramp(&p.shape) * (bound / 2.0)).unwrap(),
            };
            (p.name, Var::from_tensor(&values).unwrap())
        })
        .collect();
    let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    (vars, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
}

pub(crate) fn term(recipe: &str) -> Result<Term, toml::de::Error> {
    toml::from_str(recipe)
}

pub(crate) fn ramp(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

pub(crate) fn labels(labels: &[u32]) -> Tensor {
    Tensor::new(labels, &Device::Cpu).unwrap()
}
