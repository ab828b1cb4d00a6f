//! What each command does, from its flags to its output.

mod choose;
mod eval;
mod export;
mod methods;
mod predict;
mod shell;
mod weights;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kd_loss::{MethodConfig, Term};
use kd_models::ModelConfig;

use crate::cli::{Distill, Part, Report, RunFlags, ShowMethods, ShowRecipe, Train, Usage};
use crate::data::{self, Data};
use crate::initial::Initial;
use crate::progress::{Display, DisplayConfig};
use crate::recipe::{Recipe, RunConfig, RunRecipe, TUTORIAL, check_name};
use crate::run::{Outcome, ResolvedRun, Settings, shapes, train as train_run};
use crate::signals::{Interrupted, StopRequest};
use crate::teacher::Pretrained;
use crate::{device, files, report};

pub(crate) use eval::eval;
pub(crate) use export::export;
pub(crate) use predict::predict;
pub(crate) use shell::{completions, man};

/// `kd train`.
pub(crate) fn train(flags: &Train) -> anyhow::Result<()> {
    let recipe = read_recipe(flags.run.recipe.as_deref())?;
    let mut run = choose::on_labels(&recipe, flags)?;
    if let Some(Part(part, of)) = flags.part {
        run.part = Some([part, of]);
        run.name = part_name(&run.name, part, of);
    }
    start(&flags.run, &recipe, run, None, Settings::default())
}

/// `kd distill`.
pub(crate) fn distill(flags: &Distill) -> anyhow::Result<()> {
    let recipe = read_recipe(flags.run.recipe.as_deref())?;
    let mut run = choose::distilled(&recipe, flags)?;
    if let Some(model) = flags.model {
        run.set_model(model);
    }
    if let Some(temperature) = flags.temperature {
        set_temperature(&mut run.methods, temperature)?;
    }
    if let Some(alpha) = flags.alpha {
        let [term] = &mut run.methods[..] else {
            let found = run.methods.len();
            return Err(Usage(format!("--alpha shares the loss between the labels and one method; run {:?} has {found}: set their weights in a recipe", run.name)).into());
        };
        (run.labels, term.weight) = kd_loss::alpha_weights(alpha)?;
    }
    run.teacher_model = flags.teacher_model.or(run.teacher_model);
    let settings = Settings {
        cache_memory: flags.cache_memory.saturating_mul(1 << 20),
        ..Settings::default()
    };
    start(&flags.run, &recipe, run, flags.teacher.as_deref(), settings)
}

fn set_temperature(methods: &mut [Term], value: f64) -> anyhow::Result<()> {
    let mut found = false;
    for term in methods {
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
        false => Err(Usage("--temperature is for the methods kd, dkd and dist".into()).into()),
    }
}

/// `kd report`.
pub(crate) fn report(flags: &Report) -> anyhow::Result<()> {
    let table = report::write(&flags.out)?;
    if flags.json {
        let summaries: anyhow::Result<Vec<_>> =
            flags.out.iter().map(|out| files::read_json(&out.join("summary.json"))).collect();
        return say(&format!("{}\n", serde_json::Value::Array(summaries?)));
    }
    say(&table)?;
    for out in &flags.out {
        say(&format!("{}\n", out.join("report.html").display()))?;
    }
    Ok(())
}

/// `kd methods`.
pub(crate) fn methods(flags: &ShowMethods) -> anyhow::Result<()> {
    say(&methods::list(flags.json)?)
}

/// `kd recipe`.
pub(crate) fn recipe(flags: &ShowRecipe) -> anyhow::Result<()> {
    let recipe = read_recipe(flags.recipe.as_deref())?;
    let text = match flags.json {
        true => serde_json::to_string(&recipe).context("the recipe can't be written as JSON")?,
        false => toml::to_string(&recipe).context("the recipe can't be written as TOML")?,
    };
    say(&format!("{}\n", text.trim_end()))
}

/// Prints to standard output; nobody listening any more (`kd report | head`) is no failure.
fn say(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output can't be written")
        }
        _ => Ok(()),
    }
}

fn read_recipe(path: Option<&Path>) -> anyhow::Result<Recipe> {
    match path {
        Some(path) => Recipe::read(path),
        None => Ok(Recipe::parse(TUTORIAL, "the built-in recipe")?),
    }
}

