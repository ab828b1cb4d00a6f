//! Factor transfer: what an autoencoder of the teacher's map makes of it, and a learned translation of the student's.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::mse::mse;
use crate::conv_norm::{ConvNorm, convolution};
use crate::inputs::{Inputs, Needs};
use crate::matching::{match_size, rows};
use crate::method::{About, Definition, HelperInit, HelperParameter, Kind, Method};
use crate::numeric::{in_one_type, normalized, relu};
use crate::pairs::{MAP_PAIR, Pair, PairConfig};
use crate::setup::DefaultPlace;
use crate::{Error, Result, Setup, check};

/// `mean over all values of |F(student) / ‖F(student)‖ - F(teacher) / ‖F(teacher)‖|`, a scalar; the factors are flattened to a row for each image.
///
/// Both are `[B, ...]` with as many values an image. The teacher gets no gradient.
///
/// Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer" (2018), equation 3 with p = 1, as a mean over the values.
///
/// # Errors
/// When the shapes differ.
pub fn factor_transfer(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (s, t) = rows(student, teacher)?;
    if s.dims() != t.dims() {
        return Err(Error::ShapeMismatch {
            what: "factors".into(),
            student: student.dims().to_vec(),
            other: teacher.dims().to_vec(),
            expected: "both must have as many values an image",
        });
    }
    let difference = (normalized(&s)? - normalized(&t)?)?;
    // |x| with derivative 0 at 0.
    Ok((relu(&difference)? + relu(&difference.neg()?)?)?.mean_all()?)
}

/// Options of the method "factor-transfer".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FactorConfig {
    /// Channels of the factors, as a share of the teacher's, above 0 and up to 1; there is at least one.
    pub rate: f64,
    /// The weight, within the method, of the mean squared error between the teacher's map and what the autoencoder makes of it.
    pub reconstruction: f64,
    /// The student's feature place; when left out its last feature map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place, with the same default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

impl Default for FactorConfig {
    /// Half as many channels; with the method's weight of 200 the reconstruction's is 1.
    fn default() -> Self {
        Self { rate: 0.5, reconstruction: 0.005, student: None, teacher: None }
    }
}

impl FactorConfig {
    /// The places, and the channels of the student's map, of the teacher's and of the factors.
    fn find(&self, setup: &Setup) -> Result<(Pair, [usize; 3])> {
        let places = PairConfig { student: self.student.clone(), teacher: self.teacher.clone() };
        let pair = places.find(setup, DefaultPlace::Map)?;
        let (student, teacher) = pair.channels()?;
        let factors = ((teacher as f64 * self.rate) as usize).max(1);
        Ok((pair, [student, teacher, factors]))
    }
}

/// [`factor_transfer`] of a translation of the student's map and of the code that an autoencoder has of the teacher's. Both are three 3x3 convolutions with leaky ReLUs (0.1); the student's have
/// batch normalisation. The autoencoder learns from its reconstruction alone, at the same time.
pub(crate) struct FactorTransfer;

/// The layers' names, with the channels that they take and give.
fn layers([student, teacher, factors]: [usize; 3]) -> [[(usize, usize); 3]; 3] {
    [
        [(student, student), (student, factors), (factors, factors)],
        [(teacher, teacher), (teacher, factors), (factors, factors)],
        [(factors, factors), (factors, teacher), (teacher, teacher)],
    ]
}

impl Definition for FactorTransfer {
    type Options = FactorConfig;

    const ABOUT: About = About {
        kind: Kind::Feature,
        across_images: true,
        summary: "normalised factors: an autoencoder's code of the teacher's map, and a translation of the student's",
        paper: "Kim, Park, Kwak 2018",
        weight: 200.0,
        labels: 1.0,
        source: "HobbitLong/RepDistiller, scripts/run_cifar_distill.sh: --distill factor -a 0 -b 200; models/util.py: Paraphraser(k=0.5), without batch normalisation, Translator(k=0.5), with it; AberHu/Knowledge-Distillation-Zoo, example_train_script.sh has the same two numbers, and its kd_losses/ft.py the paper's formula, where RepDistiller compares attention maps of the factors. Departures: the autoencoder is trained beside the student, not before it, its error counting 200 * 0.005 = 1; its transposed convolutions of stride 1 are convolutions; biases before a batch normalisation, which takes them away, are left out",
        options: &[
            ("rate", "channels of the factors as a share of the teacher's, above 0, up to 1"),
            ("reconstruction", "weight of the autoencoder's error within the method"),
            MAP_PAIR[0],
            MAP_PAIR[1],
        ],
    };

