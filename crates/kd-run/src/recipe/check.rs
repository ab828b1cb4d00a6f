//! Checks of every value of a recipe.

use kd_data::MAX_SIDE;
use kd_loss::{Combination, MethodConfig, Term};
use kd_ops::adam::AdamConfig;
use kd_ops::average::AverageConfig;
use kd_ops::schedule::LrSchedule;
use kd_ops::sgd::SgdConfig;
use kd_report::compare::Published;

use super::invalid::{Invalid, Step, require};
use super::optimizer::OptimizerConfig;
use super::teachers::learns_from_maps;
use super::types::{AugmentConfig, DataConfig, DatasetName, Recipe, RunConfig, RunRecipe};
use crate::error::other;

/// The largest number of epochs, and of images in a step, that is accepted: far more than anybody trains with.
const MOST: usize = 1_000_000;
const AT_LEAST_ONE: &str = "at least 1, at most 1000000";

impl RunRecipe {
    /// Checks every value.
    ///
    /// # Errors
    /// When a value makes no sense; the message names it, what it is, and what is expected.
    pub fn validate(&self) -> crate::Result<()> {
        self.to_recipe().check().map_err(|invalid| other!("{invalid}"))
    }
}

impl RunRecipe {
    /// Checks the values of the run alone, which flags may have changed: before any data are read.
    ///
    /// # Errors
    /// As [`Self::validate`]'s, as a choice that makes no sense for the run.
    pub(crate) fn check_run(&self) -> crate::Result<()> {
        let mixed = || if self.data.mix().is_off() { Ok(()) } else { self.run.check_mixed() };
        self.run
            .check()
            .and_then(|()| mixed())
            .and_then(|()| self.run.check_unfreezing(self.training.epochs))
            .map_err(|invalid| crate::Error::Choice(format!("run {:?}: {invalid}", self.run.name)))
    }
}

impl Recipe {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        self.data.check().map_err(|invalid| invalid.below(&[Step::Key("data")]))?;
        let training = &self.training;
        for (key, value) in [("epochs", training.epochs), ("batch_size", training.batch_size)] {
            let path = [Step::Key("training"), Step::Key(key)];
            require((1..=MOST).contains(&value), &path, value, AT_LEAST_ONE)?;
        }
        let clip = training.clip_grad_norm.unwrap_or(1.0);
        let path = [Step::Key("training"), Step::Key("clip_grad_norm")];
        require(clip > 0.0 && clip.is_finite(), &path, clip, "a number above 0")?;
        check_schedule(&training.schedule)
            .map_err(|invalid| invalid.below(&[Step::Key("training"), Step::Key("schedule")]))?;
        if let Some(parts) = training.accumulate {
            let path = [Step::Key("training"), Step::Key("accumulate")];
            let expected = "at least 1, at most training.batch_size";
            require((1..=training.batch_size).contains(&parts), &path, parts, expected)?;
        }
        check_average(training.average)
            .map_err(|invalid| invalid.below(&[Step::Key("training"), Step::Key("average")]))?;
        let views = self.data.augment.views;
        let expected = "none where training.sampler is balanced, which shows a picture several times in an epoch";
        require(
            views.is_none() || training.sampler.is_shuffle(),
            &["data", "augment", "views"].map(Step::Key),
            views.unwrap_or(0),
            expected,
        )?;
        self.optimizer.check().map_err(|invalid| invalid.below(&[Step::Key("optimizer")]))?;
        require(!self.runs.is_empty(), &[Step::Key("run")], "empty", "at least one [[run]]")?;
        for (index, run) in self.runs.iter().enumerate() {
            let place = [Step::Key("run"), Step::Index(index)];
            run.check().map_err(|invalid| invalid.below(&place))?;
            run.check_keep(&self.data).map_err(|invalid| invalid.below(&place))?;
            run.check_unfreezing(training.epochs).map_err(|invalid| invalid.below(&place))?;
            if training.accumulate.is_some() {
                run.check_accumulated().map_err(|invalid| invalid.below(&place))?;
            }
            if !self.data.mix().is_off() {
                run.check_mixed().map_err(|invalid| invalid.below(&place))?;
            }
            if self.runs[..index].iter().any(|other| other.name == run.name) {
                let mut path = place.to_vec();
                path.push(Step::Key("name"));
                let message = format!(
                    "{:?} is the name of two runs; expected another name for each run",
                    run.name
                );
                return Err(Invalid { path, message });
            }
        }
        Ok(())
    }
}