/// Resolves the run and trains it.
fn start(
    flags: &RunFlags,
    recipe: &Recipe,
    run: RunConfig,
    teacher: Option<&Path>,
    mut settings: Settings,
) -> anyhow::Result<()> {
    let stop = StopRequest::listen()?;
    let device = device::choose(flags.compute.device)?;
    if let Some(every) = flags.checkpoint_every {
        settings.checkpoint_every = every;
    }
    settings.keep_checkpoints = flags.keep_checkpoints;
    settings.tensorboard = flags.tensorboard;
    settings.compile = flags.compile;

    let mut resolved = with_flags(recipe, run, flags)?;
    resolved.training.precision.check(&device)?;
    settings.compile.check(&device)?;
    let out = flags.out.clone().unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let teacher_path = match (teacher, &resolved.run.teacher) {
        (Some(path), _) => Some(path.to_owned()),
        (None, Some(name)) => Some(choose::weights_path(recipe, flags, &out, name)),
        (None, None) if resolved.run.needs_teacher() => {
            return Err(Usage(format!(
                "run {:?} learns from a teacher: give its weights with --teacher FILE",
                resolved.run.name
            ))
            .into());
        }
        (None, None) => None,
    };
    if let (Some(path), false) = (&teacher_path, resolved.run.needs_teacher()) {
        return Err(Usage(format!(
            "--teacher {}: run {:?} asks no teacher",
            path.display(),
            resolved.run.name
        ))
        .into());
    }

    let data = data::load(&resolved.data, &flags.data.data)?.for_run(&resolved.run)?;
    resolved.data.sha256 = Some(data.sha256.clone());
    files::create_folder(&out)?;
    check_same_data(&out, &resolved)?;
    let teacher = match &teacher_path {
        Some(path) => Some(load_teacher(path, &mut resolved, &data, &out)?),
        None => None,
    };
    let initial_path = match (&flags.init, &resolved.run.init) {
        (Some(path), _) => Some(path.to_owned()),
        (None, Some(name)) => Some(choose::weights_path(recipe, flags, &out, name)),
        (None, None) => None,
    };
    let initial = match &initial_path {
        Some(path) => Some(load_initial(path, &mut resolved, &data, &out)?),
        None => None,
    };
    resolve_methods(&mut resolved.run, teacher.as_ref(), &data)?;

    let run = ResolvedRun { recipe: resolved, out, data, teacher, initial, device, settings };
    let mut display = Display::new(DisplayConfig {
        plain: flags.plain,
        events: Some(run.out.join(&run.recipe.run.name).join("events.jsonl")),
        teacher_events: teacher_events(&run.out, teacher_path.as_deref(), &run.recipe.run.name),
    });
    let outcome = train_run(&run, &mut |progress| {
        let shown = display.observe(progress);
        if stop.signal().is_some() { ControlFlow::Break(()) } else { shown }
    });
    display.finish();
    let name = &run.recipe.run.name;
    match outcome? {
        Outcome::Finished(evaluation) => {
            say(&format!("{name}: {}\n", eval::one_line(&evaluation)))?;
            say(&format!("weights: {}\n", run.out.join(format!("{name}.safetensors")).display()))?;
        }
        Outcome::AlreadyFinished(evaluation) => {
            say(&format!("{name}: finished before, {}\n", eval::one_line(&evaluation)))?;
        }
        Outcome::Stopped { step } => {
            let signal = stop.signal().unwrap_or_default();
            return Err(Interrupted { run: name.clone(), step, signal }.into());
        }
    }
    let _lock = files::lock(&run.out, true)?;
    for name in ["report.html", "summary.json"] {
        files::remove_partial_of(&run.out.join(name))?;
    }
    report::write(std::slice::from_ref(&run.out))
        .with_context(|| format!("run {name} is finished, but its report can't be made"))?;
    say(&format!("report: {}\n", run.out.join("report.html").display()))?;
    Ok(())
}

/// Where the teacher's measurements are if kd trained it; for a run on labels, those of a teacher in the
/// same folder.
fn teacher_events(out: &Path, teacher: Option<&Path>, run: &str) -> Option<PathBuf> {
    let folder = match teacher {
        Some(weights) => weights.with_extension(""),
        None => out.join("teacher"),
    };
    (folder != out.join(run)).then(|| folder.join("events.jsonl"))
}

/// The recipe of one run, with what the flags say over it.
fn with_flags(recipe: &Recipe, mut run: RunConfig, flags: &RunFlags) -> anyhow::Result<RunRecipe> {
    let Recipe { name, mut data, mut training, mut optimizer, .. } = recipe.clone();
    if let Some(dataset) = flags.data.dataset {
        if dataset != data.dataset {
            data.sha256 = None;
        }
        data.dataset = dataset;
    }
    data.train_limit = flags.train_limit.or(data.train_limit);
    data.test_limit = flags.data.test_limit.or(data.test_limit);
    data.held_out = flags.held_out.or(data.held_out);
    // From here on the run's own number stands where `kd` looks for it.
    let own = run.epochs.take();
    training.epochs = flags.epochs.or(own).unwrap_or(training.epochs);
    training.batch_size = flags.batch_size.unwrap_or(training.batch_size);
    training.seed = flags.seed.unwrap_or(training.seed);
    training.clip_grad_norm = flags.clip_grad_norm.or(training.clip_grad_norm);
    training.precision = flags.precision.unwrap_or(training.precision);
    *optimizer.lr_mut() = flags.lr.unwrap_or(optimizer.lr());
    if !flags.freeze.is_empty() {
        run.freeze.clone_from(&flags.freeze);
    }
    if let Some(name) = &flags.name {
        check_name(name).map_err(|error| Usage(format!("--name: {error}")))?;
        run.name = name.clone();
    }
    Ok(RunRecipe { name, data, training, optimizer, run })
}

