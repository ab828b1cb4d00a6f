//! FitNet hints: the student's map, through a learned 1x1 convolution, should equal the teacher's.

use candle_nn::VarBuilder;

use super::mse::mse;
use crate::matching::match_size;
use crate::method::{About, Definition, HelperParameter, Kind, Method};
use crate::pairs::{MAP_PAIR, PairConfig, compare};
use crate::projection::Projection;
use crate::setup::DefaultPlace;
use crate::{Result, Setup};

/// [`mse`] between the teacher's map `[B, Ct, H, W]` and a learned 1x1 convolution, `hint`, of the student's `[B, Cs, H, W]`. The
/// larger map is averaged over windows down to the other's size first.
///
/// Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), equation 3. The paper trains with it
/// in a stage of its own, before the labels; here it is added to them. The PyTorch tutorial's form of it is "regressor".
pub(crate) struct FitNet;

impl Definition for FitNet {
    type Options = PairConfig;

    const ABOUT: About = About {
        kind: Kind::Feature,
        across_images: false,
        summary: "mean squared error to the teacher's map through a learned 1x1 convolution",
        paper: "Romero et al. 2015",
        weight: 100.0,
        labels: 1.0,
        source: "HobbitLong/RepDistiller, scripts/run_cifar_distill.sh: --distill hint -a 0 -b 100; train_student.py: --hint_layer, default=2, the map of the middle, where the default here is the last. Its regressor ends with batch normalisation and ReLU (models/util.py, ConvReg), which this one has not. The paper's authors train with hints in a stage of its own and give no weight",
        options: &MAP_PAIR,
    };

    fn resolve(options: &mut PairConfig, setup: &Setup) -> Result<()> {
        *options = options.find(setup, DefaultPlace::Map)?.into();
        Ok(())
    }

    fn helper_parameters(options: &PairConfig, setup: &Setup) -> Result<Vec<HelperParameter>> {
        let (student, teacher) = options.find(setup, DefaultPlace::Map)?.channels()?;
        Ok(Projection::parameters("hint", student, teacher).into())
    }

    fn build(options: &PairConfig, setup: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>> {
        let pair = options.find(setup, DefaultPlace::Map)?;
        let (student, teacher) = pair.channels()?;
        let hint = Projection::new(student, teacher, &vb.pp("hint"))?;
        Ok(compare(vec![pair], move |student, teacher| {
            let (student, teacher) = match_size(student, teacher)?;
            mse(&hint.map(&student)?, &teacher)
        }))
    }
}