impl DataConfig {
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        let skips = !self.skip_broken || self.dataset.is_ones_own();
        let expected = "false: only of pictures of one's own can some be broken";
        require(skips, &[Step::Key("skip_broken")], true, expected)?;
        let finite = self.mean.iter().all(|mean| mean.is_finite());
        let mean = format!("{:?}", self.mean);
        require(finite, &[Step::Key("mean")], mean, "three finite numbers")?;
        let positive = self.std.iter().all(|std| std.is_finite() && *std > 0.0);
        let std = format!("{:?}", self.std);
        require(positive, &[Step::Key("std")], std, "three numbers above 0")?;
        let limits = [
            ("train_limit", self.train_limit),
            ("test_limit", self.test_limit),
            ("held_out", self.held_out),
        ];
        for (key, limit) in limits {
            require(limit != Some(0), &[Step::Key(key)], 0, "at least 1")?;
        }
        self.check_size()?;
        let augment = [Step::Key("augment"), Step::Key("crop_padding")];
        require(self.augment.crop_padding < 32, &augment, self.augment.crop_padding, "0 to 31")?;
        let augment = [Step::Key("augment"), Step::Key("cutout")];
        require(self.augment.cutout <= 64, &augment, self.augment.cutout, "0 to 64")?;
        let AugmentConfig { color_jitter, rand_augment, random_erasing, .. } = &self.augment;
        let checked = [
            ("color_jitter", color_jitter.map(|jitter| jitter.check())),
            ("rand_augment", rand_augment.map(|settings| settings.check())),
            ("random_erasing", random_erasing.map(|erasing| erasing.check())),
        ];
        for (key, checked) in checked {
            if let Some(Err(kd_data::Error::Config { found, expected, .. })) = checked {
                require(false, &[Step::Key("augment"), Step::Key(key)], found, &expected)?;
            }
        }
        let both = rand_augment.is_some() && self.augment.trivial_augment_wide;
        let path = [Step::Key("augment"), Step::Key("trivial_augment_wide")];
        require(!both, &path, true, "false beside rand_augment: a picture is changed by either")?;
        let mix = self.mix();
        for (key, alpha) in [("mixup", mix.mixup), ("cutmix", mix.cutmix)] {
            let good = alpha == 0.0 || (0.01..=100.0).contains(&alpha);
            let path = [Step::Key("augment"), Step::Key(key)];
            require(good, &path, alpha, "0, or a number from 0.01 to 100")?;
        }
        let path = [Step::Key("augment"), Step::Key("mix_probability")];
        let good = (0.0..=1.0).contains(&mix.probability);
        require(good, &path, mix.probability, "a share from 0 to 1")?;
        if let Some(views) = self.augment.views {
            let path = [Step::Key("augment"), Step::Key("views")];
            require((1..=MOST).contains(&views), &path, views, AT_LEAST_ONE)?;
            let expected = "none without augmentation: all views would be the same";
            require(!self.shows_plain_images(), &path, views, expected)?;
        }
        Ok(())
    }

    /// Checks what is about pictures of any size.
    fn check_size(&self) -> Result<(), Invalid> {
        let size = self.size.unwrap_or(1);
        let sides = 1..=MAX_SIDE;
        require(sides.contains(&size), &[Step::Key("size")], size, "1 to 4096 pixels")?;
        if let Some(resize) = self.resize {
            let good = self.size.is_some() && (size..=MAX_SIDE).contains(&resize);
            let expected = "none without size, and with it size to 4096 pixels";
            require(good, &[Step::Key("resize")], resize, expected)?;
        }
        let is_used = self.size.is_some() || self.augment.resized_crop.is_some();
        let expected = "none without size and augment.resized_crop: nothing is scaled";
        let interpolates = is_used || self.interpolation.is_bilinear();
        let name = self.interpolation.name();
        require(interpolates, &[Step::Key("interpolation")], name, expected)?;
        let files = self.dataset == DatasetName::Folder;
        let shards = self.dataset == DatasetName::Shards;
        let expected = "the height and width that pictures in shards are brought to, such as 224";
        require(!shards || self.size.is_some(), &[Step::Key("size")], "not said", expected)?;
        let named = [("train_shards", &self.train_shards), ("test_shards", &self.test_shards)];
        for (key, pattern) in named {
            let path = [Step::Key(key)];
            let expected = "none but of data set \"shards\"";
            let found = pattern.as_deref().unwrap_or_default();
            require(shards || pattern.is_none(), &path, format!("{found:?}"), expected)?;
        }
        let expected = "the shards' names in the data's folder, such as \"train-{000..015}.tar\"";
        let good = !shards || self.train_shards.is_some();
        require(good, &[Step::Key("train_shards")], "not said", expected)?;
        if let Some(share) = self.split {
            let expected = "a share above 0 and below 1, of data set \"folder\", or \"shards\" without test_shards";
            let cut = files || shards && self.test_shards.is_none();
            let good = cut && share > 0.0 && share < 1.0;
            require(good, &[Step::Key("split")], share, expected)?;
        }
        let expected = "\"test\", or \"validation\" in data set \"folder\" without split";
        let good = self.test_on.is_test() || files && self.split.is_none();
        require(good, &[Step::Key("test_on")], "\"validation\"", expected)?;
        let augment = |key| [Step::Key("augment"), Step::Key(key)];
        if let Some(scale) = self.augment.resized_crop {
            let expected = "two shares above 0 and at most 1, the smaller first";
            let good = scale[0] > 0.0 && scale[0] <= scale[1] && scale[1] <= 1.0;
            require(good, &augment("resized_crop"), format!("{scale:?}"), expected)?;
        }
        if let Some(ratio) = self.augment.crop_ratio {
            let expected = "two numbers from 0.01 to 100, the smaller first, beside resized_crop";
            let good = ratio[0] >= 0.01 && ratio[0] <= ratio[1] && ratio[1] <= 100.0;
            let good = good && self.augment.resized_crop.is_some();
            require(good, &augment("crop_ratio"), format!("{ratio:?}"), expected)?;
        }
        Ok(())
    }
}

