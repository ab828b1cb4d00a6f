//! Contrastive representation distillation: an image's two embeddings are closer than those of different images.

mod cpu;

use candle_core::{D, DType, Tensor};
use candle_nn::VarBuilder;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::method::{About, HelperInit, HelperParameter, Kind, Linear, Options, linear_parameters};
use crate::places::{Fallback, Pair, PairShapes, VECTOR_PLACES, normalized, rows};
use crate::{Error, HostStep, Inputs, Method, Needs, Result, Setup, check};

/// `mean over images of -log h(positive) - Σ over negatives of log(1 - h(negative))`, a scalar: noise-contrastive estimation.
///
/// `similarities` is `[B, 1 + N]`: exp(x·y / T) of an image's embedding with the other network's embedding of the same image first, and then of N
/// others. `normalizer` Z makes them probabilities: with P = similarity / Z and M images in the training set, h = P / (P + N / M).
///
/// Tian, Krishnan, Isola, "Contrastive Representation Distillation" (2020), equations 10, 11 and 19; Z as in Wu et al.,
/// "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018), section 3.2, whose memory the paper uses.
///
/// # Errors
/// When the shape doesn't fit, or a number is not above 0.
pub fn crd_nce(similarities: &Tensor, normalizer: f64, images: usize) -> Result<Tensor> {
    let (_, columns) = check::logits_shape("similarities", similarities)?;
    check::two_classes(similarities, columns)?;
    check::positive("crd", "normalizer", normalizer)?;
    check::positive("crd", "images", images as f64)?;
    let noise = (columns - 1) as f64 / images as f64;
    let p = (similarities / normalizer)?;
    let log_sum = (&p + noise)?.log()?;
    // log h = log P - log(P + N/M) of the positive, log(1 - h) = log(N/M) - log(P + N/M) of the negatives
    let positive = p.narrow(1, 0, 1)?.log()?;
    let total = (positive.squeeze(1)? - log_sum.sum(D::Minus1)?)?;
    Ok(total.mean_all()?.affine(-1.0, -((columns - 1) as f64) * noise.ln())?)
}

/// Options of the method "crd": [`crd_nce`] both ways between embeddings of a place of each network.
///
/// Two learned linear layers, `student` and `teacher`, embed the features, divided by their lengths afterwards. A memory of each training
/// image's two embeddings, updated when the image is seen, gives the positives and negatives: `negatives` images of other
/// classes for each image, drawn anew in each step. The memory belongs to the checkpoint, not to the student.
///
/// Customary weight 0.8; the paper takes 16384 negatives, T 0.07 and embeddings of 128.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrdConfig {
    /// The student's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// Images that each image is told apart from.
    pub negatives: usize,
    /// What products of embeddings are divided by.
    pub temperature: f64,
    /// Values of an embedding.
    pub dim: usize,
    /// Share of the old embedding that an update of the memory keeps.
    pub momentum: f64,
}

impl Default for CrdConfig {
    /// The paper's, with 1024 negatives instead of 16384.
    fn default() -> Self {
        Self {
            student: None,
            teacher: None,
            negatives: 1024,
            temperature: 0.07,
            dim: 128,
            momentum: 0.5,
        }
    }
}

impl CrdConfig {
    fn places(&self, shapes: &Setup) -> Result<PairShapes> {
        let (student, teacher) = (self.student.as_deref(), self.teacher.as_deref());
        PairShapes::find("crd", shapes, student, teacher, Fallback::Vector)
    }
}

