//! What a method is built for.

use crate::{Error, Result};

/// What a method is built for: the two networks as seen from outside, and the labels of the images that the run trains on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// The student's feature places from input to output, each with the shape of one image's
    /// values: `[C, H, W]` or `[F]`.
    pub student: Vec<(String, Vec<usize>)>,
    /// The teacher's feature places, in the same form.
    pub teacher: Vec<(String, Vec<usize>)>,
    /// The number of classes, the same for both networks.
    pub classes: usize,
    /// The labels of all training images, for methods that keep a memory of each image.
    pub train_labels: Vec<u32>,
}

/// One of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Student,
    Teacher,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Student => "student",
            Self::Teacher => "teacher",
        }
    }
}

/// The feature place that a method takes when a recipe names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultPlace {
    /// The last feature map `[C, H, W]`.
    Map,
    /// The last vector `[F]`, or in a network without one the last feature map.
    Vector,
}

impl Setup {
    /// The name of a feature place and the shape of one image's values there.
    ///
    /// # Errors
    /// When the network has no place of this name, or without a name no place of the default's kind.
    pub(crate) fn place(
        &self,
        side: Side,
        name: Option<&str>,
        default: DefaultPlace,
    ) -> Result<(&str, &[usize])> {
        let places = match side {
            Side::Student => &self.student,
            Side::Teacher => &self.teacher,
        };
        let last = |rank: usize| places.iter().rfind(|(_, shape)| shape.len() == rank);
        let place = match name {
            Some(name) => places
                .iter()
                .find(|(known, _)| known == name)
                .ok_or_else(|| unknown_place(side, name, places.iter().map(|(known, _)| known)))?,
            None => match default {
                DefaultPlace::Map => last(3),
                DefaultPlace::Vector => last(1).or_else(|| last(3)),
            }
            .ok_or(Error::NoFeatureMap { network: side.name() })?,
        };
        Ok((&place.0, &place.1))
    }
}

/// The error of a place that is not among the known ones.
pub(crate) fn unknown_place<'a>(
    side: Side,
    place: &str,
    known: impl Iterator<Item = &'a String>,
) -> Error {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
    Error::UnknownPlace { network: side.name(), place: place.to_string(), known }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_vector_is_the_last_one_or_else_the_last_map() -> Result<()> {
        let place = |name: &str, shape: &[usize]| (name.to_string(), shape.to_vec());
        let mut setup = Setup {
            student: vec![place("a", &[3]), place("b", &[4]), place("c", &[2, 2, 2])],
            ..Setup::default()
        };
        let find = |setup: &Setup, default| {
            setup.place(Side::Student, None, default).map(|(name, _)| name.to_string())
        };
        assert_eq!(find(&setup, DefaultPlace::Vector)?, "b");
        assert_eq!(find(&setup, DefaultPlace::Map)?, "c");
        setup.student.drain(..2);
        assert_eq!(find(&setup, DefaultPlace::Vector)?, "c");
        Ok(())
    }
}
