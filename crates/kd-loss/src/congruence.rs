//! Correlation congruence: how the images of a batch hang together.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::method::{About, Kind, Options};
use crate::places::{Fallback, Pair, PairShapes, VECTOR_PLACES, normalized, rows};
use crate::{Error, Inputs, Method, Needs, Result, Setup, check};

/// `1/B² · ‖K(student) - K(teacher)‖²`, a scalar.
///
/// Features are `[B, ...]`, flattened to rows and divided by their Euclidean lengths; their sizes may differ. K `[B, B]` is the Gaussian kernel
/// exp(-γ ‖x - y‖²) of two images, by its Taylor series: Σ_{p=0}^{P} exp(-2γ) (2γ)^p / p! · (x·y)^p. The teacher gets no gradient.
///
/// Peng et al., "Correlation Congruence for Knowledge Distillation" (2019), equations 5, 8 and 9; γ 0.4, P 2. The paper's weight is 0.003,
/// beside KD; 0.02 is customary in comparisons.
///
/// # Errors
/// When an option makes no sense or the batches differ in size.
pub fn correlation_congruence(
    student: &Tensor,
    teacher: &Tensor,
    gamma: f64,
    order: usize,
) -> Result<Tensor> {
    check::positive("correlation-congruence", "gamma", gamma)?;
    check_order(order)?;
    let (student, teacher) = rows("correlation-congruence", student, teacher)?;
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

/// From 0 on the kernel is constant; high powers add nothing.
fn check_order(order: usize) -> Result<()> {
    if (1..=32).contains(&order) {
        return Ok(());
    }
    let (method, found) = ("correlation-congruence", order.to_string());
    Err(Error::Config { method, field: "order", found, expected: "1 to 32" })
}

/// Options of [`correlation_congruence`] as a [`Method`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CongruenceConfig {
    /// The student's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last vector, or else feature map, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// The Gaussian kernel's γ.
    pub gamma: f64,
    /// The highest power of its Taylor series.
    pub order: usize,
}

impl Default for CongruenceConfig {
    /// The paper's.
    fn default() -> Self {
        Self { student: None, teacher: None, gamma: 0.4, order: 2 }
    }
}

impl CongruenceConfig {
    fn places(&self, shapes: &Setup) -> Result<PairShapes> {
        let (student, teacher) = (self.student.as_deref(), self.teacher.as_deref());
        PairShapes::find("correlation-congruence", shapes, student, teacher, Fallback::Vector)
    }
}

impl Options for CongruenceConfig {
    const ABOUT: About = About {
        kind: Kind::Relation,
        summary: "correlations between the images of a batch, through a Gaussian kernel",
        paper: "Peng et al. 2019",
        weight: 0.02,
        labels: 1.0,
        options: &[
            VECTOR_PLACES[0],
            VECTOR_PLACES[1],
            ("gamma", "the Gaussian kernel's, above 0"),
            ("order", "of the kernel's Taylor series, at least 1"),
        ],
    };

    fn validate(&self) -> Result<()> {
        check::positive("correlation-congruence", "gamma", self.gamma)?;
        check_order(self.order)
    }

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let Pair { student, teacher } = self.places(shapes)?.pair;
        (self.student, self.teacher) = (Some(student), Some(teacher));
        Ok(())
    }

    fn build(&self, shapes: &Setup, _: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        Ok(Box::new(Congruence { places: self.places(shapes)?.pair, config: self.clone() }))
    }
}

struct Congruence {
    places: Pair,
    config: CongruenceConfig,
}

impl Method for Congruence {
    fn needs(&self) -> Needs {
        Pair::needs(std::slice::from_ref(&self.places))
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.places.features("correlation-congruence", inputs)?;
        correlation_congruence(&student, &teacher, self.config.gamma, self.config.order)
    }
}