fn values(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// There must be images of another class for each image.
fn check_labels(labels: &[u32]) -> Result<()> {
    if labels.iter().any(|&label| Some(&label) != labels.first()) {
        return Ok(());
    }
    Err(Error::Config {
        method: "crd",
        field: "train_labels",
        found: format!("{} labels, all the same", labels.len()),
        expected: "the labels of the training images, of two classes or more",
    })
}

impl Options for CrdConfig {
    const ABOUT: About = About {
        kind: Kind::Relation,
        summary: "contrast of an image's two embeddings with those of other images",
        paper: "Tian, Krishnan, Isola 2020",
        weight: 0.8,
        labels: 1.0,
        options: &[
            VECTOR_PLACES[0],
            VECTOR_PLACES[1],
            ("negatives", "images that each image is told apart from"),
            ("temperature", "what products of embeddings are divided by, above 0"),
            ("dim", "values of an embedding"),
            ("momentum", "share of the old embedding that an update of the memory keeps, 0 to 1"),
        ],
    };

    fn validate(&self) -> Result<()> {
        check::temperature("crd", self.temperature)?;
        check::share("crd", "momentum", self.momentum)?;
        for (field, value) in [("negatives", self.negatives), ("dim", self.dim)] {
            if !(1..=1 << 20).contains(&value) {
                let found = value.to_string();
                return Err(Error::Config {
                    method: "crd",
                    field,
                    found,
                    expected: "1 to 1048576",
                });
            }
        }
        Ok(())
    }

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let Pair { student, teacher } = self.places(shapes)?.pair;
        (self.student, self.teacher) = (Some(student), Some(teacher));
        Ok(())
    }

    fn helper_parameters(&self, shapes: &Setup) -> Result<Vec<HelperParameter>> {
        let places = self.places(shapes)?;
        let images = shapes.train_labels.len();
        let mut parameters = Vec::new();
        for (name, shape) in [("student", &places.student), ("teacher", &places.teacher)] {
            parameters.extend(linear_parameters(name, values(shape), self.dim));
            // Vectors of about length 1 that point anywhere.
            let init = HelperInit::Uniform((3.0 / self.dim as f64).sqrt());
            let shape = vec![images, self.dim];
            parameters.push(HelperParameter { name: format!("memory.{name}"), shape, init });
        }
        // The two ways' Z, each found in the first step; 0 stands for not yet.
        let (name, init) = ("normalizers".into(), HelperInit::Constant(0.0));
        parameters.push(HelperParameter { name, shape: vec![2], init });
        Ok(parameters)
    }

    fn build(&self, shapes: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        check_labels(&shapes.train_labels)?;
        let places = self.places(shapes)?;
        let memory = (shapes.train_labels.len(), self.dim);
        Ok(Box::new(Crd {
            student: Linear::new(values(&places.student), self.dim, &vb.pp("student"))?,
            teacher: Linear::new(values(&places.teacher), self.dim, &vb.pp("teacher"))?,
            student_memory: vb.get(memory, "memory.student")?,
            teacher_memory: vb.get(memory, "memory.teacher")?,
            normalizers: vb.get(2, "normalizers")?,
            train_labels: shapes.train_labels.clone(),
            places: places.pair,
            config: self.clone(),
        }))
    }
}

struct Crd {
    places: Pair,
    config: CrdConfig,
    student: Linear,
    teacher: Linear,
    /// `[images, dim]`; changed in place.
    student_memory: Tensor,
    teacher_memory: Tensor,
    /// `[2]`; changed in place.
    normalizers: Tensor,
    train_labels: Vec<u32>,
}

impl Crd {
    /// Each image's own index and those of images of other classes, `[B (1 + N)]`.
    fn draw(&self, host: &HostStep<'_>) -> Result<Vec<u32>> {
        let images = self.train_labels.len();
        let mut rng = ChaCha8Rng::seed_from_u64(host.seed);
        // Far from the streams of other draws, which are numbered from 0 or hashed from names.
        rng.set_stream(STREAM ^ host.at.step);
        let mut drawn = Vec::with_capacity(host.indices.len() * (1 + self.config.negatives));
        for &index in host.indices {
            let Some(&label) = self.train_labels.get(index as usize) else {
                return Err(Error::Config {
                    method: "crd",
                    field: "indices",
                    found: index.to_string(),
                    expected: "positions in the training set",
                });
            };
            drawn.push(index);
            let mut left = self.config.negatives;
            while left > 0 {
                let other = (u64::from(rng.next_u32()) * images as u64) >> 32;
                if self.train_labels[other as usize] != label {
                    drawn.push(other as u32);
                    left -= 1;
                }
            }
        }
        Ok(drawn)
    }