impl RunConfig {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        check_name(&self.name).map_err(|message| Invalid {
            path: vec![Step::Key("name")],
            message: message.to_string(),
        })?;
        let epochs = self.epochs.unwrap_or(1);
        require((1..=MOST).contains(&epochs), &[Step::Key("epochs")], epochs, AT_LEAST_ONE)?;
        let lr = self.lr.unwrap_or(1.0);
        require(lr > 0.0 && lr.is_finite(), &[Step::Key("lr")], lr, "a number above 0")?;
        if let Some((field, found, expected)) = self.published.as_ref().and_then(Published::mistake)
        {
            require(false, &[Step::Key("published"), Step::Key(field)], found, expected)?;
        }
        if let Some(dropout) = self.dropout {
            let path = [Step::Key("dropout")];
            require((0.0..1.0).contains(&dropout), &path, dropout, "a number from 0 to below 1")?;
            let has = self.model.default_dropout().is_some();
            require(has, &path, dropout, "none: a ResNet has no dropout")?;
        }
        let weight = |value: f64, path: &[Step]| {
            let good = value >= 0.0 && value.is_finite();
            require(good, path, value, "a number that is not negative")
        };
        weight(self.labels, &[Step::Key("labels")])?;
        for (index, term) in self.methods.iter().enumerate() {
            let place = [Step::Key("method"), Step::Index(index)];
            weight(term.weight, &[place[0].clone(), place[1].clone(), Step::Key("weight")])?;
            term.validate()
                .map_err(|error| Invalid { path: place.to_vec(), message: error.to_string() })?;
        }
        self.check_class_weights()?;
        let something = self.labels > 0.0 || self.methods.iter().any(|term| term.weight > 0.0);
        require(something, &[Step::Key("labels")], 0, "a weight above 0 here or in a method")?;
        if let Some(parts) = self.cross_fit {
            let path = [Step::Key("cross_fit")];
            require(parts >= 2, &path, parts, "at least 2")?;
            require(
                self.needs_teacher(),
                &path,
                parts,
                "none: no method of this run needs a teacher",
            )?;
        }
        if let Some([part, of]) = self.part {
            let good = of >= 2 && (1..=of).contains(&part);
            let found = format!("[{part}, {of}]");
            require(
                good,
                &[Step::Key("part")],
                found,
                "[i, k] with i from 1 to k, and k at least 2",
            )?;
        }
        let select_on = self.select_on.unwrap_or(1);
        require(select_on >= 1, &[Step::Key("select_on")], 0, "at least 1")?;
        for (key, set) in [("part", self.part.is_some()), ("select_on", self.select_on.is_some())] {
            let expected =
                "none in a run with a teacher, where the student trains on all training images";
            require(!(set && self.needs_teacher()), &[Step::Key(key)], "set", expected)?;
        }
        for (layer, scale) in &self.lr_scale {
            let good = *scale > 0.0 && scale.is_finite();
            let expected = "a number above 0; freeze keeps a layer as it is";
            require(good, &[Step::Key("lr_scale")], format!("{scale} for {layer:?}"), expected)?;
        }
        self.check_teachers_images()?;
        let maps = self.class_map.is_some() || self.init_class_map.is_some();
        let one = !(maps && self.ignore_class_names);
        let path = [Step::Key("ignore_class_names")];
        require(one, &path, true, "false beside a class map, which says what is meant")?;
        self.check_teachers()
    }

    /// Checks that layers which are trained from an epoch on are frozen before it, in a run of so many epochs.
    fn check_unfreezing(&self, epochs: usize) -> Result<(), Invalid> {
        let Some(after) = self.unfreeze_at else { return Ok(()) };
        let path = [Step::Key("unfreeze_at")];
        let expected = "none without freeze: no layer is frozen";
        require(!self.freeze.is_empty(), &path, after, expected)?;
        let epochs = self.epochs.unwrap_or(epochs);
        let expected = match epochs {
            1 => "none in a run of 1 epoch, in which nothing is left to train after it".into(),
            _ => format!("1 to {}: the run has {epochs} epochs", epochs - 1),
        };
        require((1..epochs).contains(&after), &path, after, &expected)
    }

    /// Checks that the loss of a batch is the mean over its images, so that it can be computed in parts.
    fn check_accumulated(&self) -> Result<(), Invalid> {
        let weighs = self.class_weights.is_some();
        let expected = "none beside training.accumulate: they are divided by their sum over the whole step, which a part doesn't know";
        require(!weighs, &[Step::Key("class_weights")], "set", expected)?;
        for (index, term) in self.methods.iter().enumerate() {
            let path = [Step::Key("method"), Step::Index(index), Step::Key("name")];
            let expected = "another method beside training.accumulate: this one compares the images of the whole step with each other, or normalises over them";
            require(!looks_across_images(&term.method), &path, term.method.name(), expected)?;
        }
        Ok(())
    }

    /// Checks that the teacher's logits of views can be kept.
    fn check_keep(&self, data: &DataConfig) -> Result<(), Invalid> {
        let Some(keep) = self.keep else { return Ok(()) };
        let refuse =
            |good: bool, expected: &str| require(good, &[Step::Key("keep")], "set", expected);
        refuse(self.needs_teacher(), "none: no method of this run needs a teacher")?;
        refuse(
            !data.shows_plain_images(),
            "none without augmentation: the teacher's outputs of the plain images are cached in any case",
        )?;
        refuse(
            data.augment.views.is_some(),
            "data.augment.views beside it: without it each epoch shows new views, none of which comes again",
        )?;
        if let Some(term) = self.methods.iter().find(|term| learns_from_maps(&term.method)) {
            let name = term.method.name();
            refuse(
                false,
                &format!(
                    "none beside the method {name}: it learns from feature maps, a shifted or mirrored map is not the map of the shifted or mirrored picture, and whole maps of each view would take some thousand numbers a row; leave keep out, and each step asks the teacher"
                ),
            )?;
        }
        let top = keep.top.unwrap_or(1);
        require(top >= 1, &[Step::Key("keep"), Step::Key("top")], top, "at least 1")
    }

    /// Checks that all of the run can be meant where images are mixed of two.
    fn check_mixed(&self) -> Result<(), Invalid> {
        let expected = "none beside mixup or cutmix: the file has no logits of mixed images";
        require(self.teacher_logits.is_none(), &[Step::Key("teacher_logits")], "set", expected)?;
        let weighs = self.class_weights.is_some();
        let expected =
            "none beside mixup or cutmix: they count one class an image, and a mixed image has two";
        require(!weighs, &[Step::Key("class_weights")], "set", expected)?;
        let parts = self.cross_fit.unwrap_or(0);
        let expected = "none beside mixup or cutmix: the two images of a mixed one may be of different parts, whose teachers differ";
        require(self.cross_fit.is_none(), &[Step::Key("cross_fit")], parts, expected)?;
        if let Some(combination) = self.combine.filter(Combination::uses_labels) {
            let path = [Step::Key("combine"), Step::Key("name")];
            let expected = "logits or probabilities beside mixup or cutmix: this one weighs teachers by one class an image, and a mixed image has two";
            require(false, &path, combination.name(), expected)?;
        }
        for (index, term) in self.methods.iter().enumerate() {
            let whole = !matches!(term.method, MethodConfig::Dkd(_) | MethodConfig::Crd(_));
            let path = [Step::Key("method"), Step::Index(index), Step::Key("name")];
            let expected = "another method beside mixup or cutmix: this one takes one class an image, and a mixed image has two";
            require(whole, &path, term.method.name(), expected)?;
        }
        Ok(())
    }

    fn check_class_weights(&self) -> Result<(), Invalid> {
        let Some(weights) = &self.class_weights else { return Ok(()) };
        let path = [Step::Key("class_weights")];
        match weights.validate() {
            Ok(()) => {}
            Err(kd_loss::Error::Option { found, expected, .. }) => {
                require(false, &path, found, expected)?;
            }
            Err(other) => return Err(Invalid { path: path.to_vec(), message: other.to_string() }),
        }
        let smooths = |term: &Term| matches!(term.method, MethodConfig::LabelSmoothing(_));
        let weighs = self.labels > 0.0 || self.methods.iter().any(smooths);
        require(weighs, &path, "set", "none in a run whose labels have the weight 0")
    }

    fn check_teachers_images(&self) -> Result<(), Invalid> {
        let fields =
            [("teacher_mean", self.teacher_mean, false), ("teacher_std", self.teacher_std, true)];
        for (key, values, positive) in fields {
            let path = [Step::Key(key)];
            let Some(values) = values else {
                let other = self.teacher_mean.or(self.teacher_std);
                let expected = "both teacher_mean and teacher_std, or neither";
                require(other.is_none(), &path, "not set", expected)?;
                continue;
            };
            let found = format!("{values:?}");
            let good = values.iter().all(|value| value.is_finite() && (!positive || *value > 0.0));
            let expected = if positive { "three numbers above 0" } else { "three finite numbers" };
            require(good, &path, &found, expected)?;
            let expected = "none: no method of this run needs a teacher";
            require(self.needs_teacher(), &path, &found, expected)?;
        }
        Ok(())
    }
}

