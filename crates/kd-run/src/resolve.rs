//! From a recipe to a run that can be trained: [`resolve`] loads the data, the teacher and the initial weights, checks that they
//! fit each other, and fills in what the recipe leaves open.

mod teacher;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use kd_data::{Portions, Sampler};
use kd_loss::{ClassWeightRule, ClassWeights, Combination, MethodConfig, Term};
use kd_models::Architecture;
use kd_models::classes::{ClassChoice, ClassMap, shortened};
use kd_record::layout::part_name;
use kd_record::own;
use kd_record::write::create_folder;
use kd_record::{OutFolder, RunFolder};

use crate::data;
use crate::initial::Initial;
use crate::layers::Layers;
use crate::recipe::{
    DataConfig, DatasetName, Precision, Recipe, RunConfig, RunRecipe, TeacherNames, check_name,
};
use crate::run::{ResolvedRun, Settings, network_for, shapes};
use crate::teacher::Pretrained;
use crate::{Error, Result, device, unlabelled};
pub(crate) use teacher::{class_choice, logits_path, paths as teacher_paths};

/// What somebody wants besides the recipe, such as the flags of a command line. A field left `None` means what the recipe says.
///
/// The default is the recipe alone, with data in `data`, on the CPU.
#[derive(Clone, Debug)]
pub struct Choices {
    /// Another name for the run: its folder and its weights file.
    pub name: Option<String>,
    /// Where results go: `runs/<recipe's name>` if not given.
    pub out: Option<PathBuf>,
    /// The folder that the recipe's file lies in: weights files that the recipe names are relative to it. Not given: relative
    /// to the working directory.
    pub recipe_folder: Option<PathBuf>,
    /// The folder with the data set's files, or its parent.
    pub data: PathBuf,
    /// The data set. With another than the recipe's, what the recipe says of its own alone does not count; see [`data::choose`].
    pub dataset: Option<DatasetName>,
    /// Leave out pictures of one's own that can't be read.
    pub skip_broken: bool,
    /// The shards to train on, of data set `shards`.
    pub train_shards: Option<String>,
    /// The shards to test on.
    pub test_shards: Option<String>,
    /// Height and width of the images that the network gets.
    pub size: Option<usize>,
    /// Most bytes of decoded pictures that are kept in memory, where pictures are read as they are wanted.
    pub data_memory: u64,
    /// Train on at most this many images.
    pub train_limit: Option<usize>,
    /// Test on at most this many images.
    pub test_limit: Option<usize>,
    /// Take this many training images out and test on them.
    pub held_out: Option<usize>,
    /// Another network, with its own dropout where the recipe's does not fit.
    pub model: Option<Architecture>,
    /// Train without part i (from 1) of k of the training images, as `[i, k]`; `-part-<i>-of-<k>` is put behind the run's name.
    pub part: Option<[usize; 2]>,
    /// The teacher's weights file; several for several teachers; empty for the recipe's.
    pub teacher: Vec<PathBuf>,
    /// A file of the teacher's logits by picture, in place of the recipe's teacher.
    pub teacher_logits: Option<PathBuf>,
    /// How several teachers' logits become those of one.
    pub combine: Option<Combination>,
    /// The teacher's network, where its file doesn't say.
    pub teacher_model: Option<Architecture>,
    /// The output of a teacher in an ONNX file that holds the logits, by name or number.
    pub teacher_output: Option<String>,
    /// The mean of the images that the teacher was trained on, where its file doesn't say.
    pub teacher_mean: Option<[f32; 3]>,
    /// Their standard deviation.
    pub teacher_std: Option<[f32; 3]>,
    /// The class of the weights file for each class of the data: the teacher's file, or where there is no teacher that of `init`.
    pub class_map: Option<ClassMap>,
    /// The class of the file of `init` for each class of the data, in a run that has a teacher, too.
    pub init_class_map: Option<ClassMap>,
    /// Ignore the class names of weights files and take their classes in the data's order.
    pub ignore_class_names: bool,
    /// The temperature of the methods that have one.
    pub temperature: Option<f64>,
    /// What the teacher's logits are divided by, where that is not the same.
    pub teacher_temperature: Option<f64>,
    /// What each class counts in the labels' cross-entropy.
    pub class_weights: Option<ClassWeights>,
    /// The labels' share of the loss, from 0 to 1, in a run with one method, which has the rest.
    pub alpha: Option<f64>,
    /// The weights file to start from. In a run of another [name](Self::name) the recipe's `init_sha256` and `init_class_map`
    /// then do not count.
    pub init: Option<PathBuf>,
    /// Layers that stay as they are. The recipe's `unfreeze_at` is for the recipe's layers alone: with this given it does not count.
    pub freeze: Option<Vec<String>>,
    /// The number of epochs after which frozen layers are trained.
    pub unfreeze_at: Option<usize>,
    /// The share of the learning rate at which layers are trained, in place of the recipe's; empty for the recipe's.
    pub lr_scale: BTreeMap<String, f64>,
    /// Passes over the training images.
    pub epochs: Option<usize>,
    /// Images in a step.
    pub batch_size: Option<usize>,
    /// Parts that a step is computed in.
    pub accumulate: Option<usize>,
    /// Which images an epoch has.
    pub sampler: Option<Sampler>,
    /// Learning rate.
    pub lr: Option<f64>,
    /// The largest norm of a step's gradients; larger ones are scaled down to it.
    pub clip_grad_norm: Option<f64>,
    /// The arithmetic of training.
    pub precision: Option<Precision>,
    /// The seed of initial weights, batch order, augmentation and dropout.
    pub seed: Option<u64>,
    /// Where it is computed.
    pub device: Device,
    /// What does not change the result.
    pub settings: Settings,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            name: None,
            out: None,
            recipe_folder: None,
            data: "data".into(),
            dataset: None,
            skip_broken: false,
            train_shards: None,
            test_shards: None,
            size: None,
            data_memory: data::DATA_MEMORY,
            train_limit: None,
            test_limit: None,
            held_out: None,
            model: None,
            part: None,
            teacher: Vec::new(),
            teacher_logits: None,
            combine: None,
            teacher_model: None,
            teacher_output: None,
            teacher_mean: None,
            teacher_std: None,
            class_map: None,
            init_class_map: None,
            ignore_class_names: false,
            temperature: None,
            teacher_temperature: None,
            class_weights: None,
            alpha: None,
            init: None,
            freeze: None,
            unfreeze_at: None,
            lr_scale: BTreeMap::new(),
            epochs: None,
            batch_size: None,
            accumulate: None,
            sampler: None,
            lr: None,
            clip_grad_norm: None,
            precision: None,
            seed: None,
            device: Device::Cpu,
            settings: Settings::default(),
        }
    }
}

