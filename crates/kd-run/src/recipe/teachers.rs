//! The teachers that a run names, and how several of them answer as one.

use kd_loss::{Combination, Kind, MethodConfig, Term};
use serde::{Deserialize, Serialize};

use super::invalid::{Invalid, Step, require};
use super::types::RunConfig;

/// A run's teacher, or several: the names of runs of the same recipe, or weights files (relative to the recipe's folder).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected the name of a run or a weights file, or a list of these: teacher = \"teacher\", teacher = [\"resnet20\", \"resnet56\"]"
)]
pub enum TeacherNames {
    /// The name of the one teacher, as `teacher = "NAME"` has it.
    One(String),
    /// Several, of which each answers about each image.
    Several(Vec<String>),
}

impl TeacherNames {
    /// One name, or several as they are.
    pub fn new(mut names: Vec<String>) -> Self {
        match names.len() {
            1 => Self::One(names.remove(0)),
            _ => Self::Several(names),
        }
    }

    /// All names, in order.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

impl RunConfig {
    /// The names of the run's teachers; none for a run without a teacher, and for one whose teacher is still to be named.
    pub fn teachers(&self) -> &[String] {
        self.teacher.as_ref().map_or(&[], TeacherNames::names)
    }

    /// Checks the names of the teachers, and that several of them can answer as one.
    pub(super) fn check_teachers(&self) -> Result<(), Invalid> {
        self.check_teacher_logits()?;
        let (names, path) = (self.teachers(), [Step::Key("teacher")]);
        let shown = names.join(", ");
        let used = self.teacher.is_none() || self.needs_teacher();
        require(used, &path, &shown, "none: no method of this run needs a teacher")?;
        let some = self.teacher.is_none() || !names.is_empty();
        require(some, &path, "empty", "at least one teacher")?;
        let twice = names.iter().enumerate().any(|(place, name)| names[..place].contains(name));
        require(!twice, &path, &shown, "each teacher once")?;
        let combine = [Step::Key("combine")];
        if let Some(combination) = self.combine {
            let name = combination.name();
            require(
                names.len() > 1,
                &combine,
                name,
                "none in a run that has not several teachers",
            )?;
            combination
                .validate()
                .map_err(|error| Invalid { path: combine.to_vec(), message: error.to_string() })?;
        }
        if names.len() < 2 {
            return Ok(());
        }
        let parts = self.cross_fit.unwrap_or(0);
        let expected = "none beside several teachers: of cross-fitted ones each answers for a part of the images alone";
        require(self.cross_fit.is_none(), &[Step::Key("cross_fit")], parts, expected)?;
        if let Some(term) = self.methods.iter().find(|term| learns_from_maps(&term.method)) {
            let found = format!("{} teachers ({shown})", names.len());
            let expected = format!(
                "one teacher beside the method {}: it learns from feature maps, and those of several networks are not each other's, so that no mean of them means anything; several teachers are for methods that need their logits alone (kd, dkd, dist)",
                term.method.name()
            );
            require(false, &path, found, &expected)?;
        }
        Ok(())
    }

    /// Checks that a file of the teacher's logits can stand for a teacher.
    fn check_teacher_logits(&self) -> Result<(), Invalid> {
        let Some(file) = &self.teacher_logits else { return Ok(()) };
        let refuse = |good: bool, expected: &str| {
            require(good, &[Step::Key("teacher_logits")], format!("{file:?}"), expected)
        };
        refuse(self.needs_teacher(), "none: no method of this run needs a teacher")?;
        for (key, set) in [
            ("teacher", self.teacher.is_some()),
            ("teacher_model", self.teacher_model.is_some()),
            ("teacher_output", self.teacher_output.is_some()),
            ("teacher_mean", self.teacher_mean.is_some()),
            ("cross_fit", self.cross_fit.is_some()),
            ("keep", self.keep.is_some()),
        ] {
            let expected = format!("none beside {key}, which is of a network that answers");
            refuse(!set, &expected)?;
        }
        if let Some(term) = self.methods.iter().find(|term| learns_from_maps(&term.method)) {
            let name = term.method.name();
            let expected = format!(
                "a teacher beside the method {name}, which learns from feature maps: the file has logits alone"
            );
            refuse(false, &expected)?;
        }
        Ok(())
    }

    /// How the run's several teachers answer as one, with its temperature filled in: where none is written, the one at which the run's
    /// methods soften the teacher's logits.
    ///
    /// # Errors
    /// When the methods have several temperatures.
    pub(crate) fn combination(&self) -> Result<Combination, Invalid> {
        let mut combination = self.combine.unwrap_or_default();
        let Some(temperature) = combination.temperature_mut().filter(|it| it.is_none()) else {
            return Ok(combination);
        };
        let mut found = self.methods.iter().flat_map(teachers_temperatures);
        let first = found.next().unwrap_or(1.0);
        let expected = "combine.temperature beside methods that soften the teacher's logits at several temperatures";
        require(
            found.all(|other| other == first),
            &[Step::Key("combine")],
            "no temperature",
            expected,
        )?;
        *temperature = Some(first);
        Ok(combination)
    }
}

/// Whether a method needs feature maps of the teacher.
pub(super) fn learns_from_maps(method: &MethodConfig) -> bool {
    let about = kd_loss::METHODS.iter().find(|info| info.name == method.name());
    about.is_some_and(|info| matches!(info.about.kind, Kind::Feature | Kind::Relation))
}

/// What a method divides the teacher's logits by before their softmax, one after another; empty for one that does not take the teacher's
/// logits.
fn teachers_temperatures(term: &Term) -> Vec<f64> {
    match &term.method {
        MethodConfig::Kd(config) => vec![config.teacher_temperature.unwrap_or(config.temperature)],
        MethodConfig::Dkd(config) => vec![config.temperature],
        MethodConfig::Dist(config) => vec![config.temperature],
        MethodConfig::Mlkd(config) => config.temperatures.clone(),
        // The power γ of the teacher's probabilities is the softmax of γ times its logits.
        MethodConfig::Ttm(config) => vec![1.0 / config.gamma],
        MethodConfig::Wttm(config) => vec![1.0 / config.gamma],
        _ => Vec::new(),
    }
}
