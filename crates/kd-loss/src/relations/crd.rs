//! Contrastive representation distillation: an image's two embeddings are closer than those of different images.

mod cpu;

use candle_core::{D, DType, Tensor};
use candle_nn::VarBuilder;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::inputs::{HostStep, Inputs, Needs};
use crate::matching::rows;
use crate::method::{About, Definition, HelperInit, HelperParameter, Kind, Method};
use crate::numeric::{normalized, widened, widened_both};
use crate::pairs::{Pair, VECTOR_PAIR};
use crate::projection::Projection;
use crate::setup::DefaultPlace;
use crate::{Error, Result, Setup, check};

/// `mean over images of -log h(positive) - Σ over negatives of log(1 - h(negative))`, a scalar: noise-contrastive estimation.
///
/// `similarities` is `[B, 1 + N]`: exp(x·y / T) of an image's embedding with the other network's embedding of the same image first, and then of N
/// others. `normalizer` Z makes them probabilities: with P = similarity / Z and M images in the training set, h = P / (P + N / M).
///
/// Tian, Krishnan, Isola, "Contrastive Representation Distillation" (2020), equations 10, 11 and 19; Z as in Wu et al.,
/// "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018), section 3.2, whose memory the paper uses.
/// f16 and bf16 are summed in f32.
///
/// # Errors
/// When the shape doesn't fit, or a number is not above 0.
pub fn crd_nce(similarities: &Tensor, normalizer: f64, images: usize) -> Result<Tensor> {
    let (_, columns) = check::logits_shape("similarities", similarities)?;
    check::two_classes(similarities, columns)?;
    check::positive("normalizer", normalizer)?;
    check::positive("images", images as f64)?;
    let noise = (columns - 1) as f64 / images as f64;
    let p = (widened(similarities)? / normalizer)?;
    let log_sum = (&p + noise)?.log()?;
    // log h = log P - log(P + N/M) of the positive, log(1 - h) = log(N/M) - log(P + N/M) of the negatives
    let positive = p.narrow(1, 0, 1)?.log()?;
    let total = (positive.squeeze(1)? - log_sum.sum(D::Minus1)?)?;
    Ok(total.mean_all()?.affine(-1.0, -((columns - 1) as f64) * noise.ln())?)
}

/// Options of the method "crd": [`crd_nce`] in both directions, between embeddings of one place of each network.
///
/// Two learned linear layers, `student` and `teacher`, embed the features, divided by their lengths afterwards. A memory of each training
/// image's two embeddings, updated when the image is seen, gives the positives and negatives: `negatives` images of other
/// classes for each image, drawn anew in each step. The memory belongs to the checkpoint, not to the student.
///
/// The paper takes a weight of 0.8, 16384 negatives, T 0.07 and embeddings of 128.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrdConfig {
    /// The student's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// How many other images each image is contrasted with.
    pub negatives: usize,
    /// What products of embeddings are divided by, above 0.
    pub temperature: f64,
    /// The number of values of an embedding.
    pub dim: usize,
    /// The share of the old embedding that an update of the memory keeps, in [0, 1].
    pub momentum: f64,
}