/// Checks that a run can have this name, which becomes the name of a folder and of a file.
///
/// # Errors
/// When it can't; the message says what is expected.
pub fn check_name(name: &str) -> crate::Result<()> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let free = name.len() <= 100 && !kd_record::layout::is_reserved(name);
    match first && free && name.bytes().all(known) {
        true => Ok(()),
        false => Err(other!(
            "{name:?} can't be a run's name, which is also a folder's; expected at most 100 letters, digits, '-', '_' and '.', a letter or digit first, and not \"cache\""
        )),
    }
}

impl OptimizerConfig {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let above_0 = |key: &'static str, value: f64| {
            require(value > 0.0 && value.is_finite(), &[Step::Key(key)], value, "a number above 0")
        };
        let below_1 = |key: &'static str, value: f64| {
            let expected = "a number from 0 to below 1";
            require((0.0..1.0).contains(&value), &[Step::Key(key)], value, expected)
        };
        let decay = |value: f64| {
            let good = value >= 0.0 && value.is_finite();
            require(good, &[Step::Key("weight_decay")], value, "a number that is not negative")
        };
        above_0("lr", self.lr())?;
        match *self {
            Self::Adam(AdamConfig { beta1, beta2, eps, weight_decay, .. }) => {
                above_0("eps", eps)?;
                below_1("beta1", beta1)?;
                below_1("beta2", beta2)?;
                decay(weight_decay)
            }
            Self::Sgd(SgdConfig { momentum, nesterov, weight_decay, .. }) => {
                below_1("momentum", momentum)?;
                let good = !nesterov || momentum > 0.0;
                require(good, &[Step::Key("nesterov")], nesterov, "false without a momentum")?;
                decay(weight_decay)
            }
        }
    }
}

