//! What each class counts in the labels' cross-entropy, as a recipe says it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::check::{CLASS_WEIGHTS, is_class_weight};
use crate::{Error, Result};

/// What each class counts in the labels' cross-entropy: a rule's name, a list, or a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"balanced\", a list with a number for each class, or a table with a number for each class by its name"
)]
pub enum ClassWeights {
    /// Weights that follow from the training images.
    Rule(ClassWeightRule),
    /// A number for each class, in the classes' order.
    List(Vec<f64>),
    /// A number for each class, by its name.
    Table(BTreeMap<String, f64>),
}

/// A rule by which class weights follow from the training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClassWeightRule {
    /// `n / (C · n_c)`, with n training images, of them n_c of class c, and C classes, as scikit-learn's
    /// `compute_class_weight("balanced")`: all classes together count the same, whatever their numbers of images.
    Balanced,
}

/// The name of the setting in messages.
const FIELD: &str = "class_weights";

impl ClassWeights {
    /// Checks what can be checked without the data.
    ///
    /// # Errors
    /// When a number is not above 0.
    pub fn validate(&self) -> Result<()> {
        let wrong = |found: String| Error::Option { field: FIELD, found, expected: CLASS_WEIGHTS };
        match self {
            Self::Rule(_) => Ok(()),
            Self::List(weights) => match weights.iter().position(|w| !is_class_weight(*w)) {
                Some(place) => Err(wrong(format!("{} at place {}", weights[place], place + 1))),
                None => Ok(()),
            },
            Self::Table(weights) => match weights.iter().find(|(_, w)| !is_class_weight(**w)) {
                Some((class, weight)) => Err(wrong(format!("{weight} for `{class}`"))),
                None => Ok(()),
            },
        }
    }

    /// The weight of each of the data's `classes`, of which there are `images` training images each.
    ///
    /// # Errors
    /// When a number is not above 0, a class has none, a name is no class's, or the rule needs training images of a class that has
    /// none.
    pub fn of(&self, classes: &[String], images: &[usize]) -> Result<Vec<f64>> {
        self.validate()?;
        let wrong = |found, expected| Err(Error::Option { field: FIELD, found, expected });
        match self {
            Self::Rule(ClassWeightRule::Balanced) => {
                let all: usize = images.iter().sum();
                if let Some((class, _)) = classes.iter().zip(images).find(|(_, n)| **n == 0) {
                    let found =
                        format!("\"balanced\", and no training image is of class `{class}`");
                    return wrong(
                        found,
                        "training images of each class, or the weights as numbers",
                    );
                }
                let weight = |n: &usize| all as f64 / (classes.len() as f64 * *n as f64);
                Ok(images.iter().map(weight).collect())
            }
            Self::List(weights) if weights.len() == classes.len() => Ok(weights.clone()),
            Self::List(weights) => wrong(
                format!("a list of {} numbers for {} classes", weights.len(), classes.len()),
                "a number for each class, in the classes' order",
            ),
            Self::Table(weights) => {
                let expected = "a number for each class of the data, by the class's name";
                if let Some(name) = weights.keys().find(|name| !classes.contains(name)) {
                    return wrong(format!("a table with `{name}`, which is no class"), expected);
                }
                if let Some(class) = classes.iter().find(|class| !weights.contains_key(*class)) {
                    return wrong(format!("a table without class `{class}`"), expected);
                }
                Ok(classes.iter().map(|class| weights[class]).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Recipe {
        class_weights: ClassWeights,
    }

    fn of(text: &str, images: [usize; 3]) -> std::result::Result<Vec<f64>, String> {
        let recipe: Recipe = toml::from_str(&format!("class_weights = {text}"))
            .map_err(|error| error.message().to_owned())?;
        let again = toml::to_string(&recipe).unwrap();
        let read = toml::from_str::<Recipe>(&again).unwrap();
        // As text: a NaN is not equal to itself.
        assert_eq!(format!("{read:?}"), format!("{recipe:?}"));
        let classes = ["ant", "bee", "cow"].map(String::from);
        recipe.class_weights.of(&classes, &images).map_err(|error| error.to_string())
    }

    /// scikit-learn 1.9.1: `compute_class_weight("balanced", classes=[0, 1, 2], y=[0] * 60 + [1] * 30 + [2] * 7)`.
    #[test]
    fn balanced_weights_are_scikit_learns() {
        let found = of("\"balanced\"", [60, 30, 7]).unwrap();
        let expected = [0.5388888888888889, 1.0777777777777777, 4.619047619047619];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15, "{found} {expected}");
        }
        let message = of("\"balanced\"", [60, 30, 0]).unwrap_err();
        assert!(message.contains("no training image is of class `cow`"), "{message}");
    }

    #[test]
    fn lists_and_tables_give_each_class_its_number() {
        assert_eq!(of("[1, 2.5, 4]", [1, 1, 1]), Ok(vec![1.0, 2.5, 4.0]));
        assert_eq!(of("{ cow = 4, ant = 1, bee = 2.5 }", [1, 1, 1]), Ok(vec![1.0, 2.5, 4.0]));
    }

    #[test]
    fn a_wrong_entry_is_one_error_that_names_it() {
        for (text, expected) in [
            ("[1, 2]", "class_weights is a list of 2 numbers for 3 classes; expected a number for"),
            ("[1, -2, 1]", "class_weights is -2 at place 2; expected numbers above 0"),
            ("[1, 1, nan]", "class_weights is NaN at place 3"),
            (
                "{ ant = 1, bee = 0, cow = 1 }",
                "class_weights is 0 for `bee`; expected numbers above",
            ),
            (
                "{ ant = 1, bee = 1 }",
                "class_weights is a table without class `cow`; expected a number",
            ),
            (
                "{ ant = 1, be = 1, cow = 1 }",
                "class_weights is a table with `be`, which is no class",
            ),
            (
                "\"balance\"",
                "expected \"balanced\", a list with a number for each class, or a table",
            ),
            ("{ ant = \"1\" }", "expected \"balanced\", a list"),
            ("2", "expected \"balanced\", a list"),
        ] {
            let message = of(text, [1, 1, 1]).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