impl Default for CrdConfig {
    /// The paper's options, with 1024 negatives instead of 16384.
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

/// The two places, by default vectors.
fn places(options: &CrdConfig, setup: &Setup) -> Result<Pair> {
    let (student, teacher) = (options.student.as_deref(), options.teacher.as_deref());
    Pair::find(setup, student, teacher, DefaultPlace::Vector)
}

/// How many values an image has at a place.
fn values(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// That for each image there are images of another class, from which its negatives are drawn.
fn check_labels(labels: &[u32]) -> Result<()> {
    if labels.iter().any(|&label| Some(&label) != labels.first()) {
        return Ok(());
    }
    Err(Error::Option {
        field: "train_labels",
        found: format!("{} labels, all the same", labels.len()),
        expected: "the labels of the training images, of two classes or more",
    })
}

pub(crate) struct Crd;

impl Definition for Crd {
    type Options = CrdConfig;

    const ABOUT: About = About {
        kind: Kind::Relation,
        across_images: true,
        summary: "contrast of an image's two embeddings with those of other images",
        paper: "Tian, Krishnan, Isola 2020",
        weight: 0.8,
        labels: 1.0,
        source: "the authors' HobbitLong/RepDistiller, scripts/run_cifar_distill.sh: --distill crd -a 0 -b 0.8; train_student.py: --nce_k, default=16384, --nce_t, default=0.07, --nce_m, default=0.5, --feat_dim, default=128. Of negatives there are 1024 here, as 16384 take a CPU sixteen times as long, and one image may be drawn twice",
        options: &[
            VECTOR_PAIR[0],
            VECTOR_PAIR[1],
            ("negatives", "images that each image is told apart from"),
            ("temperature", "what products of embeddings are divided by, above 0"),
            ("dim", "values of an embedding"),
            ("momentum", "share of the old embedding that an update of the memory keeps, 0 to 1"),
        ],
    };
    const NEEDS_LABELS: bool = true;

    fn validate(options: &CrdConfig) -> Result<()> {
        check::temperature(options.temperature)?;
        check::share("momentum", options.momentum)?;
        for (field, value) in [("negatives", options.negatives), ("dim", options.dim)] {
            if !(1..=1 << 20).contains(&value) {
                let found = value.to_string();
                return Err(Error::Option { field, found, expected: "1 to 1048576" });
            }
        }
        Ok(())
    }

    fn resolve(options: &mut CrdConfig, setup: &Setup) -> Result<()> {
        let pair = places(options, setup)?;
        (options.student, options.teacher) = (Some(pair.student), Some(pair.teacher));
        Ok(())
    }

    fn helper_parameters(options: &CrdConfig, setup: &Setup) -> Result<Vec<HelperParameter>> {
        let pair = places(options, setup)?;
        let (images, dim) = (setup.train_labels.len(), options.dim);
        let mut parameters = Vec::new();
        for (name, shape) in [("student", &pair.student_shape), ("teacher", &pair.teacher_shape)] {
            parameters.extend(Projection::parameters(name, values(shape), dim));
            // Vectors of about length 1 that point anywhere.
            let init = HelperInit::Uniform((3.0 / dim as f64).sqrt());
            let shape = vec![images, dim];
            parameters.push(HelperParameter { name: format!("memory.{name}"), shape, init });
        }
        // The two directions' Z, each found in the first step; 0 stands for not found yet.
        let (name, init) = ("normalizers".into(), HelperInit::Constant(0.0));
        parameters.push(HelperParameter { name, shape: vec![2], init });
        Ok(parameters)
    }

    fn build(options: &CrdConfig, setup: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        check_labels(&setup.train_labels)?;
        let pair = places(options, setup)?;
        let (student, teacher) = (values(&pair.student_shape), values(&pair.teacher_shape));
        let memory = (setup.train_labels.len(), options.dim);
        Ok(Box::new(Contrast {
            student: Projection::new(student, options.dim, &vb.pp("student"))?,
            teacher: Projection::new(teacher, options.dim, &vb.pp("teacher"))?,
            student_memory: vb.get(memory, "memory.student")?,
            teacher_memory: vb.get(memory, "memory.teacher")?,
            normalizers: vb.get(2, "normalizers")?,
            train_labels: setup.train_labels.clone(),
            pair,
            options: options.clone(),
        }))
    }
}

struct Contrast {
    pair: Pair,
    options: CrdConfig,
    student: Projection,
    teacher: Projection,
    /// The student's embeddings of all training images, `[images, dim]`; changed in place.
    student_memory: Tensor,
    /// The teacher's embeddings of all training images, `[images, dim]`; changed in place.
    teacher_memory: Tensor,
    /// Z of the two directions, `[2]`; changed in place.
    normalizers: Tensor,
    train_labels: Vec<u32>,
}

impl Contrast {
    /// Each image's own index and those of images of other classes, `[B (1 + N)]`.
    fn draw(&self, host: &HostStep<'_>) -> Result<Vec<u32>> {
        let images = self.train_labels.len();
        let mut rng = ChaCha8Rng::seed_from_u64(host.seed);
        // Far from the streams of other draws, which are numbered from 0 or hashed from names.
        rng.set_stream(STREAM ^ host.at.step);
        let mut drawn = Vec::with_capacity(host.indices.len() * (1 + self.options.negatives));
        for &index in host.indices {
            let Some(&label) = self.train_labels.get(index as usize) else {
                return Err(Error::Option {
                    field: "indices",
                    found: index.to_string(),
                    expected: "positions in the training set",
                });
            };
            drawn.push(index);
            let mut left = self.options.negatives;
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

    /// The loss of one direction: `embedded` `[B, dim]` against the other network's memory. `way` is 0 or 1.
    fn contrast(
        &self,
        way: usize,
        embedded: &Tensor,
        memory: &Tensor,
        drawn: &[u32],
    ) -> Result<Tensor> {
        let images = self.train_labels.len();
        let temperature = self.options.temperature;
        if cpu::takes(embedded, memory) {
            let contrast = cpu::OneWay { memory, drawn, temperature };
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
        let (embedded, others) = widened_both(embedded, &others)?;
        let others = others.reshape((batch, 1 + self.options.negatives, dim))?;
        let products = others.matmul(&embedded.unsqueeze(2)?)?.squeeze(2)?;
        Ok((products / self.options.temperature)?.exp()?)
    }

    /// Z of one direction. The first step sets it to the mean similarity times the number of training images; it stays from then on.
    fn normalizer(&self, way: usize, mean: impl FnOnce() -> Result<f64>) -> Result<f64> {
        let found = self.normalizers.detach().to_dtype(DType::F64)?.to_vec1::<f64>()?;
        if found[way] > 0.0 {
            return Ok(found[way]);
        }
        let first = mean()? * self.train_labels.len() as f64;
        // Checked as an f32, as which it is kept: a low temperature makes similarities that no f32 holds.
        check::positive("normalizer", f64::from(first as f32))?;
        let kept = Tensor::full(first, 1, self.normalizers.device())?;
        self.normalizers.slice_set(&kept.to_dtype(self.normalizers.dtype())?, 0, way)?;
        Ok(first)
    }

    /// Moves the memory of the batch's images towards their present embeddings.
    fn remember(&self, memory: &Tensor, embedded: &Tensor, indices: &Tensor) -> Result<()> {
        let keep = self.options.momentum;
        let old = memory.detach().index_select(indices, 0)?;
        let (embedded, old) = widened_both(&embedded.detach(), &old)?;
        let new = normalized(&((old * keep)? + (embedded * (1.0 - keep))?)?)?;
        let new = new.to_dtype(memory.dtype())?;
        for (row, index) in indices.to_vec1::<u32>()?.into_iter().enumerate() {
            memory.slice_set(&new.narrow(0, row, 1)?.contiguous()?, 0, index as usize)?;
        }
        Ok(())
    }
}

/// The stream of the random generator from which negatives are drawn.
const STREAM: u64 = 0x6372_6400_0000_0000;

impl Method for Contrast {
    fn needs(&self) -> Needs {
        // Negatives are drawn on the host, from seed and step; the memory is updated by the images' positions.
        Needs { host: true, ..Pair::needs(std::slice::from_ref(&self.pair)) }
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        if inputs.mixed.is_some() {
            return Err(Error::Mixed { what: "crd draws negatives by" });
        }
        let (student, teacher) = self.pair.features(inputs)?;
        let (student, teacher) = rows(&student, &teacher)?;
        let student = normalized(&self.student.rows(&student)?)?;
        let teacher = normalized(&self.teacher.rows(&teacher)?)?;
        let device = student.device();
        let host = inputs.require_host()?;
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
    use crate::testing::{agree, numbers};
    use candle_core::{Device, Var};

    /// A batch's embeddings, and a method that tells them apart from 50 images of which 8 are drawn for each.
    fn made(temperature: f64) -> Result<(Contrast, Var, Vec<u32>)> {
        let (images, dim, batch, negatives) = (50, 19, 6, 7);
        let embeddings = |rows, seed| normalized(&numbers(rows, dim, seed)?.to_dtype(DType::F32)?);
        let layer = || Projection::new(dim, dim, &VarBuilder::zeros(DType::F32, &Device::Cpu));
        let crd = Contrast {
            pair: Pair {
                student: "s".into(),
                teacher: "t".into(),
                student_shape: vec![dim],
                teacher_shape: vec![dim],
            },
            options: CrdConfig { negatives, dim, temperature, ..CrdConfig::default() },
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

    #[test]
    fn agrees_with_the_papers_formula() {
        agree(&["crd_nce"], 1, |x, _| crd_nce(&x[0], 40.0, 50));
    }
}