    /// One way: `embedded` `[B, dim]` against the other network's memory.
    fn contrast(
        &self,
        way: usize,
        embedded: &Tensor,
        memory: &Tensor,
        drawn: &[u32],
    ) -> Result<Tensor> {
        let images = self.train_labels.len();
        let temperature = self.config.temperature;
        if cpu::takes(embedded, memory) {
            let contrast = cpu::Contrast { memory, drawn, temperature };
            let normalizer =
                self.normalizer(way, || Ok(contrast.mean_similarity(&embedded.detach())?))?;
            return Ok(contrast.loss(embedded, normalizer, images)?);
        }
        let similarities = self.similarities(embedded, memory, drawn)?;
        let normalizer = self.normalizer(way, || {
            let mean = similarities.detach().mean_all()?;
            Ok(mean.to_dtype(DType::F64)?.to_scalar::<f64>()?)
        })?;
        crd_nce(&similarities, normalizer, images)
    }

    /// `[B, 1 + N]`, by candle's operations.
    fn similarities(&self, embedded: &Tensor, memory: &Tensor, drawn: &[u32]) -> Result<Tensor> {
        let (batch, dim) = embedded.dims2()?;
        let others = memory.detach().index_select(&Tensor::new(drawn, memory.device())?, 0)?;
        let others = others.reshape((batch, 1 + self.config.negatives, dim))?;
        let products = others.matmul(&embedded.unsqueeze(2)?)?.squeeze(2)?;
        Ok((products / self.config.temperature)?.exp()?)
    }

    /// Z of one way; in the first step `mean` of its similarities times all images, which then stays.
    fn normalizer(&self, way: usize, mean: impl FnOnce() -> Result<f64>) -> Result<f64> {
        let found = self.normalizers.detach().to_dtype(DType::F64)?.to_vec1::<f64>()?;
        if found[way] > 0.0 {
            return Ok(found[way]);
        }
        let first = mean()? * self.train_labels.len() as f64;
        // As it is kept: a low temperature makes similarities that no f32 holds.
        check::positive("crd", "normalizer", f64::from(first as f32))?;
        let kept = Tensor::full(first, 1, self.normalizers.device())?;
        self.normalizers.slice_set(&kept.to_dtype(self.normalizers.dtype())?, 0, way)?;
        Ok(first)
    }

    /// The memory of the batch's images moves towards what they are now.
    fn remember(&self, memory: &Tensor, embedded: &Tensor, indices: &Tensor) -> Result<()> {
        let keep = self.config.momentum;
        let old = memory.detach().index_select(indices, 0)?;
        let new = normalized(&((old * keep)? + (embedded.detach() * (1.0 - keep))?)?)?;
        for (row, index) in indices.to_vec1::<u32>()?.into_iter().enumerate() {
            memory.slice_set(&new.narrow(0, row, 1)?.contiguous()?, 0, index as usize)?;
        }
        Ok(())
    }
}

const STREAM: u64 = 0x6372_6400_0000_0000;

