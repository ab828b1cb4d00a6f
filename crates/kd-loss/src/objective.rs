//! The sum that training minimises.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::inputs::{Inputs, Needs, RunStep};
use crate::list::MethodConfig;
use crate::logits::{FusedLoss, FusedTerms, fused_with_labels, labels_cross_entropy};
use crate::method::Method;
use crate::numeric::{in_one_type, widened};
use crate::schedule::Schedule;
use crate::{Error, Result, check};

/// A method with its weight, as a recipe's `[[run.method]]` table gives them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// The factor of the method's loss; not negative.
    pub weight: f64,
    /// How the weight changes over the run.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// The method: `name` and its options, in the same table.
    #[serde(flatten)]
    pub method: MethodConfig,
}

impl Term {
    /// Checks weight, schedule and the options that don't depend on the networks.
    ///
    /// # Errors
    /// When one makes no sense; the error begins with the method's name.
    pub fn validate(&self) -> Result<()> {
        self.method.validate()?;
        check_weight(self.method.name(), self.weight, &self.schedule)
    }
}

/// Checks a method's weight and schedule.
fn check_weight(name: &'static str, weight: f64, schedule: &Schedule) -> Result<()> {
    check::weight("weight", weight)
        .and_then(|()| schedule.validate())
        .map_err(|error| error.in_method(name))
}

/// What errors call the weighted sum itself.
const LOSS: &str = "loss";

/// The weights of cross-entropy and method for `alpha`, the labels' share: `(alpha, 1 - alpha)`.
///
/// # Errors
/// When `alpha` is not in [0, 1].
pub fn alpha_weights(alpha: f64) -> Result<(f64, f64)> {
    check::share("alpha", alpha).map_err(|error| error.in_method(LOSS))?;
    Ok((alpha, 1.0 - alpha))
}

/// A method that was built, with its weight.
pub struct Weighted {
    /// The name of the method's part in [`Loss::parts`] and in messages, for a method of the list its name in recipes.
    pub name: &'static str,
    /// The factor of its loss; not negative.
    pub weight: f64,
    /// How the weight changes over the run.
    pub schedule: Schedule,
    /// The method.
    pub method: Box<dyn Method>,
}

impl Weighted {
    /// A method with the same weight in every step.
    pub fn new(name: &'static str, weight: f64, method: Box<dyn Method>) -> Self {
        Self { name, weight, schedule: Schedule::default(), method }
    }
}

/// `labels_weight · CE + Σ weight_i · method_i`.
pub struct Objective {
    labels_weight: f64,
    methods: Vec<Weighted>,
}

/// The loss of a batch.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The weighted sum, a scalar.
    pub total: Tensor,
    /// Each part before its weight, without a gradient: "labels", if they have a weight, then the methods in order.
    pub parts: Vec<(&'static str, Tensor)>,
}

impl Objective {
    /// The sum with these weights. Without methods it is the cross-entropy alone.
    ///
    /// # Errors
    /// When a weight is negative or not finite, all are zero, or a schedule makes no sense.
    pub fn new(labels_weight: f64, methods: Vec<Weighted>) -> Result<Self> {
        check::weight("labels", labels_weight).map_err(|error| error.in_method(LOSS))?;
        for Weighted { name, weight, schedule, .. } in &methods {
            check_weight(name, *weight, schedule)?;
        }
        if labels_weight == 0.0 && methods.iter().all(|term| term.weight == 0.0) {
            let nothing = Error::Option {
                field: "labels",
                found: "0, and no method has a weight".into(),
                expected: "a weight above 0 somewhere: there is nothing to learn from",
            };
            return Err(nothing.in_method(LOSS));
        }
        Ok(Self { labels_weight, methods })
    }

    /// What all methods together need; each place is named once.
    pub fn needs(&self) -> Needs {
        let mut all = Needs::default();
        for term in &self.methods {
            let needs = term.method.needs();
            all.student.extend(needs.student);
            all.teacher.extend(needs.teacher);
            all.teacher_logits |= needs.teacher_logits;
            all.host |= needs.host;
        }
        for places in [&mut all.student, &mut all.teacher] {
            places.sort();
            places.dedup();
        }
        all
    }