/// A run, and what there is to say about it.
pub struct Resolved {
    /// For [`train`](crate::train::train).
    pub run: ResolvedRun,
    /// Sentences for whoever starts the run: what the classes count, what was done to read weights that another program
    /// wrote, which weights it starts from, and what of them is new.
    pub notes: Vec<String>,
    /// Sentences about what may not be meant: which pictures are left out, which classes lack images.
    pub warnings: Vec<String>,
}

/// Resolves a run of `recipe`: lays the choices over it, loads data, teacher and initial weights, checks that they fit each other
/// and what other runs in the output folder were trained on, and fills in the feature places that the recipe leaves open.
///
/// `run` is one of the recipe's runs or one like them. The run's own recipe then records what was found: the SHA-256 of data,
/// teacher and initial weights, and where the latter two lie. The output folder is made if it is not there; nothing is printed.
///
/// # Errors
/// [`Error::Choice`] when a choice makes no sense for the run, [`Error::DoesNotFit`] when data or weights don't fit it, and
/// [`Error::Other`] when a file is missing or damaged.
pub fn resolve(recipe: &Recipe, run: &RunConfig, choices: &Choices) -> Result<Resolved> {
    let mut resolved = with_choices(recipe, run.clone(), choices)?;
    device::check(&choices.device, resolved.training.precision, choices.settings.compile)?;
    let out = choices.out.clone().unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let teachers = teacher::paths(recipe, &resolved.run, choices, &out)?;
    resolved.check_run()?;

    check_out(&resolved, &choices.data, &out)?;
    let folder = OutFolder::new(&out).run(&resolved.run.name);
    let RunConfig { part, select_on, .. } = resolved.run;
    let mut data = data::load_within(&resolved.data, &choices.data, choices.data_memory)?;
    let labelled = data.train.is_labelled();
    if !labelled {
        unlabelled::check(&resolved, &data)?;
    }
    if data.classes.is_empty() {
        let logits = logits_path(&resolved.run, choices);
        data.classes = unlabelled::classes(&resolved, &data, logits.as_deref(), &teachers)?;
    }
    let data = data.for_run(&resolved.run.name, part, select_on)?;
    resolved.data.sha256 = Some(data.sha256.clone());
    create_folder(&out).map_err(anyhow::Error::from)?;
    check_same_data(&out, &resolved)?;
    let warnings = warnings(&data, &resolved, &folder);
    let mut notes: Vec<String> =
        data.notes.iter().map(|note| format!("{}: {note}", resolved.run.name)).collect();
    if !labelled {
        notes.extend(unlabelled::notes(&resolved.run.name, &data));
    }
    if let (Some(after), None) = (run.unfreeze_at, resolved.run.unfreeze_at) {
        notes.push(format!(
            "{}: the recipe's unfreeze_at = {after} does not count for the layers of --freeze, which stay frozen; --unfreeze-at {after} trains these, too, after so many epochs",
            resolved.run.name
        ));
    }
    if let Some(weights) = data::class_weights(&resolved.run, &data)? {
        let named = data.classes.iter().zip(&weights);
        let named: Vec<_> = named.map(|(class, weight)| format!("{class} {weight:.4}")).collect();
        notes.push(format!(
            "{}: the labels' cross-entropy weighs the classes: {}",
            resolved.run.name,
            shortened(&named)
        ));
    }
    let teacher = match teachers.is_empty() {
        false => Some(teacher::load(&teachers, &mut resolved, &data, &out, &mut notes)?),
        true => None,
    };
    let teacher_logits = teacher::load_logits(&mut resolved, choices, &data, &out, &mut notes)?;
    let initial_path = match (&choices.init, &resolved.run.init) {
        (Some(path), _) => Some(path.to_owned()),
        (None, Some(name)) => Some(weights_path(recipe, choices, &out, name)),
        (None, None) => None,
    };
    let taught = teacher.is_some() || teacher_logits.is_some();
    check_class_maps(&resolved.run, taught, initial_path.is_some())?;
    let initial = match &initial_path {
        Some(path) => {
            check_input(&folder, "the weights to start from", path)?;
            Some(load_initial(path, &mut resolved, &data, &out, &mut notes)?)
        }
        None => None,
    };
    fill_in_places(&mut resolved.run, teacher.as_ref(), &data)?;
    let layers =
        Layers::of(&network_for(resolved.run.model, &data), &resolved.run, initial.as_ref())?;
    notes.extend(layers.notes(&resolved.run));
    let (device, settings) = (choices.device.clone(), choices.settings.clone());
    let recipe = resolved;
    let run = ResolvedRun { recipe, out, data, teacher, teacher_logits, initial, device, settings };
    Ok(Resolved { run, notes, warnings })
}