impl Method for Crd {
    fn needs(&self) -> Needs {
        // Negatives are drawn on the host, from seed and step; the memory is updated by the images' positions.
        Needs { host: true, ..Pair::needs(std::slice::from_ref(&self.places)) }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.places.features("crd", inputs)?;
        let (student, teacher) = rows("crd", &student, &teacher)?;
        let student = normalized(&self.student.rows(&student)?)?;
        let teacher = normalized(&self.teacher.rows(&teacher)?)?;
        let device = student.device();
        let host = inputs.host.ok_or(Error::MissingHostStep { method: "crd" })?;
        let drawn = self.draw(&host)?;
        let loss = (self.contrast(0, &student, &self.teacher_memory, &drawn)?
            + self.contrast(1, &teacher, &self.student_memory, &drawn)?)?;
        let indices = Tensor::new(host.indices, device)?;
        self.remember(&self.student_memory, &student, &indices)?;
        self.remember(&self.teacher_memory, &teacher, &indices)?;
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;
    use candle_core::{Device, Var};

    /// A batch's embeddings, and a method that tells them apart from 50 images of which 8 are drawn for each.
    fn made(temperature: f64) -> Result<(Crd, Var, Vec<u32>)> {
        let (images, dim, batch, negatives) = (50, 19, 6, 7);
        let embeddings = |rows, seed| normalized(&numbers(rows, dim, seed)?.to_dtype(DType::F32)?);
        let layer = || Linear::new(dim, dim, &VarBuilder::zeros(DType::F32, &Device::Cpu));
        let crd = Crd {
            places: Pair { student: "s".into(), teacher: "t".into() },
            config: CrdConfig { negatives, dim, temperature, ..CrdConfig::default() },
            student: layer()?,
            teacher: layer()?,
            student_memory: embeddings(images, 3)?,
            teacher_memory: embeddings(images, 4)?,
            normalizers: Tensor::zeros(2, DType::F32, &Device::Cpu)?,
            train_labels: vec![0; images],
        };
        let drawn = (0..(batch * (1 + negatives)) as u32).map(|i| i * 17 % 50).collect();
        Ok((crd, Var::from_tensor(&embeddings(batch, 5)?)?, drawn))
    }

    #[test]
    fn a_temperature_too_low_for_f32_is_an_error_and_keeps_no_normalizer() -> Result<()> {
        let (crd, embedded, drawn) = made(1e-3)?;
        let Err(error) = crd.contrast(0, &embedded, &crd.student_memory, &drawn) else {
            panic!("no error")
        };
        assert!(error.to_string().contains("normalizer"), "{error}");
        assert_eq!(crd.normalizers.to_vec1::<f32>()?, [0.0, 0.0]);
        Ok(())
    }

    /// The operation on the CPU against the same by candle's operations: loss, gradient and Z, in the first step and in a later one.
    #[test]
    fn the_contrast_is_the_loss_of_the_similarities() -> Result<()> {
        let (crd, embedded, drawn) = made(0.07)?;
        let images = crd.train_labels.len();
        let similarities = crd.similarities(&embedded, &crd.teacher_memory, &drawn)?;
        let z = f64::from(similarities.mean_all()?.to_scalar::<f32>()?) * images as f64;
        for _ in 0..2 {
            let found = crd.contrast(1, &embedded, &crd.teacher_memory, &drawn)?;
            let expected = crd_nce(&similarities, z, images)?;
            let close = |a: &Tensor, b: &Tensor| {
                let most = b.abs()?.max_all()?.to_scalar::<f32>()?;
                Ok::<_, candle_core::Error>((a - b)?.abs()?.max_all()?.to_scalar::<f32>()? / most)
            };
            assert!(close(&found, &expected)? < 1e-5, "{found}, expected {expected}");
            // Three times, so that the gradient from above counts.
            let (found, expected) = ((found * 3.0)?.backward()?, (expected * 3.0)?.backward()?);
            let (Some(found), Some(expected)) = (found.get(&embedded), expected.get(&embedded))
            else {
                panic!("no gradient")
            };
            assert!(close(found, expected)? < 1e-5, "{found}, expected {expected}");
            let kept = crd.normalizers.to_vec1::<f32>()?;
            assert!(kept[0] == 0.0 && (f64::from(kept[1]) / z - 1.0).abs() < 1e-6, "{kept:?}, {z}");
        }
        Ok(())
    }
}
