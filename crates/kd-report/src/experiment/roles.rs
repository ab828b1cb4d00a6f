//! Which run is whose teacher, and which run a distilled one is measured against.
//!
//! The runs record it: [`kd_record::roles`]. Folders of version 0.1, and folders in which nobody has been taught yet, are read by
//! that module's guesses.

use std::borrow::Cow;

use kd_record::guess::{guessed_teacher, named_as_teacher};
use kd_record::roles::{Roles, WeightsSource};

use super::{Arm, Experiment, Run};

impl Arm {
    /// What the arm's runs learn from.
    pub(crate) fn roles(&self) -> Cow<'_, Roles> {
        self.first().start.roles()
    }

    /// Whether the runs learn by any method, and not from the labels alone.
    pub(crate) fn has_methods(&self) -> bool {
        !self.roles().methods.is_empty()
    }
}

impl Experiment {
    /// The run that stands for the distilled student: plain soft targets where there are any, and of several the one called "kd".
    pub(crate) fn distilled(&self) -> Option<&Arm> {
        let plain = |arm: &&Arm| {
            let roles = arm.roles();
            matches!(&roles.methods[..], [method] if method.name == "kd")
        };
        let called_kd = self.arms.iter().filter(plain).find(|arm| arm.name == "kd");
        let taught = |arm: &&Arm| arm.roles().is_taught();
        called_kd.or(self.arms.iter().find(plain)).or(self.arms.iter().find(taught))
    }

    /// The finished run called "best", which is taught in another way than the headline's distilled student: `cargo xtask reproduce`
    /// trains one beside the tutorial's five.
    pub(crate) fn best(&self) -> Option<&Arm> {
        let best = self.arms.iter().find(|arm| arm.name == "best" && arm.roles().is_taught())?;
        let other = self.distilled().is_none_or(|distilled| !std::ptr::eq(distilled, best));
        (other && !best.unfinished()).then_some(best)
    }

    /// The student trained on the labels alone.
    pub(crate) fn student(&self) -> Option<&Arm> {
        match self.distilled() {
            Some(distilled) => self.alone(distilled),
            None => {
                let teacher = self.teacher().map(|arm| &arm.name);
                self.arms.iter().find(|arm| !arm.has_methods() && Some(&arm.name) != teacher)
            }
        }
    }

    /// The network that the headline's student learnt from, if it was trained here.
    pub(crate) fn teacher(&self) -> Option<&Arm> {
        match self.distilled() {
            Some(distilled) if distilled.first().start.roles.is_some() => {
                self.arm_of(distilled.roles().teacher.as_ref()?)
            }
            _ => {
                let starts = self.arms.iter().map(|arm| &arm.first().start);
                guessed_teacher(starts).map(|place| &self.arms[place])
            }
        }
    }

    /// The network that an arm's runs learn from, if it was trained here; of several the first.
    pub(crate) fn teacher_of(&self, arm: &Arm) -> Option<&Arm> {
        self.arm_of(arm.roles().teacher.as_ref()?)
    }

    /// The arm that left these weights.
    fn arm_of(&self, weights: &WeightsSource) -> Option<&Arm> {
        let left_them = |run: &Run| {
            run.outputs.as_ref().is_some_and(|outputs| outputs.weights_sha256 == weights.sha256)
        };
        let by_name = self.arms.iter().find(|arm| Some(&arm.name) == weights.run.as_ref());
        by_name.or_else(|| self.arms.iter().find(|arm| arm.runs.iter().any(left_them)))
    }

    /// The same network trained on the labels alone, which one with a method is measured against: before all one that starts
    /// from the same weights, and not the teacher where a network is its own teacher.
    pub(crate) fn alone(&self, arm: &Arm) -> Option<&Arm> {
        let roles = arm.roles();
        if roles.methods.is_empty() {
            return None;
        }
        let file = |roles: &Roles| roles.init.as_ref().map(|init| init.file.clone());
        let teaches = |other: &Arm| match (&arm.first().start.roles, &roles.teacher) {
            (Some(_), Some(_)) => {
                let mut teachers = roles.teachers().filter_map(|weights| self.arm_of(weights));
                teachers.any(|teacher| std::ptr::eq(teacher, other))
            }
            (Some(_), None) => false,
            (None, _) => named_as_teacher(&other.first().start),
        };
        let candidates =
            self.arms.iter().filter(|other| !other.has_methods() && other.model() == arm.model());
        // Of equal ones the first.
        candidates.min_by_key(|other| (file(&other.roles()) != file(&roles), teaches(other)))
    }

    /// Differences in test accuracy to the same network trained alone, one for each common seed; `None` without any.
    pub(crate) fn gain(&self, arm: &Arm) -> Option<Vec<f64>> {
        let gains = arm.paired(self.alone(arm)?, |run| Some(run.test_accuracy()));
        (!gains.is_empty()).then_some(gains)
    }

    /// The logits of a student's teacher on the test images: of the teacher that it learnt from, or for a run on the labels alone
    /// of the headline's teacher with the same seed, if its outputs are there.
    pub(crate) fn teacher_logits<'a>(&'a self, run: &'a Run) -> Option<&'a [f32]> {
        if let Some(logits) = &run.teacher_logits {
            return Some(logits);
        }
        let teacher = self.teacher().filter(|_| run.start.roles().methods.is_empty())?;
        if teacher.name == run.start.run {
            return None;
        }
        let same_seed = teacher.of_seed(run.start.seed);
        let (own, theirs) = (run.outputs.as_ref()?, same_seed?.outputs.as_ref()?);
        let same_images = (&own.labels, own.classes) == (&theirs.labels, theirs.classes);
        same_images.then_some(&theirs.logits)
    }
}