/// Refuses class maps that no weights file of the run takes.
fn check_class_maps(run: &RunConfig, teacher: bool, init: bool) -> Result<()> {
    let wrong = match (&run.class_map, &run.init_class_map) {
        (_, Some(_)) if !init => {
            "starts from no weights file: leave out --init-class-map (init_class_map in a recipe)"
        }
        (Some(_), Some(_)) if !teacher => {
            "has no teacher, so both class maps would be of the file that it starts from: leave out --class-map (class_map in a recipe)"
        }
        (map, None) if (map.is_some() || run.ignore_class_names) && !teacher && !init => {
            "uses no weights file, so there are no classes to map: leave out --class-map and --ignore-class-names (class_map and ignore_class_names in a recipe)"
        }
        _ => return Ok(()),
    };
    Err(Error::Choice(format!("run {:?} {wrong}", run.name)))
}

/// What may not be meant in the data of a run.
fn warnings(data: &Portions, resolved: &RunRecipe, folder: &RunFolder) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(sentence) = data.skipped_sentence() {
        found
            .push(format!("{sentence}; all are listed in {}", folder.skipped_pictures().display()));
    }
    found.extend(data.class_warnings.iter().cloned());
    let balanced = Some(ClassWeights::Rule(ClassWeightRule::Balanced));
    if resolved.training.sampler == Sampler::Balanced && resolved.run.class_weights == balanced {
        let twice = "sampler and class_weights are both \"balanced\": rare classes count more twice over, by the square of how rare they are";
        found.push(twice.into());
    }
    let normalizes = || {
        let config = network_for(resolved.run.model, data);
        config
            .graph()
            .is_ok_and(|graph| graph.tensors().any(|spec| spec.name.ends_with("running_mean")))
    };
    if let Some(parts) = resolved.training.accumulate.filter(|parts| *parts > 1)
        && normalizes()
    {
        found.push(format!(
            "each step is computed in {parts} parts, and batch normalisation takes the statistics of a part, not of the whole step: the steps are not those of accumulate = 1"
        ));
    }
    found.iter().map(|warning| format!("{}: {warning}", resolved.run.name)).collect()
}