/// Whether a method's loss depends on which images come together.
fn looks_across_images(method: &MethodConfig) -> bool {
    let about = kd_loss::METHODS.iter().find(|info| info.name == method.name());
    about.is_none_or(|info| info.about.across_images)
}

fn check_average(average: Option<AverageConfig>) -> Result<(), Invalid> {
    match average {
        None => Ok(()),
        Some(AverageConfig::Ema { decay, .. }) => {
            let good = (0.0..1.0).contains(&decay);
            require(good, &[Step::Key("decay")], decay, "a number from 0 to below 1")
        }
        Some(AverageConfig::LastEpochs { epochs }) => {
            require(epochs >= 1, &[Step::Key("epochs")], epochs, "at least 1")
        }
    }
}

pub(super) fn check_schedule(schedule: &LrSchedule) -> Result<(), Invalid> {
    let check = |key: &'static str, value: f64, good: bool, expected: &str| {
        require(good, &[Step::Key(key)], value, expected)
    };
    let warmup = |length: f64, from: f64| {
        let good = length >= 0.0 && length.is_finite();
        check("warmup_epochs", length, good, "a number that is not negative")?;
        check("warmup_from", from, (0.0..=1.0).contains(&from), "a share from 0 to 1")
    };
    let above_0 =
        |key, value: f64| check(key, value, value > 0.0 && value.is_finite(), "a number above 0");
    match *schedule {
        LrSchedule::Constant { warmup_epochs, warmup_from } => warmup(warmup_epochs, warmup_from),
        LrSchedule::Step { ref milestones, factor, warmup_epochs, warmup_from } => {
            let rising = milestones.windows(2).all(|pair| pair[0] < pair[1]);
            let good = rising && milestones.iter().all(|epoch| *epoch > 0.0);
            let found = format!("{milestones:?}");
            require(good, &[Step::Key("milestones")], found, "epochs above 0 in ascending order")?;
            above_0("factor", factor)?;
            warmup(warmup_epochs, warmup_from)
        }
        LrSchedule::Cosine { down_to, warmup_epochs, warmup_from } => {
            let good = (0.0..=1.0).contains(&down_to);
            check("down_to", down_to, good, "a share from 0 to 1")?;
            warmup(warmup_epochs, warmup_from)
        }
        LrSchedule::OneCycle { rise, div_factor, final_div_factor, .. } => {
            check("rise", rise, rise > 0.0 && rise < 1.0, "a share between 0 and 1")?;
            above_0("div_factor", div_factor)?;
            above_0("final_div_factor", final_div_factor)
        }
    }
}
