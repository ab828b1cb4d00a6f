//! Correlation congruence: kernel values between the images of a batch.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::matching::rows;
use crate::method::{About, Definition, Kind, Method};
use crate::numeric::normalized;
use crate::pairs::{Pair, VECTOR_PAIR, compare};
use crate::setup::DefaultPlace;
use crate::{Error, Result, Setup, check};

/// `1/B² · ‖K(student) - K(teacher)‖²`, a scalar.
///
/// Features are `[B, ...]`, flattened to rows and divided by their Euclidean lengths; their sizes may differ. K `[B, B]` is the Gaussian kernel
/// exp(-γ ‖x - y‖²) of two images, by its Taylor series: Σ_{p=0}^{P} exp(-2γ) (2γ)^p / p! · (x·y)^p. The teacher gets no gradient.
///
/// Peng et al., "Correlation Congruence for Knowledge Distillation" (2019), equations 5, 8 and 9. The paper takes γ 0.4, P 2 and a weight of
/// 0.003, beside KD. With unit vectors the loss is at most 1 and mostly far smaller: weights near 100 make it count, as AberHu/Knowledge-Distillation-Zoo's, whose formula
/// (kd_losses/cc.py) is this one. HobbitLong/RepDistiller's 0.02 belongs to another formula.
///
/// # Errors
/// When an option makes no sense or the batches differ in size.
pub fn correlation_congruence(
    student: &Tensor,
    teacher: &Tensor,
    gamma: f64,
    order: usize,
) -> Result<Tensor> {
    check::positive("gamma", gamma)?;
    check_order(order)?;
    let (student, teacher) = rows(student, teacher)?;
    let kernel = |x: &Tensor| {
        let x = normalized(x)?;
        let products = x.matmul(&x.t()?.contiguous()?)?;
        // Horner's scheme: 1 + 2γ c (1 + 2γ c / 2 (1 + ...)).
        let mut sum = products.ones_like()?;
        for p in (1..=order).rev() {
            sum = ((&products * (2.0 * gamma / p as f64))? * sum)?.affine(1.0, 1.0)?;
        }
        sum * (-2.0 * gamma).exp()
    };
    Ok((kernel(&student)? - kernel(&teacher)?)?.sqr()?.mean_all()?)
}

/// With order 0 the kernel is constant; powers above 32 add nothing in f32.
fn check_order(order: usize) -> Result<()> {
    if (1..=32).contains(&order) {
        return Ok(());
    }
    Err(Error::Option { field: "order", found: order.to_string(), expected: "1 to 32" })
}

/// Options of the method "correlation-congruence": [`correlation_congruence`] between a place of each network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CongruenceConfig {
    /// The student's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// γ of the Gaussian kernel, above 0.
    pub gamma: f64,
    /// The highest power of its Taylor series.
    pub order: usize,
}

impl Default for CongruenceConfig {
    /// The paper's options.
    fn default() -> Self {
        Self { student: None, teacher: None, gamma: 0.4, order: 2 }
    }
}

pub(crate) struct Congruence;

impl Definition for Congruence {
    type Options = CongruenceConfig;

    const ABOUT: About = About {
        kind: Kind::Relation,
        across_images: true,
        summary: "correlations between the images of a batch, through a Gaussian kernel",
        paper: "Peng et al. 2019",
        weight: 100.0,
        labels: 1.0,
        source: "AberHu/Knowledge-Distillation-Zoo, example_train_script.sh: --kd_mode cc --lambda_kd 100.0 --gamma 0.4 --P_order 2, on CIFAR-10 by this formula (kd_losses/cc.py). The authors have published no code. Their paper's 0.003, beside KD, is of features that are not divided by their lengths, and HobbitLong/RepDistiller's 0.02 (scripts/run_cifar_distill.sh) of another formula (distiller_zoo/CC.py): with either this loss has next to no gradient",
        options: &[
            VECTOR_PAIR[0],
            VECTOR_PAIR[1],
            ("gamma", "the Gaussian kernel's, above 0"),
            ("order", "of the kernel's Taylor series, at least 1"),
        ],
    };

    fn validate(options: &CongruenceConfig) -> Result<()> {
        check::positive("gamma", options.gamma)?;
        check_order(options.order)
    }

    fn resolve(options: &mut CongruenceConfig, setup: &Setup) -> Result<()> {
        let pair = places(options, setup)?;
        (options.student, options.teacher) = (Some(pair.student), Some(pair.teacher));
        Ok(())
    }

    fn build(
        options: &CongruenceConfig,
        setup: &Setup,
        _: VarBuilder<'_>,
    ) -> Result<Box<dyn Method>> {
        let (gamma, order) = (options.gamma, options.order);
        Ok(compare(vec![places(options, setup)?], move |student, teacher| {
            correlation_congruence(student, teacher, gamma, order)
        }))
    }
}

/// The two places, by default vectors.
fn places(options: &CongruenceConfig, setup: &Setup) -> Result<Pair> {
    let (student, teacher) = (options.student.as_deref(), options.teacher.as_deref());
    Pair::find(setup, student, teacher, DefaultPlace::Vector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;

    #[test]
    fn agrees_with_the_papers_formula() {
        let names = ["correlation_congruence", "positive.correlation_congruence"];
        agree(&names, 1, |s, t| correlation_congruence(&s[0], &t[0], 0.4, 2));
        let names = ["correlation_congruence_other", "positive.correlation_congruence_other"];
        agree(&names, 1, |s, t| correlation_congruence(&s[0], &t[0], 1.5, 4));
    }
}