/// The recipe of one run, with the choices laid over it.
pub(crate) fn with_choices(
    recipe: &Recipe,
    mut run: RunConfig,
    choices: &Choices,
) -> Result<RunRecipe> {
    let Recipe { name, mut data, mut training, mut optimizer, .. } = recipe.clone();
    let (train_shards, test_shards) = (&choices.train_shards, &choices.test_shards);
    data::choose(&mut data, choices.dataset, train_shards.as_deref(), test_shards.as_deref());
    data.skip_broken |= choices.skip_broken;
    data.size = choices.size.or(data.size);
    data.train_limit = choices.train_limit.or(data.train_limit);
    data.test_limit = choices.test_limit.or(data.test_limit);
    data.held_out = choices.held_out.or(data.held_out);
    // From here on the run's own numbers stand where training looks for them.
    let (own_epochs, own_lr) = (run.epochs.take(), run.lr.take());
    // What others published changes nothing of a run, and so is no part of its record.
    run.published = None;
    training.epochs = choices.epochs.or(own_epochs).unwrap_or(training.epochs);
    training.batch_size = choices.batch_size.unwrap_or(training.batch_size);
    training.accumulate = choices.accumulate.or(training.accumulate);
    training.sampler = choices.sampler.unwrap_or(training.sampler);
    training.seed = choices.seed.unwrap_or(training.seed);
    training.clip_grad_norm = choices.clip_grad_norm.or(training.clip_grad_norm);
    training.precision = choices.precision.unwrap_or(training.precision);
    *optimizer.lr_mut() = choices.lr.or(own_lr).unwrap_or(optimizer.lr());

    if let Some(model) = choices.model {
        run.set_model(model);
    }
    if let Some(temperature) = choices.temperature {
        set_temperature(&mut run, temperature)?;
    }
    if let Some(temperature) = choices.teacher_temperature {
        set_teacher_temperature(&mut run, temperature)?;
    }
    if let Some(alpha) = choices.alpha {
        set_alpha(&mut run, alpha)?;
    }
    if let Some(weights) = &choices.class_weights {
        run.class_weights = Some(weights.clone());
    }
    if !choices.teacher.is_empty() {
        let names = choices.teacher.iter().map(|path| path.display().to_string());
        run.teacher = Some(TeacherNames::new(names.collect()));
        // The hash is of one or the other: a network's is not a file of logits's.
        if run.teacher_logits.take().is_some() {
            run.teacher_sha256 = None;
        }
    }
    if let Some(path) = &choices.teacher_logits {
        run.teacher_logits = Some(path.display().to_string());
        if run.teacher.take().is_some() {
            run.teacher_sha256 = None;
        }
    }
    run.combine = choices.combine.or(run.combine);
    run.teacher_model = choices.teacher_model.or(run.teacher_model);
    run.teacher_output = choices.teacher_output.clone().or(run.teacher_output);
    run.teacher_mean = choices.teacher_mean.or(run.teacher_mean);
    run.teacher_std = choices.teacher_std.or(run.teacher_std);
    if choices.init.is_some() && choices.name.is_some() {
        (run.init_sha256, run.init_class_map) = (None, None);
    }
    if choices.ignore_class_names {
        (run.class_map, run.init_class_map, run.ignore_class_names) = (None, None, true);
    }
    if let Some(map) = &choices.init_class_map {
        (run.init_class_map, run.ignore_class_names) = (Some(map.clone()), false);
    }
    if let Some(map) = &choices.class_map {
        (run.class_map, run.ignore_class_names) = (Some(map.clone()), false);
    }
    if let Some(freeze) = &choices.freeze {
        run.freeze.clone_from(freeze);
        run.unfreeze_at = None;
    }
    run.unfreeze_at = choices.unfreeze_at.or(run.unfreeze_at);
    if !choices.lr_scale.is_empty() {
        run.lr_scale.clone_from(&choices.lr_scale);
    }
    if let Some([part, of]) = choices.part {
        run.part = Some([part, of]);
        run.name = part_name(&run.name, part, of);
    }
    if let Some(name) = &choices.name {
        check_name(name).map_err(|error| Error::Choice(format!("--name: {error}")))?;
        run.name.clone_from(name);
    }
    Ok(RunRecipe { name, data, training, optimizer, run })
}