    fn validate(options: &FactorConfig) -> Result<()> {
        check::positive("rate", options.rate)?;
        check::share("rate", options.rate)?;
        check::weight("reconstruction", options.reconstruction)
    }

    fn resolve(options: &mut FactorConfig, setup: &Setup) -> Result<()> {
        let (pair, _) = options.find(setup)?;
        (options.student, options.teacher) = (Some(pair.student), Some(pair.teacher));
        Ok(())
    }

    fn helper_parameters(options: &FactorConfig, setup: &Setup) -> Result<Vec<HelperParameter>> {
        let [translator, encoder, decoder] = layers(options.find(setup)?.1);
        let mut all = Vec::new();
        for (i, channels) in translator.into_iter().enumerate() {
            all.extend(ConvNorm::parameters(&format!("translator.{i}"), channels, 3, 1.0));
        }
        for (name, layers) in [("encoder", encoder), ("decoder", decoder)] {
            for (i, (inputs, outputs)) in layers.into_iter().enumerate() {
                let init = HelperInit::Uniform(1.0 / ((inputs * 9) as f64).sqrt());
                let parameter = |what: &str, shape| {
                    let name = format!("paraphraser.{name}.{i}.{what}");
                    HelperParameter { name, shape, init }
                };
                all.push(parameter("weight", vec![outputs, inputs, 3, 3]));
                all.push(parameter("bias", vec![outputs]));
            }
        }
        Ok(all)
    }

    fn build(options: &FactorConfig, setup: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        let (pair, channels) = options.find(setup)?;
        let [translator, encoder, decoder] = layers(channels);
        let translator = translator
            .into_iter()
            .enumerate()
            .map(|(i, channels)| ConvNorm::new(channels, 3, &vb.pp(format!("translator.{i}"))));
        let plain = |name: &str, layers: [(usize, usize); 3]| {
            let layer = |(i, (inputs, outputs))| {
                let vb = vb.pp(format!("paraphraser.{name}.{i}"));
                Ok((vb.get((outputs, inputs, 3, 3), "weight")?, vb.get(outputs, "bias")?))
            };
            layers.into_iter().enumerate().map(layer).collect::<Result<Vec<_>>>()
        };
        Ok(Box::new(Factors {
            translator: translator.collect::<Result<_>>()?,
            encoder: plain("encoder", encoder)?,
            decoder: plain("decoder", decoder)?,
            reconstruction: options.reconstruction,
            pair,
        }))
    }
}

struct Factors {
    pair: Pair,
    translator: Vec<ConvNorm>,
    /// Weight and bias of each convolution, as in `decoder`.
    encoder: Vec<(Tensor, Tensor)>,
    decoder: Vec<(Tensor, Tensor)>,
    reconstruction: f64,
}

/// `x` above 0, a tenth of it below.
fn leaky_relu(x: &Tensor) -> candle_core::Result<Tensor> {
    (relu(x)? * 0.9)? + (x * 0.1)?
}

fn convolutions(x: &Tensor, layers: &[(Tensor, Tensor)]) -> candle_core::Result<Tensor> {
    layers
        .iter()
        .try_fold(x.clone(), |x, (weight, bias)| leaky_relu(&convolution(&x, weight, Some(bias))?))
}

impl Method for Factors {
    fn needs(&self) -> Needs {
        Pair::needs(std::slice::from_ref(&self.pair))
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.pair.features(inputs)?;
        let translate = |x: Tensor, layer: &ConvNorm| leaky_relu(&layer.map(&x)?);
        let translated = self.translator.iter().try_fold(student, translate)?;
        let code = convolutions(&teacher, &self.encoder)?;
        let error = mse(&convolutions(&code, &self.decoder)?, &teacher)?;
        let (s, t) = match_size(&translated, &code.detach())?;
        let (transfer, error) = in_one_type(&factor_transfer(&s, &t)?, &error)?;
        Ok((transfer + (error * self.reconstruction)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, agree_whole, place};

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["factor_transfer"], 1, |s, t| factor_transfer(&s[0], &t[0]));
    }

    /// Translator and autoencoder with it; the factors' difference gives the autoencoder no gradient.
    #[test]
    fn the_whole_method_agrees_with_pytorch() {
        let setup = Setup {
            student: vec![place("map", &[3, 4, 4])],
            teacher: vec![place("map", &[4, 4, 4])],
            classes: 2,
            ..Setup::default()
        };
        agree_whole(
            "factor_transfer_whole",
            "name = 'factor-transfer'\nreconstruction = 0.3",
            &setup,
        );
    }
}