    /// The first method that needs [what only the host knows](crate::HostStep), by name: because of it no step can be captured
    /// as a CUDA graph.
    pub fn needs_host(&self) -> Option<&'static str> {
        self.methods.iter().find(|term| term.method.needs().host).map(|term| term.name)
    }

    /// What the methods' weights are multiplied with in a step, in the methods' order. Without a method that
    /// [needs the host](Self::needs_host), a captured step stays valid only while these factors are unchanged.
    ///
    /// # Errors
    /// When the step is past the end of the run.
    pub fn factors(&self, at: RunStep) -> Result<Vec<f64>> {
        self.methods.iter().map(|term| term.schedule.factor(at)).collect()
    }

    /// The loss of a batch; `at` gives the factors of the weights. The labels' cross-entropy and the first plain
    /// [`kd`](crate::kd) are one operation, unless the classes have [weights](Inputs::class_weights) or the images are
    /// [mixed](Inputs::mixed).
    ///
    /// # Errors
    /// As the methods' and [`cross_entropy_weighted`](crate::cross_entropy_weighted)'s, and when the step is past the end of the run.
    pub fn loss(&self, inputs: &Inputs<'_>, at: RunStep) -> Result<Loss> {
        let mut parts = Vec::with_capacity(1 + self.methods.len());
        let mut weighted = Vec::with_capacity(parts.capacity());
        let with_labels = self.kd_with_labels(inputs, at)?;
        if let Some((_, value)) = &with_labels {
            weighted.push(value.total.clone());
            parts.push(("labels", value.labels.clone()));
        } else if self.labels_weight > 0.0 {
            let part = labels_cross_entropy(inputs, 0.0)?;
            weighted.push(times(&part, self.labels_weight)?);
            parts.push(("labels", part));
        }
        for (index, Weighted { name, weight, schedule, method }) in self.methods.iter().enumerate()
        {
            if let Some((_, value)) = with_labels.as_ref().filter(|(done, _)| *done == index) {
                parts.push((name, value.kd.clone()));
                continue;
            }
            // A method sees nothing of the host that it did not ask for: a captured step would keep it as it was.
            let host = inputs.host.filter(|_| method.needs().host);
            let part = method.loss(&Inputs { host, ..*inputs });
            let part = part.map_err(|error| error.in_method(name))?;
            let factor = schedule.factor(at)?;
            weighted.push(times(&widened(&part)?, *weight * factor)?);
            parts.push((name, part));
        }
        let mut terms = weighted.into_iter();
        let Some(mut total) = terms.next() else {
            unreachable!("an objective has a label weight or a method")
        };
        for term in terms {
            let (sum, term) = in_one_type(&total, &term)?;
            total = (sum + term)?;
        }
        // The parts are only read: they must not keep the batch's graph of operations alive.
        let parts = parts.into_iter().map(|(name, part)| (name, part.detach())).collect();
        Ok(Loss { total, parts })
    }

    /// The labels' cross-entropy and the first plain KD by one operation, with the index of that method.
    fn kd_with_labels(
        &self,
        inputs: &Inputs<'_>,
        at: RunStep,
    ) -> Result<Option<(usize, FusedLoss)>> {
        let mut methods = self.methods.iter().enumerate();
        let found = methods.find_map(|(index, term)| Some((index, term, term.method.plain_kd()?)));
        let takes_labels =
            self.labels_weight > 0.0 && inputs.class_weights.is_none() && inputs.mixed.is_none();
        let (Some((index, term, temperature)), Some(teacher), true) =
            (found, inputs.teacher_logits, takes_labels)
        else {
            return Ok(None);
        };
        let terms = FusedTerms {
            labels_weight: self.labels_weight,
            smoothing: 0.0,
            kd_weight: term.weight * term.schedule.factor(at)?,
            temperature,
        };
        let value = fused_with_labels(inputs.student_logits, teacher, inputs.labels, terms)
            .map_err(|error| error.in_method(term.name))?;
        Ok(value.map(|value| (index, value)))
    }
}

/// A part times its weight. A weight of 1 is no operation: on a GPU it would be four pieces of work, there and back.
fn times(part: &Tensor, weight: f64) -> Result<Tensor> {
    if weight == 1.0 { Ok(part.clone()) } else { Ok((part * weight)?) }
}