fn set_temperature(run: &mut RunConfig, value: f64) -> Result<()> {
    let mut found = false;
    for term in &mut run.methods {
        let temperature = match &mut term.method {
            MethodConfig::Kd(config) => &mut config.temperature,
            MethodConfig::Dkd(config) => &mut config.temperature,
            MethodConfig::Dist(config) => &mut config.temperature,
            _ => continue,
        };
        *temperature = value;
        found = true;
    }
    match found {
        true => Ok(()),
        false => Err(Error::Choice(format!(
            "--temperature is for the methods kd, dkd and dist; run {:?} has {}",
            run.name,
            run.method_name().as_deref().unwrap_or("no method")
        ))),
    }
}

fn set_teacher_temperature(run: &mut RunConfig, value: f64) -> Result<()> {
    let mut found = false;
    for term in &mut run.methods {
        if let MethodConfig::Kd(config) = &mut term.method {
            config.teacher_temperature = Some(value);
            found = true;
        }
    }
    match found {
        true => Ok(()),
        false => Err(Error::Choice(format!(
            "--teacher-temperature is for the method kd; run {:?} has {}",
            run.name,
            run.method_name().as_deref().unwrap_or("no method")
        ))),
    }
}

fn set_alpha(run: &mut RunConfig, alpha: f64) -> Result<()> {
    let [Term { weight, .. }] = &mut run.methods[..] else {
        return Err(Error::Choice(format!(
            "--alpha shares the loss between the labels and one method; run {:?} has {}: set their weights in a recipe",
            run.name,
            run.methods.len()
        )));
    };
    (run.labels, *weight) = kd_loss::alpha_weights(alpha).map_err(anyhow::Error::from)?;
    Ok(())
}

/// Where weights that a recipe names are: another run's, or a file beside the recipe.
fn weights_path(recipe: &Recipe, choices: &Choices, out: &Path, name: &str) -> PathBuf {
    if recipe.runs.iter().any(|run| run.name == name) {
        return OutFolder::new(out).weights(name);
    }
    let folder = choices.recipe_folder.as_deref();
    folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name))
}

