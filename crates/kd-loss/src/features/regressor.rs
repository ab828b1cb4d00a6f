//! Hints: the student's feature map, through a learned regressor, should equal the teacher's.

use candle_nn::VarBuilder;

use super::mse::mse;
use crate::conv_norm::convolution;
use crate::method::{About, Definition, HelperInit, HelperParameter, Kind, Method};
use crate::pairs::{MAP_PAIR, Pair, PairConfig, compare};
use crate::setup::DefaultPlace;
use crate::{Result, Setup};

pub(crate) struct Regressor;

impl Definition for Regressor {
    type Options = PairConfig;

    const ABOUT: About = About {
        kind: Kind::Feature,
        across_images: false,
        summary: "mean squared error to the teacher's feature map through a learned 3x3 convolution",
        paper: "PyTorch tutorial on knowledge distillation; Romero et al. 2015",
        weight: 0.25,
        labels: 0.75,
        source: "pytorch/tutorials, beginner_source/knowledge_distillation_tutorial.py: train_mse_loss, feature_map_weight=0.25, ce_loss_weight=0.75",
        options: &MAP_PAIR,
    };

    fn resolve(options: &mut PairConfig, setup: &Setup) -> Result<()> {
        *options = options.find(setup, DefaultPlace::Map)?.into();
        Ok(())
    }

    fn helper_parameters(options: &PairConfig, setup: &Setup) -> Result<Vec<HelperParameter>> {
        let (student, teacher) = channels(&options.find(setup, DefaultPlace::Map)?)?;
        let init = HelperInit::Uniform(1.0 / ((student * 9) as f64).sqrt());
        let parameter = |name: &str, shape| HelperParameter { name: name.into(), shape, init };
        Ok(vec![
            parameter("regressor.0.weight", vec![teacher, student, 3, 3]),
            parameter("regressor.0.bias", vec![teacher]),
        ])
    }

    fn build(options: &PairConfig, setup: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        let pair = options.find(setup, DefaultPlace::Map)?;
        let (inputs, outputs) = channels(&pair)?;
        let weight = vb.get((outputs, inputs, 3, 3), "regressor.0.weight")?;
        let bias = vb.get(outputs, "regressor.0.bias")?;
        Ok(compare(vec![pair], move |student, teacher| {
            mse(&convolution(student, &weight, Some(&bias))?, teacher)
        }))
    }
}

/// The channels of the two maps, student's first; heights and widths must be equal.
fn channels(pair: &Pair) -> Result<(usize, usize)> {
    match (&pair.student_shape[..], &pair.teacher_shape[..]) {
        (&[student, h, w], &[teacher, ht, wt]) if (h, w) == (ht, wt) => Ok((student, teacher)),
        _ => Err(pair.mismatch("both must be [C, H, W] with the same H and W")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_agrees, fixture};
    use crate::{Inputs, MethodConfig, build};
    use candle_core::{DType, Device, Tensor, Var};
    use std::collections::{BTreeMap, HashMap};

    #[test]
    fn the_regressor_agrees_with_pytorch() {
        let fixture = fixture();
        let var = |name: &str| Var::from_tensor(&fixture[&format!("regressor.{name}")]).unwrap();
        let (student, weight, bias) = (var("student"), var("weight"), var("bias"));
        let vb = VarBuilder::from_tensors(
            HashMap::from([
                ("regressor.0.weight".to_string(), weight.as_tensor().clone()),
                ("regressor.0.bias".to_string(), bias.as_tensor().clone()),
            ]),
            DType::F32,
            &Device::Cpu,
        );
        let shapes = Setup {
            student: vec![("features.5".into(), vec![4, 5, 5]), ("classifier.1".into(), vec![9])],
            teacher: vec![("features.9".into(), vec![6, 5, 5]), ("classifier.1".into(), vec![9])],
            classes: 10,
            ..Setup::default()
        };
        let method = build(&MethodConfig::from_name("regressor").unwrap(), &shapes, vb).unwrap();
        let features =
            |name: &str, tensor: &Tensor| BTreeMap::from([(name.to_string(), tensor.clone())]);
        let logits = Tensor::zeros((2, 10), DType::F32, &Device::Cpu).unwrap();
        let labels = Tensor::zeros(2, DType::U32, &Device::Cpu).unwrap();
        let inputs = Inputs {
            student_features: &features("features.5", &student),
            teacher_features: &features("features.9", &fixture["regressor.teacher"]),
            ..Inputs::new(&logits, &labels)
        };
        let loss = method.loss(&inputs).unwrap();
        assert_agrees(&fixture, "regressor", &loss, &[&student, &weight, &bias]);
    }
}
