//! FitNet hints: the student's map, through a learned 1x1 convolution, should equal the teacher's.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::method::{About, HelperParameter, Kind, Linear, Options, linear_parameters};
use crate::places::{Fallback, PLACES, Pair, PairShapes, match_size};
use crate::regressor::mse;
use crate::{Inputs, Method, Needs, Result, Setup};

/// Options of the method "fitnet": [`mse`] between the teacher's map `[B, Ct, H, W]` and a learned 1x1 convolution,
/// `hint`, of the student's `[B, Cs, H, W]`. The larger map is averaged over windows down to the other's size first.
///
/// Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), equation 3; customary weight 100. The paper trains with it
/// in a stage of its own, before the labels; here it is added to them. The tutorial's form of it is "regressor".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FitNetConfig {
    /// The student's feature place; its last feature map when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student: Option<String>,
    /// The teacher's feature place; its last feature map when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

impl FitNetConfig {
    fn places(&self, shapes: &Setup) -> Result<PairShapes> {
        let (student, teacher) = (self.student.as_deref(), self.teacher.as_deref());
        PairShapes::find("fitnet", shapes, student, teacher, Fallback::Map)
    }
}

impl Options for FitNetConfig {
    const ABOUT: About = About {
        kind: Kind::Feature,
        summary: "mean squared error to the teacher's map through a learned 1x1 convolution",
        paper: "Romero et al. 2015",
        weight: 100.0,
        labels: 1.0,
        options: &PLACES,
    };

    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let Pair { student, teacher } = self.places(shapes)?.pair;
        (self.student, self.teacher) = (Some(student), Some(teacher));
        Ok(())
    }

    fn helper_parameters(&self, shapes: &Setup) -> Result<Vec<HelperParameter>> {
        let (student, teacher) = self.places(shapes)?.channels_of_maps("fitnet")?;
        Ok(linear_parameters("hint", student, teacher).into())
    }

    fn build(&self, shapes: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        let places = self.places(shapes)?;
        let (student, teacher) = places.channels_of_maps("fitnet")?;
        let hint = Linear::new(student, teacher, &vb.pp("hint"))?;
        Ok(Box::new(FitNet { places: places.pair, hint }))
    }
}

struct FitNet {
    places: Pair,
    hint: Linear,
}

impl Method for FitNet {
    fn needs(&self) -> Needs {
        Pair::needs(std::slice::from_ref(&self.places))
    }

    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        let (student, teacher) = self.places.features("fitnet", inputs)?;
        let (student, teacher) = match_size("fitnet", &student, &teacher)?;
        mse(&self.hint.map(&student)?, &teacher)
    }
}