/// Refuses an output folder among one's own pictures, where a run's folder would be read as a class.
fn check_out(resolved: &RunRecipe, data: &Path, out: &Path) -> Result<()> {
    let inside = ["train", "test"].map(|split| data.join(split));
    match inside.iter().find(|split| own::lies_in(out, split)) {
        Some(split) if resolved.data.dataset == DatasetName::Folder => Err(Error::Choice(format!(
            "--out {}: this lies in {}, whose folders are the classes of the pictures; choose another --out",
            out.display(),
            split.display()
        ))),
        _ => Ok(()),
    }
}

/// Refuses weights to read that the run itself would write over.
fn check_input(folder: &RunFolder, what: &str, path: &Path) -> Result<()> {
    if !own::same_file(path, &folder.weights()) && !own::lies_in(path, &folder.path) {
        return Ok(());
    }
    Err(Error::Choice(format!(
        "{}: {what} can't be the file {} or lie in the folder {}, which this run writes; choose another --out or --name",
        path.display(),
        folder.weights().display(),
        folder.path.display()
    )))
}

/// Runs in one folder are compared, so they must have been tested on the same images.
fn check_same_data(out: &Path, run: &RunRecipe) -> Result<()> {
    for folder in OutFolder::new(out).runs()? {
        if folder.path.ends_with(&run.run.name) {
            continue;
        }
        let path = folder.recipe();
        let Ok(other) = Recipe::read(&path) else { continue };
        let number = |value: Option<usize>| value.map_or("none".into(), |value| value.to_string());
        let test = |data: &DataConfig| (data.sha256.clone(), data.test_limit, data.held_out);
        if test(&other.data) != test(&run.data) {
            return Err(Error::unfit(format!(
                "{}: this run in the same folder was tested on other images ({}{}, test limit {}, held out {}); runs in one folder are compared, so choose another --out",
                path.display(),
                other.data.dataset.name(),
                if other.data.sha256 == run.data.sha256 { "" } else { " of other files" },
                number(other.data.test_limit),
                number(other.data.held_out)
            )));
        }
    }
    Ok(())
}

/// Loads the weights to start from, notes what is taken of them, and records them in the recipe.
fn load_initial(
    path: &Path,
    resolved: &mut RunRecipe,
    data: &Portions,
    out: &Path,
    notes: &mut Vec<String>,
) -> Result<Initial> {
    let normalization = resolved.data.normalization();
    let run = &mut resolved.run;
    let config = network_for(run.model, data);
    // A class map without more is for the teacher's file where there is one.
    let map = run.class_map.clone().filter(|_| !run.needs_teacher());
    let map = run.init_class_map.clone().or(map);
    let mut choice =
        ClassChoice { map, ignore_names: run.ignore_class_names, ..ClassChoice::default() };
    if run.needs_teacher() {
        choice.setting = "--init-class-map FILE (init_class_map in a recipe)";
    }
    let initial = Initial::load(path, &config, &data.classes, &choice, normalization);
    let initial = initial.map_err(|error| {
        error.context(format!("run {} can't start from these weights", run.name))
    })?;
    if let Some(expected) = &run.init_sha256
        && *expected != initial.sha256
    {
        return Err(Error::unfit(format!(
            "{}: the file's SHA-256 is {}; the recipe's init_sha256 is {expected}: these are other weights. Give those with --init, or remove init_sha256 from the recipe",
            path.display(),
            initial.sha256
        )));
    }
    notes.extend(initial.start.notes.iter().cloned());
    notes.push(format!("{}: {}", run.name, initial.describe(path, &config)?));
    notes.extend(initial.note.iter().map(|note| format!("{}: {note}", run.name)));
    run.init = Some(OutFolder::new(out).from_a_run(path)?.display().to_string());
    run.init_sha256 = Some(initial.sha256.clone());
    Ok(initial)
}

/// Fills in the feature places that the recipe leaves to the methods.
pub(crate) fn fill_in_places(
    run: &mut RunConfig,
    teacher: Option<&Pretrained>,
    data: &Portions,
) -> Result<()> {
    let student = network_for(run.model, data);
    let shapes = shapes(&student, teacher, &data.train_labels()?)?;
    for term in &mut run.methods {
        term.method = term.method.resolve(&shapes)?;
    }
    Ok(())
}