/// Runs in one folder are compared, so they must have seen the same images.
fn check_same_data(out: &Path, run: &RunRecipe) -> anyhow::Result<()> {
    let reading = || format!("{}: the folder can't be read", out.display());
    for entry in std::fs::read_dir(out).with_context(reading)? {
        let folder = entry.with_context(reading)?.path();
        if !folder.join("events.jsonl").exists() || folder.ends_with(&run.run.name) {
            continue;
        }
        let path = folder.join("recipe.toml");
        let Ok(other) = Recipe::read(&path) else { continue };
        let number = |value: Option<usize>| value.map_or("none".into(), |value| value.to_string());
        let test = |data: &crate::recipe::DataConfig| {
            (data.sha256.clone(), data.test_limit, data.held_out)
        };
        if test(&other.data) != test(&run.data) {
            bail!(
                "{}: this run was on other images ({}{}, test limit {}, held out {}); runs in one folder are compared, so choose another --out",
                path.display(),
                other.data.dataset.name(),
                if other.data.sha256 == run.data.sha256 { "" } else { " of other files" },
                number(other.data.test_limit),
                number(other.data.held_out)
            );
        }
    }
    Ok(())
}

fn load_teacher(
    path: &Path,
    resolved: &mut RunRecipe,
    data: &Data,
    out: &Path,
) -> anyhow::Result<Pretrained> {
    let normalization = resolved.data.normalization();
    let run = &mut resolved.run;
    let load = |path: &Path| {
        Pretrained::load(path, run.teacher_model, data.classes.len(), normalization)
            .context("the teacher can't be used")
    };
    let part_path = |part, of| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        path.with_file_name(part_name(&stem, part, of) + ".safetensors")
    };
    let (teacher, file) = match run.cross_fit {
        None => (load(path)?, path.to_owned()),
        Some(of) => {
            let parts: anyhow::Result<Vec<_>> =
                (1..=of).map(|part| load(&part_path(part, of))).collect();
            (Pretrained::cross_fitted(path, parts?, data.train.len())?, part_path(1, of))
        }
    };
    if let Some(expected) = &run.teacher_sha256
        && *expected != teacher.sha256
    {
        bail!(
            "{}: the teacher's SHA-256 is {}; the recipe's teacher_sha256 is {expected}: it is another teacher",
            path.display(),
            teacher.sha256
        );
    }
    // Of cross-fitted targets the teacher's own file need not be there.
    let recorded = files::from_run_folder(&file, out)?;
    let recorded = recorded.with_file_name(path.file_name().unwrap_or_default());
    run.teacher = Some(recorded.display().to_string());
    run.teacher_model = Some(teacher.config.architecture);
    run.teacher_sha256 = Some(teacher.sha256.clone());
    Ok(teacher)
}

/// Loads the weights to start from, says what is taken of them, and records them in the recipe.
fn load_initial(
    path: &Path,
    resolved: &mut RunRecipe,
    data: &Data,
    out: &Path,
) -> anyhow::Result<Initial> {
    let normalization = resolved.data.normalization();
    let run = &mut resolved.run;
    let config = ModelConfig::new(run.model, data.classes.len());
    let initial = Initial::load(path, &config, normalization)
        .with_context(|| format!("run {} can't start from these weights", run.name))?;
    if let Some(expected) = &run.init_sha256
        && *expected != initial.sha256
    {
        bail!(
            "{}: the SHA-256 is {}; the recipe's init_sha256 is {expected}: these are other weights",
            path.display(),
            initial.sha256
        );
    }
    say(&format!("{}: {}\n", run.name, initial.says(path, &config)))?;
    run.init = Some(files::from_run_folder(path, out)?.display().to_string());
    run.init_sha256 = Some(initial.sha256.clone());
    Ok(initial)
}

/// The run that leaves a part out, and where a student with `cross_fit` looks for its weights.
fn part_name(name: &str, part: usize, of: usize) -> String {
    format!("{name}-part-{part}-of-{of}")
}

/// Fills in the feature places that the recipe leaves to the methods.
fn resolve_methods(
    run: &mut RunConfig,
    teacher: Option<&Pretrained>,
    data: &Data,
) -> anyhow::Result<()> {
    let student = ModelConfig::new(run.model, data.classes.len());
    let teacher = teacher.map(|teacher| &teacher.config);
    let shapes = shapes(&student, teacher, &data.train_labels());
    for term in &mut run.methods {
        term.method = term.method.resolve(&shapes)?;
    }
    Ok(())
}
