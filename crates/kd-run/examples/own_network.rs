//! A network of one's own as the student: implement `Classifier`, and losses and evaluation take it.
//!
//! ```text
//! cargo run --release -p kd-run --example own_network
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use kd_data::{BatchConfig, Normalization, Source, SyntheticConfig};
use kd_loss::{Inputs, KdConfig, MethodConfig, Objective, RunStep, Weighted};
use kd_models::{Architecture, Classifier, Mode, ModelConfig, Output, Parameters, Place, uniform};
use kd_ops::adam::{Adam, AdamConfig};
use kd_ops::{Conv2dConfig, DropoutKey, conv2d, linear};

/// One convolution of stride 4, and a linear layer.
struct Patches {
    parameters: Parameters,
    classes: usize,
}

const CHANNELS: usize = 16;
/// Of the convolution's map: 32 pixels in steps of 4.
const SIDE: usize = 8;

impl Patches {
    fn new(classes: usize, seed: u64) -> kd_models::Result<Self> {
        let layers: [(&str, Vec<usize>, usize); 2] = [
            ("patch", vec![CHANNELS, 3, 4, 4], 3 * 4 * 4),
            ("head", vec![classes, CHANNELS * SIDE * SIDE], CHANNELS * SIDE * SIDE),
        ];
        let mut parameters = Parameters::new();
        for (name, shape, inputs) in layers {
            let bound = 1.0 / (inputs as f64).sqrt();
            for (name, shape) in
                [(format!("{name}.weight"), &shape[..]), (format!("{name}.bias"), &shape[..1])]
            {
                let values = uniform(&name, shape, bound, seed, &Device::Cpu)?;
                parameters.insert(name, values);
            }
        }
        Ok(Self { parameters, classes })
    }
}

impl Classifier for Patches {
    fn forward_t(&self, images: &Tensor, _: Mode, places: &[&str]) -> kd_models::Result<Output> {
        let weight = |name: &str| self.parameters[name].as_tensor();
        let config = Conv2dConfig { stride: 4, relu: true, ..Conv2dConfig::default() };
        let map = conv2d(images, weight("patch.weight"), Some(weight("patch.bias")), &config)?;
        let rows = map.flatten_from(1)?;
        let logits = linear(&rows, weight("head.weight"), Some(weight("head.bias")), false)?;
        // What methods that compare features ask for, by the names of `places`.
        let mut features = BTreeMap::new();
        if places.contains(&"patch") {
            features.insert("patch".to_string(), map);
        }
        Ok(Output { logits, features })
    }

    fn places(&self) -> Vec<Place> {
        vec![Place { name: "patch".into(), shape: vec![CHANNELS, SIDE, SIDE] }]
    }

    fn num_classes(&self) -> usize {
        self.classes
    }

    fn multiply_adds(&self) -> u64 {
        (SIDE * SIDE * CHANNELS * (3 * 4 * 4 + self.classes)) as u64
    }
}

/// Distils a teacher into the network on pictures drawn by program; its accuracy on the test pictures.
fn train(images: usize, epochs: usize) -> anyhow::Result<f64> {
    let data = kd_data::synthetic(&SyntheticConfig { train: images, test: 200, seed: 0 });
    let (train, test): (_, Arc<dyn Source>) = (Arc::new(data.train), Arc::new(data.test));
    let student = Patches::new(data.classes.len(), 0)?;

    // Any teacher: weights::load takes one from a file. This one knows nothing yet, so labels lead.
    let config = ModelConfig::new(Architecture::TUTORIAL_STUDENT, data.classes.len());
    let teacher = kd_models::build(
        &config,
        kd_models::var_builder(&kd_models::init(&config, 1, &Device::Cpu)?),
    )?;
    // kd asks for no feature maps, so no shapes and no helper parameters are needed.
    let method = MethodConfig::Kd(KdConfig::default());
    let setup = kd_loss::Setup::default();
    let method = kd_loss::build(&method, &setup, kd_models::frozen(&BTreeMap::new()))?;
    let objective = Objective::new(0.9, vec![Weighted::new("kd", 0.1, method)])?;

    let mut adam = Adam::new(AdamConfig::default());
    for epoch in 0..epochs {
        let config =
            BatchConfig { batch_size: 50, shuffle_seed: Some(0), epoch, ..BatchConfig::default() };
        for batch in kd_data::batches(&train, &config, &Device::Cpu)? {
            let batch = batch?;
            let key = DropoutKey { seed: 0, step: adam.steps };
            let output = student.forward_t(&batch.images, Mode::Train(key), &[])?;
            let taught = teacher.forward_t(&batch.images, Mode::Eval, &[])?;
            let inputs = Inputs {
                teacher_logits: Some(&taught.logits),
                ..Inputs::new(&output.logits, &batch.labels)
            };
            let loss = objective.loss(&inputs, RunStep::default())?;
            adam.step(&student.parameters, &loss.total.backward()?)?;
        }
    }
    let normalization = Normalization::default();
    let evaluation =
        kd_run::evaluate::evaluate(&student, &test, &data.classes, normalization, &Device::Cpu)?;
    Ok(evaluation.accuracy)
}

fn main() -> anyhow::Result<()> {
    let accuracy = train(5_000, 10)?;
    println!("{:.1} % of the synthetic test pictures, ten classes", 100.0 * accuracy);
    Ok(())
}

#[test]
fn the_network_learns() {
    let accuracy = train(1_000, 4).unwrap();
    // A guess is right one time in ten.
    assert!(accuracy > 0.17, "{accuracy}");
}
